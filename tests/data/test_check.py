"""What is wrong with data is said before training."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.configs import lay_out, own_data

from mapsage_kaggle.data.check import check_data_of
from mapsage_kaggle.errors import DataError


def test_an_empty_folder_of_a_data_set_is_named(tmp_path: Path) -> None:
    place = lay_out(tmp_path / "fields")
    (place / "img" / "val" / "0.png").unlink()
    with pytest.raises(DataError, match=r"fields/img/val is empty"):
        check_data_of(own_data(), {"data/fields": place}, on_bad_image="fail")
    (place / "img" / "val" / "0.png").touch()
    assert check_data_of(own_data(), {"data/fields": place}, on_bad_image="fail") == ()


def test_a_folder_that_the_config_reads_and_is_not_there_is_named(tmp_path: Path) -> None:
    place = lay_out(tmp_path / "fields", splits=("train",))
    with pytest.raises(DataError, match=r"has no img/val"):
        check_data_of(own_data(), {"data/fields": place}, on_bad_image="fail")
