"""Goes on with `train_earthvqa_kaggle.py`, and refuses to start anew.

Needs: what `train_earthvqa_kaggle.py` needs, and the output of an earlier session attached as input.

    mapsage-kaggle train configs/resume_earthvqa_kaggle.py

With `load_from = None` the newest good checkpoint of this run is found under the inputs, however
they are mounted. To insist on one file, name it.
"""

_base_ = "./train_earthvqa_kaggle.py"

# load_from = '/kaggle/input/mapsage-checkpoints/iter_8000.pth'
load_from = None
resume = True
