"""Data that cannot work is refused with a file before training; what is odd is told."""

from __future__ import annotations

import os
import shlex
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from mmcv.transforms import BaseTransform
from mmengine.config import Config
from mmengine.logging import MessageHub
from mmengine.registry import init_default_scope
from mmseg.models.data_preprocessor import SegDataPreProcessor
from mmseg.registry import DATASETS, TRANSFORMS
from PIL import Image
from support.fields import CLASSES, PIPELINE, any_image, any_mask, lay_out, save

from mapsage_kaggle.config.replacements import faster_pipeline
from mapsage_kaggle.display.locale.words import Words
from mapsage_kaggle.engine import looking, matching
from mapsage_kaggle.engine.jobs.evaluate import build_data
from mapsage_kaggle.engine.looking import look
from mapsage_kaggle.engine.matching import nothing_matches
from mapsage_kaggle.engine.reading import ReadableDataset
from mapsage_kaggle.engine.sampling import PositionalDataset
from mapsage_kaggle.errors import DataError
from mapsage_kaggle.records import SCALE_KEY, TrainedScale
from mapsage_kaggle.training.options import in_notebook

UNCHANGED = ({"type": "LoadImageFromFile", "color_type": "unchanged"}, *PIPELINE[1:])


@TRANSFORMS.register_module()
class ColoursToClasses(BaseTransform):
    """What a person writes who has masks in colours: the red channel is the class."""

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        results["gt_seg_map"] = results["gt_seg_map"][..., 0]
        return results


class Model(torch.nn.Module):
    def __init__(self, channels: int, values: int, takes: int | None = None) -> None:
        super().__init__()
        means = {"mean": [0.0] * values, "std": [1.0] * values} if values else {}
        self.data_preprocessor = SegDataPreProcessor(size=(64, 64), **means)
        self.backbone = torch.nn.Sequential(torch.nn.Conv2d(channels, 2, 1))
        self.takes = takes

    def extract_feat(self, inputs: torch.Tensor) -> Any:
        return self.backbone(inputs[:, : self.takes])


def configs(place: Path, pipeline: Sequence[Mapping[str, Any]] = PIPELINE, **options: Any) -> dict[str, Any]:
    init_default_scope("mmseg")
    return {
        f"{split}_dataloader": {
            "dataset": {
                "type": "BaseSegDataset", "data_root": str(place), "metainfo": {"classes": CLASSES},
                "data_prefix": {"img_path": f"img/{split}", "seg_map_path": f"ann/{split}"},
                "img_suffix": ".png", "pipeline": list(pipeline), **options,
            }
        }
        for split in ("train", "val")
    }  # fmt: skip


def told(
    place: Path,
    *,
    model: Model | None = None,
    choice: str = "fail",
    num_classes: int = 4,
    scales: list[TrainedScale] | None = None,
    **options: Any,
) -> tuple[str, ...]:
    """Look at a data set as a session does; return what a person is told."""
    cfg = configs(place, **options)
    kinds = {"train_dataloader": PositionalDataset, "val_dataloader": ReadableDataset}
    loaders = {
        name: SimpleNamespace(
            dataset=kind(DATASETS.build(cfg[name]["dataset"]), choice, num_classes=num_classes)
        )
        for name, kind in kinds.items()
    }
    hub = MessageHub("look")
    runner = SimpleNamespace(cfg=cfg, val_loop=object(), message_hub=hub, **loaders)
    found = look(runner, model or Model(3, 3), CLASSES)
    scale = TrainedScale.from_json(hub.get_info(SCALE_KEY, None))
    if scales is not None and scale is not None:
        scales.append(scale)
    return found


def refusal(place: Path, **options: Any) -> DataError:
    with pytest.raises(DataError) as found:
        told(place, **options)
    assert found.value.exit_code == 2
    assert Words("zh").translate(found.value.problem) != found.value.problem
    return found.value


def test_a_sound_data_set_is_worth_no_word(tmp_path: Path) -> None:
    assert told(lay_out(tmp_path)) == ()


def in_colours(number: int) -> np.ndarray:
    return np.repeat(any_mask(number)[..., None], 3, axis=2)


def test_masks_in_colours_are_refused_and_one_channel_is_taken(tmp_path: Path) -> None:
    lay_out(tmp_path, mask=in_colours)
    problem = refusal(tmp_path)
    assert f"{tmp_path}/ann/train/0.png is a picture in colours (64 x 64 x 3)" in problem.problem
    for file in tmp_path.glob("ann/*/*.png"):
        Image.open(file).getchannel(0).save(file)  # the remedy: one channel of 8 bits
    assert told(tmp_path) == ()


def test_masks_in_colours_that_a_transform_converts_are_taken(tmp_path: Path) -> None:
    lay_out(tmp_path, mask=in_colours)
    pipeline = (*PIPELINE[:2], {"type": "ColoursToClasses"}, *PIPELINE[2:])
    assert told(tmp_path, pipeline=pipeline) == ()


def test_labels_that_a_transform_maps_are_judged_as_the_model_gets_them(tmp_path: Path) -> None:
    lay_out(
        tmp_path,
        mask=lambda number: np.stack([any_mask(number), any_mask(number) + 100], axis=2)[..., [1, 1, 0]],
    )
    pipeline = (*PIPELINE[:2], {"type": "ColoursToClasses"}, *PIPELINE[2:])
    assert told(tmp_path, pipeline=pipeline) == ()


def test_masks_of_16_bits_are_refused_where_they_would_be_cut(tmp_path: Path) -> None:
    lay_out(tmp_path / "small", mask=lambda number: any_mask(number).astype(np.uint16))
    assert told(tmp_path / "small") == ()
    lay_out(tmp_path / "large", mask=lambda number: any_mask(number).astype(np.uint16) * 256)
    assert (
        "values up to 768, of which the pipeline keeps the lower 8 bits"
        in refusal(tmp_path / "large").problem
    )


def test_masks_of_0_and_255_are_refused_and_the_remedy_makes_them_good(tmp_path: Path) -> None:
    lay_out(tmp_path, mask=lambda number: np.where(any_mask(number) > 0, 255, 0).astype(np.uint8))
    problem = refusal(tmp_path)
    assert "masks looked at hold 0 and 255 alone" in problem.problem
    assert "mask.point(lambda value: value // 255)" in problem.remedy
    for file in tmp_path.glob("ann/*/*.png"):
        mask = Image.open(file)
        mask.point(lambda value: value // 255).save(file)
    assert told(tmp_path) == ("In none of the 4 training masks looked at occurs maize, path.",)


def test_a_thin_border_of_255_says_nothing_of_classes_that_are_rare(tmp_path: Path) -> None:
    def bordered(number: int) -> np.ndarray:
        mask = np.zeros((64, 64), np.uint8)
        mask[0, :3] = 255
        return mask

    lay_out(tmp_path, mask=bordered)
    assert told(tmp_path) == ("In none of the 4 training masks looked at occurs wheat, maize, path.",)


def test_masks_that_are_wholly_ignored_are_refused_until_the_label_is(tmp_path: Path) -> None:
    lay_out(tmp_path, mask=lambda number: np.zeros((64, 64), np.uint8))
    problem = refusal(tmp_path, reduce_zero_label=True)
    assert "Every pixel of all 4 masks looked at is ignored (255)" in problem.problem
    assert told(tmp_path, reduce_zero_label=False) == (
        "In none of the 4 training masks looked at occurs wheat, maize, path.",
    )


def test_a_label_beyond_the_classes_in_any_corner_is_refused_by_its_file(tmp_path: Path) -> None:
    lay_out(tmp_path)
    mask = any_mask(2)
    mask[-1, -1] = 9
    save(tmp_path / "ann" / "train" / "2.png", mask)
    crop = {"type": "RandomCrop", "crop_size": (8, 8)}
    assert (
        "ann/train/2.png holds the label 9"
        in refusal(tmp_path, pipeline=(*PIPELINE[:3], crop, PIPELINE[3])).problem
    )


def test_labels_of_class_and_one_are_good_once_the_zero_label_is_reduced(tmp_path: Path) -> None:
    lay_out(tmp_path, mask=lambda number: any_mask(number) + 1)
    assert "set reduce_zero_label = True" in refusal(tmp_path).remedy
    assert told(tmp_path, reduce_zero_label=True) == ()


def test_the_share_that_is_ignored_is_told_where_it_is_large(tmp_path: Path) -> None:
    def mostly_ignored(number: int) -> np.ndarray:
        mask = any_mask(number)
        mask[:40] = 255
        return mask

    lay_out(tmp_path, mask=mostly_ignored)
    (line,) = told(tmp_path)
    assert line.startswith("62 % of the pixels of the 4 training masks looked at are ignored; most are in ")


def test_an_image_that_cannot_be_loaded_is_refused_or_left_out(tmp_path: Path) -> None:
    lay_out(tmp_path)
    (tmp_path / "img" / "train" / "3.png").write_bytes(b"no image")
    problem = refusal(tmp_path)
    assert "img/train/3.png or its mask cannot be loaded" in problem.problem
    assert "--on-bad-image skip" in problem.remedy
    assert told(tmp_path, choice="skip") == ()


def test_what_can_no_sample_load_is_refused_whatever_is_skipped(tmp_path: Path) -> None:
    lay_out(tmp_path)
    for file in tmp_path.glob("img/train/*"):
        file.write_bytes(b"no image")
    assert "4 of the 4 pairs looked at" in refusal(tmp_path, choice="skip").problem


# --- through the faster pipeline, in which one transform stands for all

STOCK = (
    *PIPELINE[:2],
    {"type": "RandomResize", "scale": (64, 64), "ratio_range": (0.5, 2.0), "keep_ratio": True},
    {"type": "RandomCrop", "crop_size": (32, 32), "cat_max_ratio": 0.75},
    {"type": "RandomFlip", "prob": 0.5},
    {"type": "PhotoMetricDistortion"},
    PIPELINE[3],
)


def faster(place: Path) -> list[Any]:
    found = faster_pipeline(STOCK, cache_dir=str(place / "decoded"), scope="mmseg")
    assert found is not None
    assert len(found[0]) == 1
    return found[0]


def black_and_white(number: int) -> np.ndarray:
    return np.where(any_mask(number) > 0, 255, 0).astype(np.uint8)


def of_channels(number: int) -> Callable[[int], np.ndarray]:
    return lambda image: np.repeat(any_mask(image)[..., None], number, axis=2)


def test_as_much_is_told_as_through_the_stock_transforms(tmp_path: Path) -> None:
    lay_out(tmp_path)
    found: list[list[TrainedScale]] = [[], []]
    for pipeline, scales in zip((faster(tmp_path), STOCK), found, strict=True):
        assert told(tmp_path, pipeline=pipeline, scales=scales) == ()
    assert found[0] == found[1] != []


@pytest.mark.filterwarnings("ignore:Please pay attention your ground truth")  # as in a session
@pytest.mark.parametrize(
    ("mask", "problem"),
    [
        (black_and_white, "All 4 masks looked at hold 0 and 255 alone, such as {mask}; 255 is ignored"),
        (
            lambda number: any_mask(number).astype(np.uint16) * 1000,
            "The mask {mask} has more than 8 bits and values up to 3000, of which the pipeline keeps",
        ),
        (of_channels(4), "The mask {mask} is a picture in colours (64 x 64 x 4), where one channel"),
        (of_channels(2), "The mask {mask} is a picture in colours (64 x 64 x 2), where one channel"),
        (lambda number: any_mask(number) + 7, "The mask {mask} holds the label 7; with num_classes = 4"),
        (
            lambda number: np.full((64, 64), 255, np.uint8),
            "Every pixel of all 4 masks looked at is ignored (255), {mask} among them",
        ),
    ],
    ids=["0 and 255", "16 bits", "RGBA", "grey and alpha", "beyond the classes", "ignored"],
)  # fmt: skip
def test_what_is_no_mask_is_refused_by_its_name_there_too(
    tmp_path: Path, mask: Callable[[int], np.ndarray], problem: str
) -> None:
    lay_out(tmp_path, mask=mask)
    expected = problem.format(mask=tmp_path / "ann" / "train" / "0.png")
    assert refusal(tmp_path, pipeline=faster(tmp_path)).problem.startswith(expected)


def test_a_palette_of_too_many_colours_is_refused_by_the_masks_name(tmp_path: Path) -> None:
    lay_out(tmp_path)
    for file in tmp_path.glob("ann/*/*.png"):
        Image.fromarray(any_mask(1) + 7).convert("P").save(file)
    problem = refusal(tmp_path, pipeline=faster(tmp_path)).problem
    assert problem.startswith(f"The mask {tmp_path}/ann/train/0.png holds the label 7;")


def test_the_mask_that_is_mostly_ignored_is_named_there_too(tmp_path: Path) -> None:
    def bordered(number: int) -> np.ndarray:
        mask = any_mask(number)
        mask[:48] = 255
        return mask

    lay_out(tmp_path, mask=bordered)
    (line,) = told(tmp_path, pipeline=faster(tmp_path))
    assert f"most are in {tmp_path}/ann/train/" in line


# --- channels


def four(number: int) -> np.ndarray:
    return any_image(number, 4)


def test_other_channels_than_the_model_takes_are_refused_with_both_numbers(tmp_path: Path) -> None:
    lay_out(tmp_path, image=four)
    problem = refusal(tmp_path, pipeline=UNCHANGED)
    assert "img/train/0.png has 4 channels as the pipeline gives it" in problem.problem
    assert settings_of(problem) == {
        "model.backbone.in_channels": "4",
        "model.data_preprocessor.mean": "[127.5]",
        "model.data_preprocessor.std": "[127.5]",
    }
    assert told(tmp_path, pipeline=UNCHANGED, model=Model(4, 1)) == ()
    assert told(tmp_path) == ()  # the remedy's other half: three are loaded


@pytest.mark.parametrize(
    ("model", "settings", "mended"),
    [
        (Model(4, 3), {"model.backbone.in_channels": "3"}, Model(3, 3)),
        (Model(4, 1), {"model.backbone.in_channels": "3"}, Model(3, 1)),
        (Model(4, 0), {"model.backbone.in_channels": "3"}, Model(3, 0)),
    ],
)
def test_means_that_fit_the_images_are_left_alone(
    tmp_path: Path, model: Model, settings: dict[str, str], mended: Model
) -> None:
    lay_out(tmp_path)
    problem = refusal(tmp_path, model=model)
    assert settings_of(problem) == settings
    for words in (Words("en", in_notebook), Words("zh", in_notebook)):
        assert words.translate(problem.remedy).endswith('OVERRIDES = ["model.backbone.in_channels=3"]')
    assert told(tmp_path, model=mended) == ()


def test_a_first_layer_that_fits_the_images_is_left_alone(tmp_path: Path) -> None:
    problem = refusal(lay_out(tmp_path, image=four), pipeline=UNCHANGED, model=Model(4, 3))
    assert settings_of(problem) == {
        "model.data_preprocessor.mean": "[127.5]",
        "model.data_preprocessor.std": "[127.5]",
    }


@pytest.mark.parametrize("model", [Model(3, 0, takes=3), Model(3, 1, takes=3)])
def test_a_model_that_takes_its_own_part_of_the_channels_is_not_refused(tmp_path: Path, model: Model) -> None:
    assert told(lay_out(tmp_path, image=four), pipeline=UNCHANGED, model=model) == ()


def test_grey_images_are_taken_where_three_means_make_three_channels(tmp_path: Path) -> None:
    lay_out(tmp_path, image=lambda number: any_image(number)[..., 0])
    assert told(tmp_path, pipeline=UNCHANGED, model=Model(3, 3)) == ()


# --- files


def test_images_without_masks_are_refused_or_left_out(tmp_path: Path) -> None:
    lay_out(tmp_path, mask=lambda number: None if number == 1 else any_mask(number))
    problem = refusal(tmp_path)
    assert problem.problem.startswith(f"1 of 4 images have no mask; the first is {tmp_path}/img/train/1.png")
    assert told(tmp_path, choice="skip") == (problem.problem,)


def settings_of(error: DataError) -> dict[str, str]:
    """Return what ``--set`` a remedy names, by dotted key."""
    words = error.remedy.split("--set ")[1:]
    return dict(word.strip().split("=", 1) for word in words)


def test_masks_with_another_suffix_are_found_by_what_the_refusal_says(tmp_path: Path) -> None:
    lay_out(tmp_path, mask_suffix="_labels.png")
    problem = refusal(tmp_path)
    assert settings_of(problem) == {
        f"{name}_dataloader.dataset.seg_map_suffix": "_labels.png" for name in ("train", "val")
    }
    setting = 'OVERRIDES = ["val_dataloader.dataset.seg_map_suffix=_labels.png"]'
    assert setting in Words("zh", in_notebook).translate(problem.remedy)
    assert told(tmp_path, seg_map_suffix="_labels.png") == ()


@pytest.mark.parametrize("suffix", [".PNG", ".tif"])
def test_an_empty_match_names_folder_suffix_and_what_is_there(tmp_path: Path, suffix: str) -> None:
    lay_out(tmp_path, suffix=suffix)
    with pytest.raises(ValueError, match="need at least one array to concatenate") as raised:
        told(tmp_path)
    assert matching.says_nothing_matches(raised.value)
    found = nothing_matches(configs(tmp_path))
    assert found is not None
    assert found.problem == (
        f"No file in {tmp_path}/img/train ends with .png (img_suffix); suffixes found: 4 {suffix}."
    )
    assert Words("zh").translate(found.problem) != found.problem
    assert settings_of(found) == {
        f"{name}_dataloader.dataset.img_suffix": suffix for name in ("train", "val")
    }
    with pytest.raises(DataError, match="No file in"):
        build_data(Config(configs(tmp_path)), "val_dataloader")  # as evaluating does
    assert told(tmp_path, img_suffix=suffix) == ()
    assert nothing_matches(configs(tmp_path, img_suffix=suffix)) is None


def test_the_remedy_for_a_wrapped_data_set_has_its_own_key(tmp_path: Path) -> None:
    lay_out(tmp_path, suffix=".tif")
    cfg = configs(tmp_path)
    inner = cfg["train_dataloader"]["dataset"]
    cfg["train_dataloader"]["dataset"] = {
        "type": "RepeatDataset", "times": 2, "dataset": {"type": "ConcatDataset", "datasets": [inner]}
    }  # fmt: skip
    found = nothing_matches(cfg)
    assert found is not None
    assert list(settings_of(found)) == [
        "train_dataloader.dataset.dataset.datasets.0.img_suffix", "val_dataloader.dataset.img_suffix"
    ]  # fmt: skip


def test_a_part_of_the_images_in_another_case_is_told(tmp_path: Path) -> None:
    lay_out(tmp_path)
    save(tmp_path / "img" / "train" / "9.PNG", any_image(9))
    (line,) = told(tmp_path)
    assert line.startswith(f"1 images in {tmp_path}/img/train are left out, such as 9.PNG")


def test_a_folder_whose_name_begins_like_the_images_is_another(tmp_path: Path) -> None:
    lay_out(tmp_path)
    (tmp_path / "ann" / "train").rename(tmp_path / "img" / "train_masks")
    save(tmp_path / "img" / "train_masks" / "9.PNG", any_mask(9))
    prefix = {"img_path": "img/train", "seg_map_path": "img/train_masks"}
    assert told(tmp_path, data_prefix=prefix) == ()


@pytest.mark.parametrize("ending", ["\n", "\r\n", " \n"])
@pytest.mark.parametrize("in_working", [False, True])
def test_a_list_whose_names_have_suffixes_is_refused_with_what_makes_it_good(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ending: str, in_working: bool
) -> None:
    monkeypatch.setenv("MAPSAGE_KAGGLE_ROOT", str(tmp_path / "my kaggle"))
    working = tmp_path / "my kaggle" / "working"
    working.mkdir(parents=True)
    fields = lay_out(tmp_path / "my fields")
    listing = (working if in_working else fields) / "list.txt"
    content = ending.join(["0.png", "1.png", ""]).encode()
    listing.write_bytes(content)
    options = {"data_prefix": {"img_path": "img/train", "seg_map_path": "ann/train"}}
    problem = refusal(fields, ann_file=str(listing), **options)
    assert "names 0.png with its suffix, and img_suffix adds .png to it: 2 of 2" in problem.problem
    assert Words("zh").translate(problem.remedy) != problem.remedy
    command, _, settings = problem.remedy.partition("Make a list without: ")[2].partition(", and name it: ")
    subprocess.run(command, shell=True, check=True)
    named = dict(word.split("=", 1) for word in shlex.split(settings) if word != "--set")
    own = named["train_dataloader.dataset.ann_file"]
    assert named["val_dataloader.dataset.ann_file"] == own
    assert listing.read_bytes() == content
    assert told(fields, ann_file=own, **options) == ()


def test_a_list_that_suits_another_loader_is_not_changed_there(tmp_path: Path) -> None:
    fields = lay_out(tmp_path)
    (fields / "list.txt").write_text("0.png\n")
    cfg = configs(fields, ann_file="list.txt")
    cfg["val_dataloader"]["dataset"]["img_suffix"] = ""
    train = PositionalDataset(DATASETS.build(cfg["train_dataloader"]["dataset"]), "fail", num_classes=4)
    with pytest.raises(DataError) as refused:
        matching.check_files(train, cfg, "train_dataloader")
    assert list(settings_of(refused.value)) == ["train_dataloader.dataset.ann_file"]


# --- at what scale the images are seen

ENLARGED = {"type": "RandomResize", "scale": (128, 128), "ratio_range": (0.5, 2.0), "keep_ratio": True}


@TRANSFORMS.register_module()
class Halved(BaseTransform):
    """What a person writes who has large images."""

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        for key in ("img", "gt_seg_map"):
            results[key] = np.ascontiguousarray(results[key][::2, ::2])
        return results


def seen_at(place: Path, *transforms: Mapping[str, Any]) -> list[TrainedScale]:
    scales: list[TrainedScale] = []
    told(lay_out(place), pipeline=(*PIPELINE[:2], *transforms, PIPELINE[3]), scales=scales)
    return scales


def test_the_scale_of_the_training_images_is_measured(tmp_path: Path) -> None:
    assert seen_at(tmp_path, ENLARGED) == [TrainedScale(factor=2.0, low=1.0, high=4.0)]


def test_a_transform_of_ones_own_that_resizes_leaves_the_scale_unknown(tmp_path: Path) -> None:
    assert seen_at(tmp_path) == [TrainedScale(factor=1.0, low=1.0, high=1.0)]
    assert seen_at(tmp_path, {"type": "Halved"}) == []


# --- bounds


def test_at_most_64_pairs_are_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lay_out(tmp_path)
    for number in range(10, 60):
        save(tmp_path / "img" / "train" / f"{number}.png", any_image(number))
        save(tmp_path / "ann" / "train" / f"{number}.png", np.zeros((64, 64), np.uint8))
    (line,) = told(tmp_path, num_classes=5, metainfo={"classes": (*CLASSES, "rock")})
    assert line == "In none of the 32 training masks looked at occurs class 4."
    monkeypatch.setattr(looking, "LOOK_S", 0.0)
    (line,) = told(tmp_path, num_classes=5)
    assert line.startswith("In none of the 1 training masks")


def test_looking_draws_from_no_generator_of_the_process(tmp_path: Path) -> None:
    lay_out(tmp_path, image=four)
    model = Model(3, 1, takes=3)
    before = torch.get_rng_state(), np.random.get_state()[1].tolist()
    told(tmp_path, pipeline=UNCHANGED, model=model)
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1] == np.random.get_state()[1].tolist()


@TRANSFORMS.register_module()
class Killed(BaseTransform):
    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        os._exit(9)


def test_a_worker_that_is_killed_meanwhile_refuses_nothing(tmp_path: Path) -> None:
    assert told(lay_out(tmp_path), pipeline=({"type": "Killed"}, *PIPELINE)) == ()
