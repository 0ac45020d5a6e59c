"""Validation by mmsegmentation and by the kit, of the shipped config: an image as a whole, and its parts.

Run ``python tests/benchmarks/bench_validation.py``. Both sides have the same random weights and images of
1024 × 1024 (those below ``--data``, or else generated scenes), one core, and the processor's time is
measured. What is counted from equal logits is checked to be the same.
"""

from __future__ import annotations

import contextlib
import copy
import io
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from mapsage_kaggle.config.patch import apply_patch, plan_patch
from mapsage_kaggle.config.reading import read_config

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(Path(__file__).parent)]

import cv2  # noqa: E402 - found by the lines above
import torch  # noqa: E402
from bench_pipeline import entries  # noqa: E402
from mmengine.dataset import pseudo_collate  # noqa: E402
from mmengine.registry import TRANSFORMS, DefaultScope  # noqa: E402
from mmengine.structures import PixelData  # noqa: E402
from mmseg.evaluation import IoUMetric  # noqa: E402
from mmseg.registry import METRICS, MODELS  # noqa: E402
from mmseg.structures import SegDataSample  # noqa: E402
from side_by_side import Apart, Row, by_turns, cpu_ms, parser, show  # noqa: E402

import mapsage_kaggle.engine.register  # noqa: E402, F401
from mapsage_kaggle.config.patch import PatchContext  # noqa: E402
from mapsage_kaggle.data.scenes import generate_scenes  # noqa: E402
from mapsage_kaggle.engine.fast.prediction import quick_prediction  # noqa: E402
from mapsage_kaggle.machine import keep_freed_memory  # noqa: E402

CONFIG = ROOT / "configs" / "train_earthvqa_kaggle.py"


class Side:
    """One side's parts, built as its config says."""

    def __init__(self, scratch: Path, *, fast: bool) -> None:
        facts = PatchContext(work_dir=scratch, fast=fast, cache_dir=scratch / "cache" if fast else None)
        cfg = read_config(CONFIG)
        patched = apply_patch(cfg, plan_patch(cfg, CONFIG, facts))
        self.fast = fast
        self.load = [TRANSFORMS.build(item) for item in patched.val_dataloader.dataset.dataset.pipeline]
        model = copy.deepcopy(patched.model)
        model.backbone.init_cfg = None
        torch.manual_seed(0)
        self.model = MODELS.build(model).eval()
        self.metric: IoUMetric = METRICS.build(patched.val_evaluator if fast else cfg.val_evaluator)
        self.metric.dataset_meta = {"classes": tuple("abcdefgh")}

    def images(self, infos: Sequence[Mapping[str, Any]]) -> list[Any]:
        """Return each image with its mask as the data loader gives them."""
        found = []
        for info in infos:
            results: Any = {**info, "seg_fields": []}
            for item in self.load:
                results = item(results)
            found.append(results)
        return found

    @torch.no_grad()
    def validate(self, infos: Sequence[Mapping[str, Any]]) -> dict[str, float]:
        """Return the metrics, after all that a validation does."""
        self.metric.results.clear()
        for info in infos:
            batch = pseudo_collate(self.images([info]))
            self.count(self.model.val_step(batch))
        with contextlib.redirect_stdout(io.StringIO()):  # its table
            return dict(self.metric.evaluate(len(infos)))

    @torch.no_grad()
    def judge(self, logits: Sequence[torch.Tensor], labels: Sequence[torch.Tensor]) -> list[Any]:
        """Do what follows the network with its logits; return what was counted."""
        self.metric.results.clear()
        for one, label in zip(logits, labels, strict=True):
            enlarged = self.model.decode_head.predict_by_feat(one, [{"img_shape": label.shape[1:]}])
            sample = SegDataSample(metainfo={"ori_shape": tuple(label.shape[1:])})
            sample.gt_sem_seg = PixelData(data=label)
            self.count(self.model.postprocess_result(enlarged, [sample]))
        return list(self.metric.results)

    def count(self, samples: Sequence[SegDataSample]) -> None:
        self.metric.process({}, [sample.to_dict() for sample in samples])


def whole(scratch: Path, infos: Sequence[Mapping[str, Any]], fast: bool) -> Callable[[], object]:
    """Return what validates images as a whole, in a process of its own, as the training child does."""
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
    within = contextlib.ExitStack()
    within.enter_context(DefaultScope.overwrite_default_scope("mmseg"))
    side = Side(scratch, fast=fast)
    if fast:
        keep_freed_memory()
        within.enter_context(quick_prediction(side.model))
    return partial(side.validate, infos)


def check_equal(stock: Sequence[Any], ours: Sequence[Any]) -> None:
    from mapsage_kaggle.engine.metric import areas

    total = [sum(item[area] for item in stock) for area in range(4)]
    for expected, found in zip(total, areas(torch.stack(list(ours)).sum(dim=0)), strict=True):
        assert expected.tolist() == found.tolist()


def main() -> None:
    options = parser(__doc__, turns=3)
    options.add_argument("--data", type=Path, help="a folder with images_png and masks_png")
    arguments = options.parse_args()
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name, DefaultScope.overwrite_default_scope("mmseg"):
        folder, scratch = arguments.data, Path(name)
        if folder is None:
            generate_scenes(scratch, train=1, val=2, size=1024, seed=0)
            time.sleep(2.1)  # what has only just been written is not kept
            folder = scratch / "Val"
        infos = list(entries(folder))
        stock, ours = Side(scratch, fast=False), Side(scratch, fast=True)
        ours.model.load_state_dict(stock.model.state_dict())
        draws = torch.Generator().manual_seed(0)
        logits = [torch.randn(1, 8, 256, 256, generator=draws) for _ in range(8)]
        labels = [torch.randint(0, 8, (1, 1024, 1024), generator=draws, dtype=torch.uint8) for _ in logits]
        for label in labels:
            label[:, :64] = 255
        with quick_prediction(ours.model):
            check_equal(stock.judge(logits, labels), ours.judge(logits, labels))

            def row(what: str, work: str, *given: Sequence[Any]) -> Row:
                measures = [
                    partial(cpu_ms, partial(getattr(side, work), *given), per=len(given[0]))
                    for side in (stock, ours)
                ]
                figures = by_turns(*measures, turns=arguments.turns)
                return Row(what=what, unit="ms of one core", stock=figures[0], ours=figures[1], goal=2.0)

            rows = [
                row("loading an image and its mask, decoded before", "images", infos),
                row("from equal logits to equal counts", "judge", logits, labels),
            ]
        alone = [Apart(whole, scratch, infos, fast) for fast in (False, True)]
        measures = [lambda side=side: 1000 * side()[1] / len(infos) for side in alone]
        figures = by_turns(*measures, turns=arguments.turns)
        for side in alone:
            side.end()
        rows.append(
            Row(
                what="an image as a whole, SegFormer-B2", unit="ms of one core", stock=figures[0],
                ours=figures[1], goal=2.0,
            )
        )  # fmt: skip
        what = "generated scenes" if arguments.data is None else f"{len(infos)} images of {folder.name}"
        show(f"Validation, {what}, 1024 × 1024, float32", rows, file=arguments.json)


if __name__ == "__main__":
    main()
