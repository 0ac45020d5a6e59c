"""A training sample by mmsegmentation's transforms and by the kit's faster pipeline, of the shipped config.

Run ``python tests/benchmarks/bench_pipeline.py``. Both make the same samples from the same draws, which is
checked, on one core; what is measured is the processor's time, files being in the page cache. Images are
1024 × 1024: those below ``--data``, in ``images_png`` and ``masks_png``, or else generated scenes.
"""

from __future__ import annotations

import copy
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from mapsage_kaggle.config.reading import read_config

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(Path(__file__).parent)]

import cv2  # noqa: E402 - found by the lines above
import torch  # noqa: E402
from mmengine.registry import TRANSFORMS, DefaultScope  # noqa: E402
from side_by_side import Row, by_turns, cpu_ms, parser, show  # noqa: E402

import mapsage_kaggle.engine.register  # noqa: E402, F401
from mapsage_kaggle.config import replacements  # noqa: E402
from mapsage_kaggle.data.scenes import generate_scenes  # noqa: E402
from mapsage_kaggle.engine import seeding  # noqa: E402


def entries(folder: Path) -> list[dict[str, Any]]:
    """Return what a data set would give for each image of a folder that has a mask."""
    return [
        {"img_path": str(image), "seg_map_path": str(mask), "label_map": None, "reduce_zero_label": True}
        for image in sorted((folder / "images_png").glob("*.png"))
        if (mask := folder / "masks_png" / image.name).is_file()
    ]


def run(transforms: Sequence[Any], infos: Sequence[dict[str, Any]], seeds: Sequence[int]) -> list[Any]:
    """Return one sample a seed, of the images in turn."""
    found = []
    for position, seed in enumerate(seeds):
        results: Any = {**copy.copy(infos[position % len(infos)]), "seg_fields": []}
        seeding.seed_sample(seed)
        for item in transforms:
            results = item(results)
        found.append(results)
    return found


def check_equal(stock: Sequence[Any], ours: Sequence[Any]) -> None:
    for one, other in zip(stock, ours, strict=True):
        assert torch.equal(one["inputs"], other["inputs"])
        labels = one["data_samples"].gt_sem_seg.data, other["data_samples"].gt_sem_seg.data
        assert torch.equal(*labels)


def main() -> None:
    options = parser(__doc__, turns=5)
    options.add_argument("--data", type=Path, help="a folder with images_png and masks_png")
    options.add_argument("--samples", type=int, default=40, help="a turn")
    arguments = options.parse_args()
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
    cfg = read_config(ROOT / "configs" / "train_earthvqa_kaggle.py")
    training = cfg.train_dataloader.dataset.pipeline
    with tempfile.TemporaryDirectory() as name, DefaultScope.overwrite_default_scope("mmseg"):
        folder, scratch = arguments.data, Path(name)
        if folder is None:
            generate_scenes(scratch, train=4, val=1, size=1024, seed=0)
            time.sleep(2.1)  # what has only just been written is not kept
            folder = scratch / "Train"
        infos = entries(folder)
        seeds = range(arguments.samples)
        rows = []

        def faster(cache_dir: Path | None) -> list[Any]:
            where = None if cache_dir is None else str(cache_dir)
            found = replacements.faster_pipeline(training, cache_dir=where, scope="mmseg")
            assert found is not None
            return [TRANSFORMS.build(item) for item in found[0]]

        stock = [TRANSFORMS.build(item) for item in training]
        kept, apart = faster(scratch / "cache"), faster(None)
        check_equal(run(stock, infos, seeds), run(kept, infos, seeds))

        def first_time() -> float:
            pipeline = faster(scratch / "filling")
            milliseconds = cpu_ms(partial(run, pipeline, infos, range(len(infos))), per=len(infos))
            shutil.rmtree(scratch / "filling")
            return milliseconds

        def measure(pipeline: Sequence[Any], seeds: Sequence[int]) -> float:
            return cpu_ms(partial(run, pipeline, infos, seeds), per=len(seeds))

        for what, ours, used, goal in (
            ("a sample, its image in the cache", partial(measure, kept, seeds), seeds, 5.0),
            ("a sample, its image decoded and put into the cache", first_time, range(len(infos)), None),
            ("a sample, no room for a cache", partial(measure, apart, seeds), seeds, None),
        ):
            figures = by_turns(partial(measure, stock, used), ours, turns=arguments.turns)
            rows.append(Row(what=what, unit="ms of one core", stock=figures[0], ours=figures[1], goal=goal))
        what = "generated scenes" if arguments.data is None else f"{len(infos)} images of {folder.name}"
        show(f"Input pipeline, {what}, 512 × 512 of 1024 × 1024, bit-identical samples", rows,
             file=arguments.json, samples_a_turn=len(seeds))  # fmt: skip


if __name__ == "__main__":
    main()
