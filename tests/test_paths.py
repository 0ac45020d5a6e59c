"""Where things lie, on Kaggle and elsewhere."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from mapsage_kaggle import paths
from mapsage_kaggle.errors import MachineError
from mapsage_kaggle.paths import KagglePaths


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(paths, "KAGGLE_ROOT", tmp_path / "kaggle")
    folder = tmp_path / "tmp"
    folder.mkdir()
    monkeypatch.setattr(paths.tempfile, "gettempdir", lambda: str(folder))
    return folder / f"mapsage-kaggle-{os.getuid()}"


def test_scratch_is_kaggles_where_that_can_be_written(tmp_path: Path, temporary: Path) -> None:
    (tmp_path / "kaggle").mkdir()

    assert KagglePaths.from_environment({}).temp == tmp_path / "kaggle" / "temp"


def test_scratch_is_the_platforms_where_kaggles_cannot_be_written(tmp_path: Path, temporary: Path) -> None:
    found = KagglePaths.from_environment({})

    assert (found.temp, found.working) == (temporary, tmp_path / "kaggle" / "working")


def test_scratch_lies_below_the_root_that_was_named(tmp_path: Path, temporary: Path) -> None:
    found = KagglePaths.from_environment({"MAPSAGE_KAGGLE_ROOT": str(tmp_path / "other")})

    assert found.temp == tmp_path / "other" / "temp"


def test_a_scratch_folder_that_somebody_else_has_made_is_not_used(
    temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "getuid", lambda: 4711)
    temporary.with_name("mapsage-kaggle-4711").mkdir()

    with pytest.raises(MachineError, match="mapsage-kaggle-4711 is not this user's own"):
        KagglePaths.from_environment({})


def test_a_scratch_folder_that_is_a_link_is_not_used(tmp_path: Path, temporary: Path) -> None:
    temporary.symlink_to(tmp_path)

    with pytest.raises(MachineError, match="is not this user's own"):
        KagglePaths.from_environment({})
