"""The maps' notebook: with a run's output attached, it makes a submission, or maps of one's own images."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import nbformat
import numpy as np
import pytest
import torch
from PIL import Image
from support import warm
from support.models import balance, fill
from support.notebooks import MAPS, ROOT, code_cells, write_kernel

from mapsage_kaggle import maps
from mapsage_kaggle.checkpoints.manifest import file_sha256
from mapsage_kaggle.config.patch import for_inference
from mapsage_kaggle.config.reading import read_config
from mapsage_kaggle.data.scenes import draw_scene, generate_scenes
from mapsage_kaggle.engine.jobs.inference import build_model
from mapsage_kaggle.errors import CheckpointError, DataError
from mapsage_kaggle.notebook import maps as cells
from mapsage_kaggle.records import CheckpointRef, SessionRecord

pytestmark = pytest.mark.slow(scope_s=150)
OVERRIDES = [
    "model.backbone.embed_dims=8",
    "model.decode_head.in_channels=[8,16,32,48]",
    "model.decode_head.channels=16",
    "model.decode_head.loss_decode.avg_non_ignore=True",
]
CHECKPOINT = "best_mIoU_iter_8.pth"


@pytest.fixture(scope="module")
def weights() -> dict[str, Any]:
    net = build_model(for_inference(read_config(ROOT / "configs" / "demo.py", OVERRIDES), {}))
    fill(net)
    balance(net)
    return {"meta": {"iter": 8}, "state_dict": net.state_dict(), "message_hub": {}}


@pytest.fixture
def root(tmp_path: Path, weights: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder that stands for ``/kaggle``, with a session's output and a data set attached."""
    output = tmp_path / "input" / "notebooks" / "me" / "training" / "work_dirs" / "demo"
    for folder in (output, tmp_path / "working", tmp_path / "temp"):
        folder.mkdir(parents=True)
    torch.save(weights, output / CHECKPOINT)
    best = CheckpointRef(
        file=CHECKPOINT, iteration=8, metric="mIoU", value=0.5, sha256=file_sha256(output / CHECKPOINT),
        size_bytes=(output / CHECKPOINT).stat().st_size,
    )  # fmt: skip
    known = {"run_id": "abc123", "fingerprint": "f00d", "stop_reason": "completed"}
    SessionRecord(**known, end_iteration=8, max_iters=8, best=best).write(output / "session.json")
    monkeypatch.setenv("MAPSAGE_KAGGLE_ROOT", str(tmp_path))
    return tmp_path


def test_a_batch_run_makes_a_submission_and_hands_the_model_on(root: Path) -> None:
    generate_scenes(root / "input" / "scenes", train=1, val=1, size=128, seed=1, test=5)
    write_kernel(root / "jupyter", warm.python())
    environ = {"KAGGLE_KERNEL_RUN_TYPE": "Batch", "JUPYTER_PATH": str(root / "jupyter")}
    environ |= {"IPYTHONDIR": str(root / "jupyter" / "ipython"), "PYTHONPATH": str(ROOT)}
    parameters = root / "parameters.json"
    parameters.write_text(json.dumps({"CONFIG": "demo.py", "OVERRIDES": OVERRIDES, "LANGUAGE": "zh"}))
    saved = root / "working" / "__notebook__.ipynb"

    done = subprocess.run(
        [sys.executable, "-m", "papermill", "--no-progress-bar", "-f", parameters, MAPS, saved],
        env={**os.environ, **environ}, cwd=root / "working", capture_output=True, text=True, check=False,
    )  # fmt: skip

    assert done.returncode == 0, done.stderr
    outputs = [out for cell in code_cells(nbformat.read(saved, as_version=4)) for out in cell.outputs]
    panels = [out.data for out in outputs if "data" in out and "text/html" in out.data]
    texts = "\n".join(panel["text/plain"] for panel in panels)
    assert "按任务自己的记录，这是该任务中最好的" in texts and CHECKPOINT in texts
    assert sum(panel["text/html"].count("data:image/png") for panel in panels) == cells.NUM_SHOWN
    assert "submission.zip：5 个掩码" in texts
    working = root / "working"
    with zipfile.ZipFile(working / "submission.zip") as archive:
        assert archive.namelist() == [f"{number}.png" for number in range(5)]
    exported = {path.name for path in (working / "export").iterdir()}
    assert exported >= {"README.md", "model.safetensors", "model.onnx", "model.pt2"}
    assert {path.name for path in working.iterdir()} == {"__notebook__.ipynb", "submission.zip", "export"}


def test_maps_of_attached_images_are_files_and_a_damaged_image_stops_none(
    root: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    images = root / "input" / "datasets" / "me" / "city"
    images.mkdir(parents=True)
    for number in range(3):
        Image.fromarray(draw_scene(96, (number,))[0]).save(images / f"{number}.png")
    (images / "damaged.png").write_bytes(b"no image")
    session = maps("demo.py", images="me/city", polygons=True, overrides=OVERRIDES)

    session.predict()
    session.check()
    session.export(False)

    told = capsys.readouterr().out
    assert "3 images done, 1 refused." in told and "damaged.png" in told
    assert "None: IMAGES names images of your own." in told and "EXPORT is False" in told
    out = root / "working" / "maps"
    assert {path.name for path in out.iterdir()} == {"masks", "polygons", "predictions.jsonl"}
    assert sorted(path.name for path in (out / "polygons").iterdir()) == ["0.gpkg", "1.gpkg", "2.gpkg"]
    shown = np.asarray(Image.open(out / "masks" / "0.png").convert("RGB"))
    assert len(np.unique(shown.reshape(-1, 3), axis=0)) > 1

    monkeypatch.setattr(cells, "MAX_FILES", 5)
    session.predict()

    assert "3 images done" in capsys.readouterr().out
    assert sorted(path.name for path in out.iterdir()) == ["masks.zip", "polygons.zip", "predictions.jsonl"]
    with zipfile.ZipFile(out / "masks.zip") as archive:
        assert {"0.png", "0.png.aux.xml", "2.png"} <= set(archive.namelist())


def test_images_that_are_not_attached_are_refused_with_what_to_do(root: Path) -> None:
    with pytest.raises(DataError, match="没有图像，也没有这个名字的输入"):
        maps("demo.py", images="me/absent", overrides=OVERRIDES, language="zh")


def test_without_a_checkpoint_nothing_is_begun(root: Path) -> None:
    (root / "input" / "pictures").mkdir()
    (root / "input" / "notebooks" / "me" / "training" / "work_dirs" / "demo" / CHECKPOINT).unlink()

    with pytest.raises(CheckpointError, match="There is no checkpoint"):
        maps("demo.py", images="pictures", overrides=OVERRIDES)


def test_a_submission_of_an_incomplete_split_is_shown_in_red_and_not_kept(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    generate_scenes(root / "input" / "scenes", train=1, val=1, size=128, seed=1, test=2)
    next((root / "input" / "scenes" / "Test" / "images_png").iterdir()).write_bytes(b"damaged")
    session = maps("demo.py", overrides=OVERRIDES)

    session.predict()
    session.check()

    told = capsys.readouterr().out
    assert "missing" in told and "is not complete" in told
    assert not (root / "working" / "submission.zip").exists()
