"""The command `predict`, in processes of its own: its exit codes, what it says, and a kill."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support import warm
from support.disks import limited_files
from support.small_maps import (
    DEMO,
    contents,
    mask,
    save_tiff,
    scene,
    write_weights,
    written_config,
)

import mapsage_kaggle.engine.register  # noqa: F401
from mapsage_kaggle.cli import main
from mapsage_kaggle.data.scenes import generate_scenes
from mapsage_kaggle.errors import EXIT_DONE, EXIT_MACHINE, EXIT_USAGE
from mapsage_kaggle.imagery.sources import JOURNAL, LOCK


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_weights(tmp_path_factory.mktemp("weights"))


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "kaggle"
    for name in ("input", "working", "temp"):
        (folder / name).mkdir(parents=True)
    monkeypatch.setenv("MAPSAGE_KAGGLE_ROOT", str(folder))
    return folder


def test_annotations_where_maps_would_go_are_left_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for kind in ("images", "masks"):
        (tmp_path / kind).mkdir()
        Image.fromarray(scene(64, 64)).save(tmp_path / kind / "0001.png")
    before = contents(tmp_path)

    code = main(["predict", str(DEMO), "none.pth", str(tmp_path / "images"), "--out", str(tmp_path)])

    assert code == EXIT_USAGE
    assert f"{tmp_path}/masks holds files that are no maps" in capsys.readouterr().err
    assert contents(tmp_path) == before and not (tmp_path / LOCK).exists()


@pytest.mark.slow(scope_s=45)
def test_a_submission_holds_each_test_image_in_values_of_the_benchmark(
    tmp_path: Path, root: Path, weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    generate_scenes(root / "input" / "scenes", train=1, val=1, size=128, seed=1, test=5)
    command = ["predict", str(written_config(tmp_path)), str(weights), "--submission", "--device", "cpu"]

    code = main([*command, "--out", str(tmp_path / "out")])

    assert code == EXIT_DONE, capsys.readouterr().err
    assert "submission.zip: complete" in capsys.readouterr().out
    with zipfile.ZipFile(tmp_path / "out" / "submission.zip") as archive:
        assert archive.namelist() == [f"{number}.png" for number in range(5)]
        with archive.open("0.png") as stream:
            values = np.unique(np.asarray(Image.open(stream)))
    assert values.min() >= 1 and values.max() <= 8

    images = root / "input" / "scenes" / "Test" / "images_png"
    (images / "2.png").write_bytes(b"damaged")
    code = main([*command, "--out", str(tmp_path / "out")])

    assert code == EXIT_USAGE
    assert "2.png: missing" in capsys.readouterr().err
    assert not (tmp_path / "out" / "submission.zip").exists()


@pytest.mark.slow
def test_json_says_what_was_done_refused_and_left_out(
    tmp_path: Path, root: Path, weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    name = os.fsdecode(b"caf\xe9")  # no UTF-8
    Image.fromarray(scene(64, 64)).save(folder / f"{name}.png")
    (folder / "bad.png").write_bytes(b"no image")
    (folder / "notes.txt").write_text("no image either")
    given = [written_config(tmp_path), weights, folder, "--out", folder / "maps", "--device", "cpu", "--json"]

    code = main(["predict", *map(str, given)])

    found = json.loads(capsys.readouterr().out)
    assert code == EXIT_USAGE
    assert found["files"] == {name: str(folder / "maps" / "masks" / f"{name}.png")}
    assert (found["num_done"], found["num_pixels"]) == (1, 64 * 64)
    assert [item["path"] for item in found["refused"]] == [str(folder / "bad.png")]
    assert found["skipped"] == [f"Of {folder}, files of other kinds were left out: .txt (1)."]


@pytest.mark.slow
def test_a_full_disk_ends_the_command_with_4_and_the_same_command_finishes(
    tmp_path: Path, root: Path, weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    noise = np.random.RandomState(0).randint(0, 256, (256, 256, 3)).astype(np.uint8)
    Image.fromarray(noise).save(tmp_path / "image.png")
    given = [
        written_config(tmp_path),
        weights,
        tmp_path / "image.png",
        "--out",
        tmp_path / "maps",
        "--overlay",
    ]
    command = ["predict", *map(str, given), "--device", "cpu"]

    with limited_files(100_000):  # of which the overlay is the only one
        full = main(command)
    said = capsys.readouterr().err

    assert full == EXIT_MACHINE
    assert f"{tmp_path}/maps/overlays/image.png could not be written: File too large. The disk at /" in said
    assert main(command) == EXIT_DONE
    assert mask(tmp_path / "maps" / "overlays" / "image.png").shape == (256, 256, 3)


@pytest.mark.slow
def test_a_command_that_was_killed_goes_on_and_ends_as_if_it_had_not_been(
    tmp_path: Path, root: Path, weights: Path
) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    for number in range(4):
        Image.fromarray(scene(256, 256, number)).save(folder / f"a{number}.png")
    save_tiff(folder / "scene.tif", np.tile(scene(512, 512), (4, 1, 1)), nodata=0)
    config_file = written_config(tmp_path)

    def command(out: Path, python: str = sys.executable) -> list[str]:
        given = ["predict", config_file, weights, folder, "--out", out, "--window", "256", "--device", "cpu"]
        given += ["--threads", "1"]
        return [python, "-m", "mapsage_kaggle", *map(str, given)]

    subprocess.run(command(tmp_path / "whole", warm.python()), check=True, capture_output=True)
    cut = tmp_path / "cut"
    for least in (0, 3):
        process = subprocess.Popen(command(cut), start_new_session=True, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 120
        while len(list(cut.glob("unfinished/*/row_*.mask"))) <= least and process.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        assert not (cut / "masks" / "scene.tif").exists()
    subprocess.run(command(cut, warm.python()), check=True, capture_output=True)

    assert contents(cut) == contents(tmp_path / "whole")
    names = [json.loads(line)["name"] for line in (cut / JOURNAL).read_text().splitlines()]
    assert sorted(names) == ["a0", "a1", "a2", "a3", "scene"]


@pytest.mark.soak
def test_memory_does_not_grow_with_a_scenes_height(tmp_path: Path, root: Path, weights: Path) -> None:
    # Mostly without data, which costs no model. The smaller one fills GDAL's cache, 64 MB, as well.
    strip = np.zeros((12_000, 600, 3), np.uint8)
    strip[:600] = scene(600, 600)
    peaks = []
    for times in (3, 6):
        rgb = np.tile(strip, (times, 1, 1))
        image = save_tiff(tmp_path / f"{times}.tif", rgb, compress="deflate", nodata=0)
        code = (
            "import sys; from pathlib import Path; from mapsage_kaggle.jobs.subject import ModelOptions; "
            "from mapsage_kaggle.jobs.predict import PredictOptions, predict; "
            "a = list(map(Path, sys.argv[1:])); "
            "m = ModelOptions(config=a[0], checkpoint=a[1], device='cpu', threads=1); "
            "o = PredictOptions(out=a[3], images=(a[2],), window=256, overlay=True); "
            "print(predict(m, o).peak_memory_bytes)"
        )
        given = [written_config(tmp_path), weights, image, tmp_path / f"out_{times}"]
        answer = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", code, *map(str, given)],
            check=True, capture_output=True, text=True,
        )  # fmt: skip
        peaks.append(int(answer.stdout.split()[-1]))

    # Held whole, 36,000 more lines of RGB, overlay and mask would take 151 MB.
    assert peaks[1] - peaks[0] < 50e6
