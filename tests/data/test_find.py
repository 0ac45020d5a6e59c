"""Where a config's data and weights lie among what is attached."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from support.configs import lay_out, own_data, small

from mapsage_kaggle.config.reading import read_config
from mapsage_kaggle.data.find import count_images, find_data, find_pretrained
from mapsage_kaggle.data.scenes import generate_scenes
from mapsage_kaggle.errors import ConfigError, DataError


def test_a_data_root_is_found_by_the_folders_that_the_config_reads(tmp_path: Path) -> None:
    (tmp_path / "other" / "img" / "train").mkdir(parents=True)
    place = lay_out(tmp_path / "datasets" / "alice" / "some-fields" / "v1")
    assert find_data(own_data(), tmp_path) == {"data/fields": place}


def test_a_data_root_that_is_there_as_written_is_kept(tmp_path: Path) -> None:
    here = lay_out(tmp_path / "here")
    lay_out(tmp_path / "input" / "fields")
    assert find_data(own_data(str(here)), tmp_path / "input") == {str(here): here}


def test_half_a_data_set_does_not_count(tmp_path: Path) -> None:
    lay_out(tmp_path / "fields", splits=("train",))
    with pytest.raises(
        DataError, match=r"data_root 'data/fields' does not exist.*img/train.*ann/val"
    ) as found:
        find_data(own_data(), tmp_path)
    assert "Attach the data set" in str(found.value)


def test_without_inputs_the_error_says_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="data/fields"):
        find_data(own_data(), tmp_path / "nowhere")


def test_of_several_data_sets_the_one_of_the_config_s_name_is_taken(tmp_path: Path) -> None:
    lay_out(tmp_path / "a" / "copy")
    place = lay_out(tmp_path / "b" / "deeper" / "Fields")
    assert find_data(own_data(), tmp_path) == {"data/fields": place}


def test_several_data_sets_of_one_shape_are_refused_by_name(tmp_path: Path) -> None:
    first, second = lay_out(tmp_path / "a" / "one"), lay_out(tmp_path / "b" / "two")
    with pytest.raises(DataError, match=f"2 folders .*{first}, {second}.*--set"):
        find_data(own_data(), tmp_path)


def test_a_data_root_without_folders_in_the_config_is_looked_for_by_its_name(tmp_path: Path) -> None:
    place = tmp_path / "x" / "fields"
    place.mkdir(parents=True)
    assert find_data(own_data(data_prefix=None), tmp_path) == {"data/fields": place}
    assert find_data(own_data("data/unknown", data_prefix=None), tmp_path) == {}


def test_an_annotation_file_belongs_to_the_shape(tmp_path: Path) -> None:
    lay_out(tmp_path / "a")
    place = lay_out(tmp_path / "b")
    (place / "train.txt").touch()
    assert find_data(own_data(ann_file="train.txt"), tmp_path) == {"data/fields": place}


def test_attached_weights_are_found_under_any_folder(tmp_path: Path) -> None:
    file = tmp_path / "datasets" / "bob" / "weights" / "resnet50_v1c-2cccc1ad.pth"
    file.parent.mkdir(parents=True)
    file.touch()
    cfg = small(model__pretrained="open-mmlab://resnet50_v1c")
    assert find_pretrained(cfg, tmp_path) == {"open-mmlab://resnet50_v1c": file}
    assert find_pretrained(small(model__pretrained="open-mmlab://resnet18_v1c"), tmp_path) == {}


def test_several_names_of_one_file_are_all_found(tmp_path: Path) -> None:
    file = tmp_path / "resnet50_v1c-2cccc1ad.pth"
    file.touch()
    names = "open-mmlab://resnet50_v1c", f"https://a.example/x/{file.name}?download=true"
    cfg = small(model__pretrained=names[0], model__decode_head__init_cfg=pretrained(names[1]))
    assert find_pretrained(cfg, tmp_path) == dict.fromkeys(names, file)


def pretrained(checkpoint: str) -> dict[str, str]:
    return {"type": "Pretrained", "checkpoint": checkpoint}


def clutter(place: Path, *files: str) -> None:
    """Leave below a folder what an archive made on a Mac leaves beside the data."""
    for file in files:
        debris = place / "__MACOSX" / Path(file).parent / f"._{Path(file).name}"
        debris.parent.mkdir(parents=True, exist_ok=True)
        debris.write_bytes(b"Mac OS X")


def test_what_a_mac_s_archive_leaves_is_no_second_data_set(tmp_path: Path) -> None:
    place = lay_out(tmp_path / "upload" / "fields")
    clutter(
        tmp_path / "upload", *(str(file.relative_to(tmp_path / "upload")) for file in place.rglob("*.png"))
    )
    (place / "img" / "train" / "._0.png").touch()
    assert find_data(own_data(), tmp_path) == {"data/fields": place}
    assert count_images(own_data(), tmp_path) == 1


def test_repeats_count_where_they_are_within_a_data_set_of_several(tmp_path: Path) -> None:
    lay_out(tmp_path / "input" / "fields")
    cfg = own_data(img_suffix=".png")
    inner = cfg["train_dataloader"]["dataset"]
    repeated = {"type": "RepeatDataset", "times": 3, "dataset": inner}
    cfg["train_dataloader"]["dataset"] = {"type": "ConcatDataset", "datasets": [repeated, inner]}
    assert count_images(cfg, tmp_path) == 4


def test_masks_beside_the_images_are_no_images(tmp_path: Path) -> None:
    folder = lay_out(tmp_path / "fields") / "img" / "train"
    (folder / "0.jpg").touch()
    assert count_images(own_data(img_suffix=".jpg"), tmp_path) == 1


def test_images_of_the_kit_s_own_data_sets_are_counted(tmp_path: Path) -> None:
    generate_scenes(tmp_path / "scenes", train=3, val=1, size=64, seed=1)
    assert count_images(small(), tmp_path) == 3


def test_of_images_that_are_partly_elsewhere_there_is_no_number(tmp_path: Path) -> None:
    lay_out(tmp_path / "fields")
    cfg = own_data()
    inner = cfg["train_dataloader"]["dataset"]
    other = {**inner, "data_root": str(tmp_path), "data_prefix": {"img_path": "absent"}}
    cfg["train_dataloader"]["dataset"] = {"type": "ConcatDataset", "datasets": [inner, other]}
    assert count_images(cfg, tmp_path) is None


def chosen_by(remedy: str, cfg: dict[str, Any], folder: Path, tmp_path: Path) -> dict[str, Path]:
    """Return where the data lie once the remedy's line is added to the command."""
    config = tmp_path / "own.py"
    config.write_text("\n".join(f"{key} = {value!r}" for key, value in cfg.items()))
    settings = [word.split()[0].replace("FOLDER", str(folder)) for word in remedy.split("--set ")[1:]]
    return find_data(read_config(config, settings), tmp_path / "input")


@pytest.mark.parametrize("kind", ["plain", "RepeatDataset", "ConcatDataset"])
def test_of_several_that_fit_the_one_is_taken_that_the_remedy_names(tmp_path: Path, kind: str) -> None:
    first, second = lay_out(tmp_path / "input" / "a" / "one"), lay_out(tmp_path / "input" / "b" / "two")
    cfg = own_data()
    inner = cfg["train_dataloader"]["dataset"]
    if kind == "RepeatDataset":
        cfg["train_dataloader"]["dataset"] = {"type": kind, "times": 2, "dataset": inner}
    elif kind == "ConcatDataset":
        other = {**inner, "data_root": str(first)}
        cfg["train_dataloader"]["dataset"] = {"type": kind, "datasets": [inner, other]}
    with pytest.raises(DataError, match="2 folders") as refused:
        find_data(cfg, tmp_path / "input")
    found = chosen_by(refused.value.remedy, cfg, second, tmp_path)
    assert found[str(second)] == second
    assert set(found.values()) == ({first, second} if kind == "ConcatDataset" else {second})


def test_a_root_that_nothing_has_is_taken_from_where_the_remedy_says(tmp_path: Path) -> None:
    (tmp_path / "input").mkdir()
    elsewhere = lay_out(tmp_path / "elsewhere")
    with pytest.raises(DataError, match="does not exist") as refused:
        find_data(own_data(), tmp_path / "input")
    assert chosen_by(refused.value.remedy, own_data(), elsewhere, tmp_path) == {str(elsewhere): elsewhere}


def test_the_kit_s_own_data_sets_are_named_by_the_remedy_as_well(tmp_path: Path) -> None:
    for name in "ab":
        for split in ("Train", "Val"):
            for kind in ("images_png", "masks_png"):
                (tmp_path / "input" / name / split / kind).mkdir(parents=True)
    with pytest.raises(DataError, match="2 data sets") as refused:
        find_data(small(), tmp_path / "input")
    folder = tmp_path / "input" / "b"
    assert chosen_by(refused.value.remedy, small(), folder, tmp_path) == {str(folder): folder}


def test_one_setting_for_several_roots_is_refused_with_a_line_for_each(tmp_path: Path) -> None:
    config = tmp_path / "own.py"
    cfg = own_data()
    cfg["val_dataloader"]["dataset"]["data_root"] = "data/other"
    config.write_text("\n".join(f"{key} = {value!r}" for key, value in cfg.items()))
    with pytest.raises(ConfigError, match="2 data roots") as refused:
        read_config(config, ["data_root=/data"])
    settings = [word.strip() for word in refused.value.remedy.split("--set ")[1:]]
    assert settings == [
        "train_dataloader.dataset.data_root=data/fields", "val_dataloader.dataset.data_root=data/other"
    ]  # fmt: skip
    read_config(config, settings)
