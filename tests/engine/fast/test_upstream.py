"""mmsegmentation's own tests of the parts that the kit stands in for pass where they pass against stock.

They come from a checkout of mmsegmentation or its sdist: ``pytest --mmsegmentation DIR``.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

OF_STOOD_IN_PARTS = (
    "tests/test_models/test_backbones/test_mit.py",
    "tests/test_models/test_heads/test_segformer_head.py",
    "tests/test_evaluation/test_metrics/test_iou_metric.py",
)


@pytest.mark.slow
@pytest.mark.parametrize("file", OF_STOOD_IN_PARTS)
def test_mmsegmentation_s_own_tests_pass_against_the_stand_ins(
    file: str, pytestconfig: pytest.Config, tmp_path: Path
) -> None:
    checkout = pytestconfig.getoption("--mmsegmentation")
    if checkout is None:
        pytest.skip("no checkout of mmsegmentation is named (--mmsegmentation DIR)")
    stock = _outcome(checkout / file, tmp_path)
    if stock != 0:
        pytest.skip(f"{file} does not pass against stock here (pytest's exit code {stock})")
    assert _outcome(checkout / file, tmp_path, "-p", "support.stand_ins") == 0


def _outcome(file: Path, folder: Path, *more: str) -> int:
    tests = Path(__file__).parents[2]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (tests, tests.parent)))}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-c", os.devnull, *more]
    return subprocess.run([*command, file.resolve()], env=env, cwd=folder, check=False).returncode
