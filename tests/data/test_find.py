"""Where a config's data and weights lie among what is attached."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.configs import lay_out, own_data, small

from mapsage_kaggle.data.find import find_data, find_pretrained
from mapsage_kaggle.errors import DataError


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
