"""Images are read and prepared as a config's test pipeline says, by several threads."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from mmcv.transforms import BaseTransform
from mmengine.registry import TRANSFORMS, init_default_scope
from support.models import DEMO

from mapsage_kaggle.config.patch import for_inference
from mapsage_kaggle.config.reading import read_config
from mapsage_kaggle.engine.jobs.preparing import TestPipeline
from mapsage_kaggle.imagery.reading import Pixels


@pytest.mark.parametrize(("module", "own"), [("mapsage_mine", True), ("mapsage_kaggle.engine.own", False)])
def test_a_person_s_own_transform_may_change_the_channels_whatever_its_name(
    module: str, own: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    init_default_scope("mmseg")
    kind = type("Stacking", (BaseTransform,), {"__module__": module, "transform": lambda self, found: found})
    monkeypatch.setitem(TRANSFORMS.module_dict, "Stacking", kind)
    cfg = for_inference(read_config(DEMO), {})
    cfg.test_dataloader.dataset.pipeline = [
        {"type": "LoadImageFromFile"}, {"type": "Stacking"}, {"type": "PackSegInputs"}
    ]  # fmt: skip
    assert TestPipeline(cfg).transforms_channels is own


def test_two_threads_share_no_state_of_a_transform(monkeypatch: pytest.MonkeyPatch) -> None:
    init_default_scope("mmseg")
    both = threading.Barrier(2, timeout=60)

    class Noting(BaseTransform):  # type: ignore[misc]
        def transform(self, results: dict[str, Any]) -> dict[str, Any]:
            self.img = results["img"]
            both.wait()
            return {**results, "img": self.img}

    monkeypatch.setitem(TRANSFORMS.module_dict, "Noting", Noting)
    cfg = for_inference(read_config(DEMO), {})
    cfg.test_dataloader.dataset.pipeline = [
        {"type": "LoadImageFromFile"}, {"type": "Noting"}, {"type": "PackSegInputs"}
    ]  # fmt: skip
    prepare = TestPipeline(cfg)
    images = [Pixels(rgb=np.full((4, 4, 3), value, np.uint8), valid=None) for value in (1, 2)]
    with ThreadPoolExecutor(2) as threads:
        found = [int(inputs.max()) for inputs, _ in threads.map(prepare, images)]
    assert found == [1, 2]
