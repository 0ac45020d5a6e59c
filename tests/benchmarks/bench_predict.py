"""From files to masks: `predict` against mmsegmentation's `MMSegInferencer`, in images a second.

    python tests/benchmarks/bench_predict.py [--turns 3] [--images 4] [--side 1024] [--json FILE]

SegFormer-B2 as `configs/train_earthvqa_kaggle.py` builds it, with random weights of which no class
outweighs the others, on generated scenes. Both read the same files, compute in float32 with the same
threads, each in a process of its own, and write a PNG of class values for each; loading the model is not
counted. *Processor time* is that of all threads, which other programs on the machine disturb less than the
clock on the wall. *Equal pixels* is the share on which the masks agree: they are equal to rounding, so a
pixel whose two best classes are all but equal may fall either way.
"""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import side_by_side
import torch
from PIL import Image

import mapsage_kaggle.engine.register  # noqa: F401
from mapsage_kaggle.config.patch import for_inference
from mapsage_kaggle.config.reading import read_config
from mapsage_kaggle.data.scenes import draw_scene
from mapsage_kaggle.engine.jobs.inference import build_model, load_model
from mapsage_kaggle.engine.jobs.predict import Predictor, Task
from mapsage_kaggle.imagery.sources import find_images

CONFIG = Path(__file__).resolve().parents[2] / "configs" / "train_earthvqa_kaggle.py"


def config() -> Any:
    cfg = for_inference(read_config(CONFIG, ()), {})
    cfg.test_pipeline = cfg.test_dataloader.dataset.pipeline
    return cfg


def write_weights(path: Path) -> None:
    """Write random weights of which no class outweighs the others."""
    torch.manual_seed(0)
    net = build_model(config()).eval()
    net.init_weights()
    image = torch.from_numpy(draw_scene(512, (0,))[0].transpose(2, 0, 1).copy()).float()
    with torch.inference_mode():
        inputs = net.data_preprocessor({"inputs": [image]}, False)["inputs"]
        logits = net.encode_decode(inputs, [{"img_shape": inputs.shape[2:]}])
        net.decode_head.conv_seg.bias -= logits.mean((0, 2, 3))
    torch.save({"meta": {}, "state_dict": net.state_dict()}, path)


def mmsegmentation(weights: Path, images: Path, out: Path) -> Callable[[], None]:
    """Return what predicts the folder with mmsegmentation's own inferencer."""
    from mmseg.apis import MMSegInferencer

    infer = MMSegInferencer(config(), str(weights), device="cpu", show_progress=False)
    out.mkdir()

    def predict() -> None:
        for image in sorted(images.iterdir()):
            mask = infer(str(image))["predictions"]
            Image.fromarray((mask + 1).astype(np.uint8)).save(out / image.name)

    return predict


def kit(weights: Path, images: Path, out: Path) -> Callable[[], None]:
    """Return what predicts the folder with the kit."""
    cfg, sources = config(), find_images([images])
    model = load_model(cfg, weights, device="cpu", fast=True)
    turn = iter(range(1000))

    def predict() -> None:
        task = Task(out=out / str(next(turn)), sources=sources)  # a new folder: nothing is done already
        Predictor(cfg, model, task, "0" * 64, lambda event, **data: None).run()

    return predict


def share_equal(ours: Path, theirs: Path) -> float:
    """Return the share of pixels on which the masks of two folders agree."""
    pairs = [(Image.open(ours / path.name), Image.open(path)) for path in sorted(theirs.iterdir())]
    return float(np.mean([np.mean(np.asarray(one) == np.asarray(other)) for one, other in pairs]))


def main() -> None:
    parser = side_by_side.parser(__doc__, turns=3)
    parser.add_argument("--images", type=int, default=4)
    parser.add_argument("--side", type=int, default=1024)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        images = folder / "images"
        images.mkdir()
        for number in range(options.images):
            Image.fromarray(draw_scene(options.side, (number,))[0]).save(images / f"{number}.png")
        write_weights(folder / "weights.pth")
        sides = [
            side_by_side.Apart(make, folder / "weights.pth", images, folder / name)
            for make, name in ((mmsegmentation, "stock"), (kit, "kit"))
        ]
        processor_ms: tuple[list[float], list[float]] = ([], [])

        def rate(side: int) -> float:
            seconds, processor_s = sides[side]()
            processor_ms[side].append(1000 * processor_s / options.images)
            return options.images / seconds

        rates = side_by_side.by_turns(lambda: rate(0), lambda: rate(1), turns=options.turns)
        for side in sides:
            side.end()
        equal = share_equal(folder / "kit" / "0" / "masks", folder / "stock")
    side_by_side.show(
        f"SegFormer-B2, {options.images} images of {options.side} x {options.side}, from file to mask",
        [
            side_by_side.Row(
                what="images a second",
                unit="images/s",
                stock=rates[0],
                ours=rates[1],
                more_is_better=True,
                goal=2,
            ),
            side_by_side.Row(
                what="processor time an image", unit="ms", stock=processor_ms[0][1:], ours=processor_ms[1][1:]
            ),
        ],
        file=options.json,
        equal_pixels=equal,
    )
    print(f"equal pixels {equal:.6%}")


if __name__ == "__main__":
    main()
