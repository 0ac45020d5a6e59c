"""The configs: their values, that they parse without torch, and that what they describe runs."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mmengine.config import Config
from PIL import Image

from mapsage_kaggle.data.datasets import EARTHVQA_CLASSES, LOVEDA_CLASSES
from mapsage_kaggle.data.scenes import generate_scenes
from mapsage_kaggle.errors import DataError

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
# mmsegmentation's default, which its own SegFormer configs keep: the loss is a mean over all pixels, the
# ignored ones as zeros. It says so each time a head is built.
pytestmark = pytest.mark.filterwarnings("ignore:Default ``avg_non_ignore`` is False:UserWarning")
NAMES = ("train_earthvqa_kaggle", "resume_earthvqa_kaggle", "train_loveda_kaggle", "demo")


def read(name: str) -> Any:
    return Config.fromfile(CONFIGS / f"{name}.py")


@pytest.fixture
def mmseg() -> Iterator[None]:
    """Register everything of mmsegmentation and the kit, and look names up there."""
    import mmseg.datasets
    import mmseg.evaluation
    import mmseg.models  # noqa: F401
    from mmengine.registry import DefaultScope

    import mapsage_kaggle.engine.data  # noqa: F401

    with DefaultScope.overwrite_default_scope("mmseg"):
        yield


def without_weights(cfg: Any) -> Any:
    """Return the model's config for one CPU rank, from scratch, as the kit's patch would leave it."""
    cfg.model.backbone.init_cfg = None
    cfg.model.decode_head.norm_cfg.type = "BN"
    return cfg.model


# --- values ----------------------------------------------------------------------------------------------


def test_every_config_parses_without_torch() -> None:
    code = (
        "import sys, json; sys.modules['torch'] = None\n"
        "from mmengine.config import Config\n"
        "print(json.dumps([Config.fromfile(name).train_cfg.max_iters for name in sys.argv[1:]]))"
    )
    files = [str(CONFIGS / f"{name}.py") for name in NAMES]
    done = subprocess.run([sys.executable, "-c", code, *files], check=True, capture_output=True, text=True)
    assert json.loads(done.stdout.splitlines()[-1]) == [40000, 40000, 40000, 480]


def test_no_config_is_left_out_here() -> None:
    assert sorted(path.stem for path in CONFIGS.glob("*.py") if path.stem != "__init__") == sorted(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_a_header_says_how_to_launch_it(name: str) -> None:
    text = (CONFIGS / f"{name}.py").read_text()
    assert "Needs: " in text
    assert f"    mapsage-kaggle train configs/{name}.py\n" in text


@pytest.mark.parametrize("name", NAMES[:3])
def test_the_schedule_is_mapsage_s(name: str) -> None:
    cfg = read(name)
    optimizer = cfg.optim_wrapper.optimizer
    assert (optimizer.type, optimizer.lr, optimizer.betas) == ("AdamW", 6e-5, (0.9, 0.999))
    assert optimizer.weight_decay == 0.01
    assert cfg.optim_wrapper.clip_grad.max_norm == 1.0
    warm_up, poly = cfg.param_scheduler
    assert (warm_up.type, warm_up.begin, warm_up.end) == ("LinearLR", 0, 1500)
    assert (poly.type, poly.begin, poly.end, poly.power) == ("PolyLR", 1500, 40000, 1.0)
    assert not warm_up.by_epoch
    assert not poly.by_epoch
    assert (cfg.train_cfg.type, cfg.train_cfg.max_iters) == ("IterBasedTrainLoop", 40000)
    assert cfg.train_cfg.val_interval == cfg.default_hooks.checkpoint.interval == 4000
    assert cfg.default_hooks.checkpoint.save_best == "mIoU"
    assert not cfg.default_hooks.checkpoint.by_epoch
    assert cfg.randomness.seed == 0


@pytest.mark.parametrize("name", NAMES[:3])
def test_the_pipeline_is_mapsage_s(name: str) -> None:
    cfg = read(name)
    steps = {step.type: step for step in cfg.train_dataloader.dataset.pipeline}
    assert list(steps) == [
        "LoadImageFromFile",
        "LoadAnnotations",
        "RandomResize",
        "RandomCrop",
        "RandomFlip",
        "PhotoMetricDistortion",
        "PackSegInputs",
    ]
    assert steps["RandomResize"].ratio_range == (0.5, 2.0)
    assert steps["RandomCrop"].crop_size == cfg.model.data_preprocessor.size == (512, 512)
    assert steps["RandomCrop"].cat_max_ratio == 0.75
    assert cfg.train_dataloader.batch_size == 4
    assert cfg.val_dataloader.batch_size == 1
    resize = next(step for step in cfg.val_dataloader.dataset.pipeline if step.type == "Resize")
    assert resize.scale == (1024, 1024)
    assert cfg.model.test_cfg.mode == "whole"


@pytest.mark.usefixtures("mmseg")
@pytest.mark.parametrize(
    ("name", "classes"), [("train_earthvqa_kaggle", 8), ("train_loveda_kaggle", 7), ("demo", 8)]
)
def test_the_head_has_the_classes_of_its_data(name: str, classes: int) -> None:
    from mmseg.registry import DATASETS

    cfg = read(name)
    dataset = DATASETS.get(cfg.train_dataloader.dataset.type)
    assert cfg.model.decode_head.num_classes == classes == len(dataset.METAINFO["classes"])


def test_the_resume_config_differs_only_in_asking_to_resume() -> None:
    train, resume = (read(name).to_dict() for name in NAMES[:2])
    assert resume.pop("resume") is True
    assert train.pop("resume") is False
    assert resume == train
    assert "# load_from = '/kaggle/input/" in (CONFIGS / f"{NAMES[1]}.py").read_text().replace('"', "'")


@pytest.mark.parametrize("name", NAMES)
def test_only_the_data_root_depends_on_the_mount(name: str) -> None:
    cfg = read(name)
    for loader in (cfg.train_dataloader, cfg.val_dataloader, cfg.test_dataloader):
        assert loader.dataset.pop("data_root") == cfg.data_root
    cfg.pop("data_root")
    assert "/kaggle" not in cfg.pretty_text


# --- what they describe ----------------------------------------------------------------------------------


@pytest.mark.usefixtures("mmseg")
def test_mit_b2_has_the_published_size() -> None:
    from mmseg.registry import MODELS

    model = MODELS.build(without_weights(read("train_earthvqa_kaggle")))
    count = sum(parameter.numel() for parameter in model.backbone.parameters())
    assert count / 1e6 == pytest.approx(24.2, abs=0.1)
    assert model.decode_head.conv_seg.out_channels == 8


@pytest.mark.usefixtures("mmseg")
def test_the_demo_model_takes_a_step(tmp_path: Path) -> None:
    import torch
    from mmengine.dataset import pseudo_collate
    from mmseg.registry import DATASETS, MODELS

    generate_scenes(tmp_path, train=2, val=1, size=256, seed=0)
    cfg = read("demo")
    cfg.train_dataloader.dataset.data_root = str(tmp_path)
    dataset = DATASETS.build(cfg.train_dataloader.dataset)
    model = MODELS.build(without_weights(cfg))
    batch = model.data_preprocessor(pseudo_collate([dataset[0], dataset[1]]), training=True)
    assert batch["inputs"].shape == (2, 3, 128, 128)
    losses = model(**batch, mode="loss")
    losses["decode.loss_ce"].backward()
    assert torch.isfinite(losses["decode.loss_ce"])
    assert all(
        parameter.grad is not None and torch.isfinite(parameter.grad).all()
        for parameter in model.parameters()
    )


# --- the datasets ----------------------------------------------------------------------------------------


def lay_out_tiles(root: Path, loveda: Path, *, area: str = "") -> None:
    for split, tile in (("Train", 0), ("Val", 1)):
        for kind in ("images_png", "masks_png"):
            folder = root / split / area / kind
            folder.mkdir(parents=True)
            (folder / f"{tile}.png").symlink_to(loveda / kind / f"{tile}.png")


def build(name: str, loader: str, root: Path) -> Any:
    from mmseg.registry import DATASETS

    spec = read(name)[f"{loader}_dataloader"].dataset
    spec.data_root = str(root)
    return DATASETS.build(spec)


@pytest.mark.usefixtures("mmseg")
@pytest.mark.parametrize(("name", "area"), [("train_earthvqa_kaggle", ""), ("train_loveda_kaggle", "Rural")])
def test_real_tiles_go_through_the_true_train_pipeline(
    loveda: Path, tmp_path: Path, name: str, area: str
) -> None:
    lay_out_tiles(tmp_path, loveda, area=area)
    dataset = build(name, "train", tmp_path)
    assert len(dataset) == 1
    seen: set[int] = set()
    for _ in range(6):
        item = dataset[0]
        assert item["inputs"].shape == (3, 512, 512)
        labels = item["data_samples"].gt_sem_seg.data
        assert labels.shape == (1, 512, 512)
        seen |= set(labels.unique().tolist())
    assert seen <= {*range(len(dataset.metainfo["classes"])), 255}
    assert {0, 6} <= seen  # background and agriculture cover most of this tile


@pytest.mark.usefixtures("mmseg")
def test_a_real_tile_is_validated_whole_and_its_labels_are_the_mask_less_one(
    loveda: Path, tmp_path: Path
) -> None:
    lay_out_tiles(tmp_path, loveda)
    item = build("train_earthvqa_kaggle", "val", tmp_path)[0]
    assert item["inputs"].shape == (3, 1024, 1024)
    mask = np.asarray(Image.open(loveda / "masks_png" / "1.png"))
    assert np.array_equal(item["data_samples"].gt_sem_seg.data[0].numpy(), mask - 1)


@pytest.mark.usefixtures("mmseg")
def test_no_data_becomes_255_and_playground_7(tmp_path: Path) -> None:
    for kind, shape in (("images_png", (8, 9, 3)), ("masks_png", (8, 9))):
        for split in ("Train", "Val"):
            (tmp_path / split / kind).mkdir(parents=True)
            values = np.broadcast_to(np.arange(9, dtype=np.uint8), (8, 9))
            picture = values if len(shape) == 2 else np.zeros(shape, np.uint8)
            Image.fromarray(np.ascontiguousarray(picture)).save(tmp_path / split / kind / "0.png")
    item = build("train_earthvqa_kaggle", "val", tmp_path)[0]
    row = item["data_samples"].gt_sem_seg.data[0, 0].tolist()
    assert row == [255, 0, 1, 2, 3, 4, 5, 6, 7]


@pytest.mark.usefixtures("mmseg")
def test_metainfo_carries_classes_and_palette(tmp_path: Path) -> None:
    generate_scenes(tmp_path, train=1, val=1, size=64, seed=0)
    meta = build("train_earthvqa_kaggle", "train", tmp_path).metainfo
    assert meta["classes"] == EARTHVQA_CLASSES
    assert len(meta["palette"]) == 8
    assert meta["reduce_zero_label"] is True


@pytest.mark.usefixtures("mmseg")
def test_the_areas_of_loveda_are_read_as_one(tmp_path: Path) -> None:
    for area, seed in (("Urban", 1), ("Rural", 2)):
        generate_scenes(tmp_path / area, train=2, val=1, size=64, seed=seed)
    for split in ("Train", "Val"):
        for area in ("Urban", "Rural"):
            (tmp_path / "loveda" / split).mkdir(parents=True, exist_ok=True)
            (tmp_path / area / split).rename(tmp_path / "loveda" / split / area)
    dataset = build("train_loveda_kaggle", "train", tmp_path / "loveda")
    assert dataset.metainfo["classes"] == LOVEDA_CLASSES
    names = [
        str(Path(dataset.get_data_info(index)["img_path"]).relative_to(tmp_path / "loveda" / "Train"))
        for index in range(len(dataset))
    ]
    assert names == [f"{area}/images_png/{number}.png" for area in ("Rural", "Urban") for number in (0, 1)]


@pytest.mark.usefixtures("mmseg")
def test_a_mismatched_pair_stops_the_dataset(tmp_path: Path) -> None:
    generate_scenes(tmp_path, train=2, val=1, size=64, seed=0)
    (tmp_path / "Train" / "masks_png" / "1.png").unlink()
    with pytest.raises(DataError, match="no mask"):
        build("train_earthvqa_kaggle", "train", tmp_path)


@pytest.mark.usefixtures("mmseg")
def test_a_dataset_without_a_root_says_so() -> None:
    from mmseg.registry import DATASETS

    with pytest.raises(DataError, match="EarthVQADataset needs a data_root"):
        DATASETS.build({"type": "EarthVQADataset"})
