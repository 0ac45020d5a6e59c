"""A model that is handed on gives, in every form and without this kit, what its checkpoint gives."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmseg.models.utils import Upsample, resize
from numpy.typing import NDArray
from PIL import Image
from support.models import balance, fill

from mapsage_kaggle import cli
from mapsage_kaggle.config.patch import for_inference
from mapsage_kaggle.config.reading import read_config
from mapsage_kaggle.engine.jobs.inference import TrainedModel, build_model, load_model
from mapsage_kaggle.errors import EXIT_CHECKPOINT, EXIT_DONE, EXIT_INTERRUPTED, EXIT_USAGE, JobError
from mapsage_kaggle.jobs.licences import licence_of
from mapsage_kaggle.records import SessionRecord

ROOT = Path(__file__).resolve().parents[2]
SMALL = (
    "model.backbone.embed_dims=8",
    "model.decode_head.in_channels=[8,16,32,48]",
    "model.decode_head.channels=16",
    "model.decode_head.loss_decode.avg_non_ignore=True",
)
TOLERANCE = 1e-4


def small_config() -> Config:
    return for_inference(read_config(ROOT / "configs" / "demo.py", list(SMALL)), {})


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A work dir as a session leaves it: weights, a record, and an image to look at."""
    folder = tmp_path_factory.mktemp("run")
    net = build_model(small_config())
    fill(net)
    balance(net)
    hub = {"runtime_info": {"mapsage_scale": {"factor": 2.0, "low": 1.0, "high": 4.0}}}
    torch.save(
        {"meta": {"iter": 8}, "state_dict": net.state_dict(), "message_hub": hub},
        folder / "best_mIoU_iter_8.pth",
    )
    SessionRecord(
        run_id="abc123", fingerprint="f00d", end_iteration=8, max_iters=8, stop_reason="completed"
    ).write(folder / "session.json")
    noise = np.random.RandomState(1).randint(0, 256, (5, 4, 3)).astype(np.uint8)
    Image.fromarray(noise).resize((165, 203), Image.Resampling.BICUBIC).save(folder / "tile.png")
    return folder


def export(run: Path, out: Path, *more: str) -> int:
    sets = [word for item in SMALL for word in ("--set", item)]
    arguments = ["export", str(ROOT / "configs" / "demo.py"), str(run / "best_mIoU_iter_8.pth")]
    return cli.main([*arguments, "--out", str(out), "--threads", "1", *sets, *more])


@pytest.fixture(scope="module")
def out(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of one whole export by the command."""
    out = tmp_path_factory.mktemp("hand-over") / "export"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MAPSAGE_KAGGLE_ROOT", str(run / "kaggle"))
        more = ("--images", str(run / "tile.png"), "--licence", "CC BY-NC-SA 4.0", "--owner", "alice")
        assert export(run, out, *more) == EXIT_DONE
    return out


@pytest.fixture(scope="module")
def model(run: Path) -> TrainedModel:
    return load_model(small_config(), run / "best_mIoU_iter_8.pth", device="cpu")


def picture(height: int, width: int, seed: int = 2) -> NDArray[np.uint8]:
    return np.random.RandomState(seed).randint(0, 256, (height, width, 3)).astype(np.uint8)


def expected(model: TrainedModel, rgb: NDArray[np.uint8]) -> torch.Tensor:
    """Return the checkpoint's logits, from the image as mmsegmentation reads it: blue first."""
    bgr = np.ascontiguousarray(rgb[..., ::-1].transpose(2, 0, 1))
    return model.logits(torch.from_numpy(bgr)[None], windows=None)


def as_input(rgb: NDArray[np.uint8]) -> NDArray[np.float32]:
    return np.ascontiguousarray(rgb.transpose(2, 0, 1)[None], dtype=np.float32)


def distance(found: Any, logits: torch.Tensor) -> float:
    return float((torch.as_tensor(found) - logits).abs().max() / logits.abs().max())


@pytest.mark.slow(scope_s=150)
@pytest.mark.parametrize("size", [(64, 64), (203, 165), (77, 256)])
def test_onnx_gives_the_checkpoints_logits_at_any_size_under_onnxruntime(
    out: Path, model: TrainedModel, size: tuple[int, int]
) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    session = onnxruntime.InferenceSession(str(out / "model.onnx"), providers=["CPUExecutionProvider"])
    two = [picture(*size, seed=seed) for seed in (2, 3)]

    found = session.run(["logits"], {"image": np.concatenate([as_input(rgb) for rgb in two])})[0]

    for logits, rgb in zip(found, two, strict=True):
        assert distance(logits[None], expected(model, rgb)) < TOLERANCE
    assert session.get_inputs()[0].shape == ["batch", 3, "height", "width"]
    assert len(np.unique(found.argmax(1))) > 1


@pytest.mark.slow
@pytest.mark.parametrize("size", [(64, 64), (203, 165)])
def test_the_exported_program_gives_the_checkpoints_logits_at_any_size(
    out: Path, model: TrainedModel, size: tuple[int, int]
) -> None:
    rgb = picture(*size)
    with torch.no_grad():
        found = torch.export.load(out / "model.pt2").module()(torch.from_numpy(as_input(rgb)))

    assert distance(found, expected(model, rgb)) < TOLERANCE


@pytest.mark.slow
def test_the_weights_and_the_config_make_the_model_without_the_kit(out: Path, model: TrainedModel) -> None:
    from mmseg.registry import MODELS
    from safetensors.torch import load_file

    net = MODELS.build(Config.fromfile(out / "config.py").model).eval()
    weights = load_file(out / "model.safetensors")
    net.load_state_dict(weights, strict=False)

    assert all(torch.equal(weights[name], value) for name, value in model.net.state_dict().items())
    assert all(torch.equal(weights[name], value) for name, value in net.state_dict().items())
    assert not any(str(path) in (out / "config.py").read_text() for path in (ROOT, Path.home()))


@pytest.mark.slow
def test_the_cards_code_runs_as_it_stands_without_the_kit_and_makes_the_kits_mask(
    out: Path, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MAPSAGE_KAGGLE_ROOT", str(tmp_path / "kaggle"))
    blocks = re.findall(r"```python\n(.*?)```", (out / "README.md").read_text(), re.S)
    libraries = ("mmseg", "onnxruntime", "torch.export")
    assert [[name in block for name in libraries] for block in blocks] == np.eye(3, dtype=bool).tolist()
    shutil.copytree(out, tmp_path, dirs_exist_ok=True)
    shutil.copy(run / "tile.png", tmp_path)
    config, checkpoint = ROOT / "configs" / "demo.py", run / "best_mIoU_iter_8.pth"
    sets = [word for item in SMALL for word in ("--set", item)]
    arguments = ["predict", config, checkpoint, tmp_path / "tile.png", "--out", tmp_path / "maps"]
    arguments = [*map(str, arguments), "--device", "cpu", *sets]
    assert cli.main(arguments) == EXIT_DONE
    expected = mask(tmp_path / "maps" / "masks" / "tile.png")
    assert len(np.unique(expected)) > 2

    for block in blocks:
        (tmp_path / "mask.png").unlink(missing_ok=True)
        (tmp_path / "block.py").write_text(block)
        code = "import runpy, sys; sys.modules['mapsage_kaggle'] = None; runpy.run_path('block.py')"
        done = subprocess.run(
            [sys.executable, "-I", "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        assert (mask(tmp_path / "mask.png") == expected).mean() > 0.999


def mask(path: Path) -> NDArray[Any]:
    with Image.open(path) as picture:
        return np.asarray(picture)


@pytest.mark.slow
def test_every_file_can_be_read_by_others(out: Path) -> None:
    probe = out.parent / "probe"
    probe.touch()
    assert {file.stat().st_mode for file in out.iterdir()} == {probe.stat().st_mode}


def test_without_the_data_set_there_is_no_validation_image() -> None:
    from mapsage_kaggle.engine.jobs import export as forms

    assert forms._validation_images(small_config()) == []


def test_the_config_that_is_handed_on_reads_images_and_names_nothing_of_the_kit() -> None:
    from mapsage_kaggle.engine.jobs import export as forms

    cfg = small_config()
    assert "mapsage_kaggle" in cfg.pretty_text
    cfg.custom_imports.imports.append("own_model")
    found = forms.portable_config(cfg)

    assert [step["type"] for step in found.test_pipeline] == ["LoadImageFromFile", "Resize", "PackSegInputs"]
    assert found.custom_imports.imports == ["own_model"]
    assert "mapsage_kaggle" not in found.pretty_text


@pytest.mark.parametrize(
    ("text", "identifier", "kaggle"),
    [
        ("CC BY-NC-SA 4.0", "cc-by-nc-sa-4.0", "CC BY-NC-SA 4.0"),
        ("cc-by-nc-4.0", "cc-by-nc-4.0", "Attribution-NonCommercial 4.0 International (CC BY-NC 4.0)"),
        ("GPL-3.0-only", "gpl-3.0", "GPL 3"),
        ("Apache-2.0", "apache-2.0", "Apache 2.0"),
        ("Other", "other", None),
        ("my own", "other", None),
    ],
)
def test_a_licence_is_told_by_its_identifier_or_name(text: str, identifier: str, kaggle: str | None) -> None:
    found = licence_of(text)

    assert (found.identifier, found.kaggle) == (identifier, kaggle)


@pytest.mark.slow
def test_the_sums_cover_every_file(out: Path) -> None:
    checked = subprocess.run(
        ["sha256sum", "--check", "--strict", "SHA256SUMS"], cwd=out, capture_output=True, text=True
    )

    assert checked.returncode == 0, checked.stdout
    named = {line.split()[1] for line in (out / "SHA256SUMS").read_text().splitlines()}
    assert named | {"SHA256SUMS"} == {file.name for file in out.iterdir()}


@pytest.mark.slow
def test_the_card_tells_how_near_each_form_is_and_where_the_model_comes_from(out: Path, run: Path) -> None:
    text = (out / "README.md").read_text()
    assert "In training it saw images at 2 times their own size (1 to 4 times)" in text

    for name in ("model.safetensors", "model.onnx", "model.pt2"):
        assert f"| `{name}` |" in text
    for word in (
        "license: cc-by-nc-sa-4.0\n",
        "CC BY-NC-SA 4.0",
        "abc123",
        "tile.png",
        "256 × 208",
        "playground",
        "completed",
    ):
        assert word in text
    assert str(run) not in text


@pytest.mark.slow
def test_kaggles_own_client_takes_the_metadata(out: Path) -> None:
    enums = pytest.importorskip("kagglesdk.models.types.model_enums")
    model = json.loads((out / "model-metadata.json").read_text())
    instance = json.loads((out / "model-instance-metadata.json").read_text())

    assert model["ownerSlug"] == instance["ownerSlug"] == "alice"
    assert model["slug"] == instance["modelSlug"]
    assert model["isPrivate"] is True and model["title"] and model["description"]
    assert instance["licenseName"] == "CC BY-NC-SA 4.0"
    assert model["description"].startswith("# Mapsage segformer\n")  # Kaggle shows a card's head as text
    assert instance["usage"].startswith("Input `image`") and "## " not in instance["usage"].split("### ")[0]
    names = {name.rpartition("FRAMEWORK_")[2].replace("_", "") for name in enums.ModelFramework.__members__}
    assert instance["framework"].upper() in names


def test_a_folder_with_something_in_it_is_left_alone(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MAPSAGE_KAGGLE_ROOT", str(tmp_path / "kaggle"))
    (tmp_path / "mine.txt").write_text("mine")

    assert export(run, tmp_path) == EXIT_USAGE
    assert f"{tmp_path} is there already" in capsys.readouterr().err
    assert (tmp_path / "mine.txt").read_text() == "mine"


def test_a_folder_that_cannot_be_made_is_told(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MAPSAGE_KAGGLE_ROOT", str(tmp_path / "kaggle"))
    (tmp_path / "mine.txt").write_text("mine")

    assert export(run, tmp_path / "mine.txt" / "out") == EXIT_USAGE
    assert "out could not be written: Not a directory" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (("--slug", "My Model"), "no name that Kaggle takes"),
        (("--images", "gone.png"), "There is no image at gone.png"),
        (("--licence", " "), "The licence is empty"),
    ],
)
def test_a_wrong_option_is_told_before_anything_runs(
    run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    more: tuple[str, ...],
    told: str,
) -> None:
    monkeypatch.setenv("MAPSAGE_KAGGLE_ROOT", str(tmp_path / "kaggle"))

    assert export(run, tmp_path / "out", *more) == EXIT_USAGE
    assert told in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_harmful_checkpoint_is_not_exported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MAPSAGE_KAGGLE_ROOT", str(tmp_path / "kaggle"))
    (tmp_path / "best_mIoU_iter_8.pth").write_bytes(b"not a checkpoint")

    assert export(tmp_path, tmp_path / "out") == EXIT_CHECKPOINT
    assert "rejected" in capsys.readouterr().err
    assert list(tmp_path.glob("out*")) == []


def job_of(run: Path, folder: Path, *forms: str) -> dict[str, Any]:
    """Return the document of an export into a folder, as its child gets it."""
    config = folder / "config.py"
    config.write_text(small_config().pretty_text)
    return {
        "config": str(config),
        "checkpoint": str(run / "best_mIoU_iter_8.pth"),
        "sha256": None,
        "out": str(folder),
        "forms": list(forms),
        "images": [str(run / "tile.png")],
    }


def test_a_form_that_strays_from_the_original_is_left_out_and_named(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mapsage_kaggle.engine.jobs import export as forms

    def stray(portable: torch.nn.Module, size: Any, file: Path) -> forms.Logits:
        file.write_bytes(b"a program")
        return lambda image: portable(image) + 0.01

    monkeypatch.setattr(forms, "_program", stray)
    job = job_of(run, tmp_path, "safetensors", "torch")

    found = forms.run(job, lambda event, **data: None)

    assert [file["name"] for file in found["files"]] == ["model.safetensors"]
    assert [item["name"] for item in found["failed"]] == ["model.pt2"]
    assert "differ" in found["failed"][0]["reason"]
    assert not (tmp_path / "model.pt2").exists()


def test_a_form_whose_near_logits_make_other_classes_does_not_hold() -> None:
    from mapsage_kaggle.engine.jobs import export as forms

    tile = torch.zeros(1, 3, 64, 64)
    logits = torch.stack([torch.zeros(1, 64, 64), torch.full((1, 64, 64), 1e-5)], dim=1)
    with pytest.raises(JobError, match=r"100\.0 % of the pixels another class"):
        forms._compare(lambda image: logits.flip(1), [tile], [logits], lambda found: found.argmax(1))


@pytest.mark.parametrize("wrong", [1e6, float("nan")])
def test_a_form_that_strays_on_a_batch_alone_does_not_hold(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wrong: float
) -> None:
    from mapsage_kaggle.engine.jobs import export as forms

    def stray(net: Any, cfg: Config, file: Path) -> forms.Logits:
        portable = forms.Portable(net).eval()
        return lambda image: portable(image).detach() + (wrong if len(image) > 1 else 0.0)

    monkeypatch.setattr(forms, "_safetensors", stray)
    job = job_of(run, tmp_path, "safetensors")
    with pytest.raises(JobError, match="its logits differ by up to"):
        forms.run(job, lambda event, **data: None)


def test_one_channel_is_compared_by_the_threshold_of_the_model() -> None:
    from mapsage_kaggle.engine.jobs import export as forms

    head = SimpleNamespace(threshold=0.3)
    model: Any = SimpleNamespace(num_channels=1, net=SimpleNamespace(decode_head=head))
    at = float(torch.logit(torch.tensor(0.3)))
    logits = torch.full((1, 1, 64, 64), at + 1e-4)
    with pytest.raises(JobError, match=r"100\.0 % of the pixels another class"):
        forms._compare(
            lambda image: logits - 2e-4,
            [torch.zeros(1, 3, 64, 64)],
            [logits],
            lambda found: TrainedModel.labels(model, found),
        )


@pytest.mark.parametrize(
    ("picture", "window", "sizes"),
    [
        ((128, 128), None, [(128, 128), (77, 91)]),
        ((128, 128), (64, 64), [(64, 64), (96, 128)]),  # below 64 pixels nothing is compared
        ((1024, 1024), (512, 512), [(512, 512), (317, 379)]),
        ((1024, 2048), None, [(1024, 2048), (637, 1531)]),
        ((100, 100), None, [(100, 100), (150, 200)]),  # nothing smaller is left: the image is continued
    ],
)
def test_forms_are_compared_at_the_size_that_is_asked_and_another(
    picture: tuple[int, int], window: Any, sizes: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    from mapsage_kaggle.engine.jobs import export as forms

    monkeypatch.setattr(forms, "_original", lambda model, tile: tile)
    windows = None if window is None else SimpleNamespace(size=window)
    model: Any = SimpleNamespace(net=SimpleNamespace(data_preprocessor=None), windows=windows)
    tiles, *others = forms._tiles(model, [torch.zeros(3, *picture)], ["tile.png"])
    assert [tuple(tile.shape[2:]) for tile in tiles] == sizes
    assert others == [1, None]


def test_a_model_of_one_size_alone_is_compared_at_that_one(monkeypatch: pytest.MonkeyPatch) -> None:
    from mapsage_kaggle.engine.jobs import export as forms

    def original(model: Any, tile: torch.Tensor) -> torch.Tensor:
        if tile.shape[2:] != (128, 128):
            raise RuntimeError("The size of tensor a (17) must match the size of tensor b (65)")
        return tile

    monkeypatch.setattr(forms, "_original", original)
    model: Any = SimpleNamespace(
        net=SimpleNamespace(data_preprocessor=None), windows=SimpleNamespace(size=(128, 128))
    )
    pictures = [torch.zeros(3, 300, 200), torch.ones(3, 128, 128), torch.ones(3, 100, 400)]
    tiles, *others = forms._tiles(model, pictures, ["a.png", "b.png", "c.png"])
    assert [tuple(tile.shape) for tile in tiles] == [(1, 3, 128, 128)] * 2
    assert others == [1, (128, 128)]


class Enlarging(torch.nn.Module):
    """What keeps to the size of the image in mmsegmentation's own way."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        options = {"mode": "bilinear", "align_corners": False}
        enlarged = Upsample(scale_factor=2, **options)(image[:, :, ::4, ::4])
        return enlarged + resize(torch.nn.AdaptiveAvgPool2d(3)(image), size=enlarged.shape[2:], **options)


def test_what_enlarges_and_pools_is_traced_for_any_size() -> None:
    from mapsage_kaggle.engine.jobs import export as forms

    program = forms._trace(Enlarging(), None).module()
    for size in ((64, 64), (104, 72)):
        image = torch.rand(1, 3, *size)
        torch.testing.assert_close(program(image), Enlarging()(image))


def test_a_program_for_one_side_alone_is_not_taken_for_one_of_any_size() -> None:
    from mapsage_kaggle.engine.jobs import export as forms

    class OfOneHeight(torch.nn.Module):
        def forward(self, image: torch.Tensor) -> torch.Tensor:
            return image * int(image.shape[2])

    with pytest.raises(JobError, match="follow the height or the width"):
        forms._trace(OfOneHeight(), None)


def test_a_form_that_does_not_hold_for_any_size_is_made_for_one(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mapsage_kaggle.jobs import export as parent

    asked: list[tuple[tuple[str, ...], bool]] = []

    def child(entry: str, job: Any, subject: Any, on_event: Any, **options: Any) -> dict[str, Any]:
        forms, fixed = tuple(job["forms"]), bool(job.get("fixed"))
        asked.append((forms, fixed))
        if forms == ("safetensors",):
            (Path(job["out"]) / "classes.json").write_text(json.dumps(CLASSES))
            return {**FOUND, "files": [exported("model.safetensors")], "failed": []}
        if forms == ("torch",):
            raise JobError("It took more than 900 s.")
        files = [exported("model-64x64.onnx", fixed=[64, 64])] if fixed else []
        failed = [] if fixed else [{"name": "model.onnx", "reason": "its logits differ"}]
        return {**FOUND, "files": files, "failed": failed}

    monkeypatch.setattr(parent, "run_child", child)
    monkeypatch.setenv("MAPSAGE_KAGGLE_ROOT", str(tmp_path / "kaggle"))
    out = tmp_path / "out"
    assert export(run, out, "--images", str(run / "tile.png")) == EXIT_DONE
    onnx, program = ("onnx",), ("torch",)
    assert asked == [
        (("safetensors",), False),
        (onnx, False),
        (onnx, True),
        (program, False),
        (program, True),
    ]
    card = (out / "README.md").read_text()
    assert "`model-64x64.onnx`" in card
    assert "`onnx, any size` could not be made: its logits differ" in card
    assert "`torch, one size` could not be made: It took more than 900 s." in card


def test_an_export_that_is_interrupted_leaves_the_weights_and_their_card(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mapsage_kaggle.jobs import export as parent

    def child(entry: str, job: Any, subject: Any, on_event: Any, **options: Any) -> dict[str, Any]:
        if "safetensors" not in job["forms"]:
            (Path(job["out"]) / "model.onnx").write_bytes(b"half")
            raise KeyboardInterrupt
        (Path(job["out"]) / "model.safetensors").write_bytes(b"weights")
        (Path(job["out"]) / "classes.json").write_text(json.dumps(CLASSES))
        return {**FOUND, "files": [exported("model.safetensors")], "failed": []}

    monkeypatch.setattr(parent, "run_child", child)
    monkeypatch.setenv("MAPSAGE_KAGGLE_ROOT", str(tmp_path / "kaggle"))
    assert export(run, tmp_path / "out", "--images", str(run / "tile.png")) == EXIT_INTERRUPTED
    assert [folder.name for folder in tmp_path.glob("out*")] == ["out"]
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == b"weights"
    assert "model.safetensors" in (tmp_path / "out" / "SHA256SUMS").read_text()
    assert (
        "`onnx` could not be made: the export ended before it" in (tmp_path / "out" / "README.md").read_text()
    )
    assert not list((tmp_path / "out").glob("*.onnx"))


CLASSES = {
    "classes": ["a", "b"], "palette": [[0, 0, 0], [1, 1, 1]], "mask_values": [0, 1], "no_data": 255,
    "output": {"num_channels": 2}, "windows": None, "prepare": [],
    "input": {}, "read": {"type": "LoadImageFromFile"},
}  # fmt: skip
FOUND = {"compared_on": ["noise"], "classes": ["a", "b"], "divisor": 1, "draws": [], "num_weights": 7}


def exported(name: str, fixed: list[int] | None = None) -> dict[str, Any]:
    return {
        "name": name, "size_bytes": 1, "sha256": "0" * 64, "max_difference": 0.0, "agreement": 1.0,
        "sizes": [[64, 64]], "fixed": fixed,
    }  # fmt: skip
