"""Which samples a run is trained on: carried by its checkpoints, and compared on a resume."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from mmengine.logging import MessageHub
from torch.utils.data import DataLoader, Dataset

from mapsage_kaggle.checkpoints.load import load_checkpoint
from mapsage_kaggle.engine import contents
from mapsage_kaggle.engine.contents import DataChange, TrainingData
from mapsage_kaggle.engine.sampling import Draw, PositionalDataset
from mapsage_kaggle.engine.session import WorkerSession
from mapsage_kaggle.errors import DataError, TrainingError
from mapsage_kaggle.events import read_events
from mapsage_kaggle.records import SessionRecord
from mapsage_kaggle.spec import ChildSpec


class Folder(Dataset[Any]):
    """The images of a folder with their masks, as mmsegmentation's data sets tell of them."""

    def __init__(self, root: Path, *, names: list[str] | None = None) -> None:
        self.data_root = str(root)
        images = sorted((root / "images").iterdir())
        self.images = [item for item in images if names is None or item.name in names]

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> int:
        return len(self.images[index].read_bytes())

    def get_data_info(self, index: int) -> dict[str, str]:
        image = self.images[index]
        return {"img_path": str(image), "seg_map_path": str(image.parents[1] / "masks" / image.name)}


NAMES = [f"{index}.png" for index in range(6)]


def written(root: Path, names: list[str] = NAMES, size: int = 10) -> Path:
    for kind in ("images", "masks"):
        (root / kind).mkdir(parents=True, exist_ok=True)
        for name in names:
            (root / kind / name).write_bytes(b"x" * size)
    return root


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return written(tmp_path / "data")


def trained(root: Path, *indices: int) -> Any:
    """Return what a checkpoint holds after these samples were read."""
    dataset = PositionalDataset(Folder(root))
    dataset.contents = TrainingData(dataset)
    for index in indices:
        dataset[Draw(index, index, seed=index)]
    stream = io.BytesIO()
    torch.save({"state_dict": {}, "data": dataset.contents.state()}, stream)
    stream.seek(0)
    return load_checkpoint(stream)["data"]


def test_the_same_data_mounted_elsewhere_are_the_same(root: Path, tmp_path: Path) -> None:
    state = trained(root, 0, 1, 2)
    other = TrainingData(Folder(written(tmp_path / "elsewhere" / "data")))
    assert other.compare(state) == DataChange()
    assert other.summary()["digest"] == state["digest"]


def test_what_has_come_and_gone_is_told_by_name(root: Path) -> None:
    state = trained(root)
    (root / "images" / "2.png").rename(root / "images" / "7.png")
    (root / "images" / "4.png").unlink()
    change = TrainingData(Folder(root)).compare(state)
    assert change.message == (
        "The training data are not those of the checkpoint, which lists 6 samples; here are 5: "
        "gone: images/2.png, images/4.png; come: images/7.png."
    )
    assert change.reason.startswith("the training data have changed, from 6 samples to 5: gone: images/2.png")
    assert [line[:19] for line in change.lines] == ["-data = 6 samples, ", "+data = 5 samples, "]


def test_the_same_samples_in_another_order_are_other_data(root: Path) -> None:
    state = trained(root)
    dataset = Folder(root)
    dataset.images.reverse()
    assert "in another order" in TrainingData(dataset).compare(state).message


@pytest.mark.parametrize(
    "state",
    [None, {}, "text", {"names": 1, "sizes": 2}, {"names": torch.zeros(3, dtype=torch.uint8)},
     {"names": torch.zeros(3, dtype=torch.uint8), "sizes": torch.zeros(6)}],
)  # fmt: skip
def test_a_checkpoint_that_lists_no_samples_is_told_not_to(root: Path, state: Any) -> None:
    change = TrainingData(Folder(root)).compare(state)
    assert change == DataChange(reason="the checkpoint does not say which images it was trained on")


def test_a_list_without_a_size_for_each_sample_is_none(root: Path) -> None:
    state = trained(root)
    assert TrainingData(Folder(root)).compare({**state, "sizes": state["sizes"][:-1]}).message == ""


def test_no_file_is_asked_for_its_size_before_it_is_read(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(contents, "_size_bytes", lambda files: asked.append(files) or 20)
    state = trained(root)
    TrainingData(Folder(root)).compare(state)
    assert asked == []
    assert trained(root, 1)["sizes"].tolist() == [0, 20, 0, 0, 0, 0]


def test_sizes_are_those_of_image_and_mask_as_data_workers_read_them(root: Path) -> None:
    dataset = PositionalDataset(Folder(root))
    dataset.contents = TrainingData(dataset)
    draws = [Draw(index, index, seed=1) for index in (0, 3)]
    list(DataLoader(dataset, batch_size=None, sampler=draws, num_workers=1))
    assert dataset.contents.state()["sizes"].tolist() == [20, 0, 0, 20, 0, 0]
    assert dataset.contents.summary()["read"] == 2


def test_a_size_that_was_known_travels_on_until_the_sample_is_read_again(root: Path) -> None:
    state = trained(root, 0, 5)
    again = TrainingData(Folder(root))
    again.compare(state)
    assert again.state()["sizes"].tolist() == [20, 0, 0, 0, 0, 20]


def test_a_file_that_was_replaced_is_told_before_training(root: Path) -> None:
    state = trained(root, 0, 1)
    (root / "images" / "1.png").write_bytes(b"other")
    change = TrainingData(Folder(root)).compare(state)
    assert change.message == (
        "Training samples have another size than when they were read before: images/1.png (20 bytes, now 15)."
    )
    assert change.lines == ("+data: images/1.png has 15 bytes",)


def test_a_file_that_nobody_looked_at_is_told_when_it_is_read_and_once(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = trained(root, 0, 1)
    (root / "masks" / "1.png").write_bytes(b"other")
    monkeypatch.setattr(contents, "NUM_LOOKED_AT", 1)
    again = TrainingData(Folder(root))
    assert again.compare(state) == DataChange()
    again.read(str(root / "images" / "1.png"))
    assert "images/1.png (20 bytes, now 15)" in again.resized().message
    assert again.resized() == DataChange()


def test_changes_that_are_refused_end_training_where_a_sample_shows_them(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = trained(root, 0, 1)
    (root / "images" / "1.png").write_bytes(b"other")
    monkeypatch.setattr(contents, "NUM_LOOKED_AT", 1)
    dataset = PositionalDataset(Folder(root))
    dataset.contents = TrainingData(dataset)
    dataset.contents.refuses_changes = True
    dataset.contents.compare(state)
    dataset[Draw(0, 0, seed=1)]
    with pytest.raises(TrainingError, match=r"images/1.png .20 bytes, now 15.*--on-changed-data go-on"):
        dataset[Draw(1, 1, seed=1)]


def test_data_sets_that_are_joined_are_listed_one_after_the_other(root: Path, tmp_path: Path) -> None:
    joined = SimpleNamespace(
        datasets=[Folder(root, names=["0.png"]), Folder(written(tmp_path / "b", ["0.png"]))]
    )
    assert TrainingData(joined).names == ["0:images/0.png", "1:images/0.png"]


def test_a_data_set_that_tells_no_files_is_known_by_its_length() -> None:
    change = TrainingData([0, 1]).compare(TrainingData([0, 1, 2]).state())
    assert "which lists 3 samples; here are 2: gone: sample 2" in change.message


# --- a session -------------------------------------------------------------------------------------------


@pytest.fixture
def resumed(tmp_path: Path) -> Iterator[Any]:
    """Return what begins a session on data in which the checkpoint's last sample is missing."""
    sessions: list[WorkerSession] = []

    def begin(root: Path, on_changed_data: str) -> WorkerSession:
        hub = MessageHub(f"resumed {on_changed_data}")
        hub.update_info("mapsage_data", trained(root))
        (root / "images" / "5.png").unlink()
        work_dir = tmp_path / "work"
        work_dir.mkdir()
        spec = ChildSpec(
            config=work_dir / "c.py", work_dir=work_dir, clock_started_s=0.0, limit_s=1e9, reserve_s=0.0,
            action="resume", run_id="r", fingerprint="f", on_changed_data=on_changed_data,
        )  # fmt: skip
        session = WorkerSession(spec, rank=0, world_size=1)
        SessionRecord(run_id="r", fingerprint="f").write(session.files.session)
        session.open()
        sessions.append(session)
        dataset = PositionalDataset(Folder(root))
        runner: Any = SimpleNamespace(
            message_hub=hub, hooks=[], iter=4, train_dataloader=SimpleNamespace(dataset=dataset)
        )
        session.attach(runner, "")
        session.loaded(runner, None)
        return session

    yield begin
    for session in sessions:
        session.close()


def test_a_session_on_changed_data_goes_on_and_says_so_everywhere(resumed: Any, root: Path) -> None:
    session = resumed(root, "go-on")
    record = SessionRecord.read(session.files.session)
    assert (record.data["count"], record.exactness.bitwise, record.exactness.grade) == (5, False, "neither")
    assert "gone: images/5.png" in (record.exactness.reasons or [""])[0]
    assert len(record.changes) == 2
    [warning] = [event for event in read_events(session.files.events) if event.event == "warning"]
    assert "gone: images/5.png. Training goes on with what is here." in warning.data["message"]


def test_a_session_that_shall_not_train_on_changed_data_refuses(resumed: Any, root: Path) -> None:
    with pytest.raises(DataError, match=r"here are 5: gone: images/5\.png"):
        resumed(root, "fail")
