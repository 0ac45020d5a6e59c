"""mmsegmentation's own tests of the parts that the kit stands in for pass where they pass against stock.

They come from a checkout of mmsegmentation: ``pytest --mmsegmentation DIR``. Its sdist has none of them.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

OF_STOOD_IN_PARTS = (
    "test_datasets/test_loading.py",
    "test_evaluation/test_metrics/test_iou_metric.py",
    "test_models/test_backbones/test_mit.py",
    "test_models/test_heads/test_decode_head.py",
    "test_models/test_heads/test_psp_head.py",
    "test_models/test_heads/test_segformer_head.py",
    "test_models/test_heads/test_uper_head.py",
    "test_models/test_losses/test_cross_entropy_loss.py",
    "test_models/test_segmentors/test_cascade_encoder_decoder.py",
    "test_models/test_segmentors/test_encoder_decoder.py",
    "test_models/test_segmentors/test_seg_tta_model.py",
)


@pytest.mark.slow
def test_mmsegmentation_s_own_tests_pass_against_the_stand_ins(
    pytestconfig: pytest.Config, tmp_path: Path
) -> None:
    checkout = pytestconfig.getoption("--mmsegmentation")
    if checkout is None:
        pytest.skip("no checkout of mmsegmentation is named (--mmsegmentation DIR)")
    files = [file for name in OF_STOOD_IN_PARTS if (file := checkout.resolve() / "tests" / name).is_file()]
    if not files:
        pytest.skip(f"{checkout} has none of mmsegmentation's tests; its sdist leaves them out")
    stock = _passed(files, tmp_path)
    assert stock, "none passes against stock"
    assert stock - _passed(files, tmp_path, "-p", "support.stand_ins") == set()


def _passed(files: list[Path], folder: Path, *more: str) -> set[str]:
    tests = Path(__file__).parents[2]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (tests, tests.parent)))}
    options = ["-q", "-rA", "-p", "no:cacheprovider", "-c", os.devnull, *more]
    command = [sys.executable, "-m", "pytest", *options, *map(str, files)]
    done = subprocess.run(command, env=env, cwd=folder, check=False, capture_output=True, text=True)
    print(done.stdout, done.stderr)
    return set(re.findall(r"^PASSED (\S+)", done.stdout, re.MULTILINE))
