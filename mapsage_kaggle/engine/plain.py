"""Train a config with mmengine's own runner, as without the kit: what a step is compared with.

python -m mapsage_kaggle.engine.plain config.py work_dir
"""

from __future__ import annotations

import sys

from mmengine.config import Config
from mmengine.runner import Runner

if __name__ == "__main__":
    cfg = Config.fromfile(sys.argv[1])
    cfg.work_dir = sys.argv[2]
    Runner.from_cfg(cfg).train()
