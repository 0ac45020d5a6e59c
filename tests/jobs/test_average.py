"""Averaged weights are the mean, BatchNorm sees images anew, and the result is told from its parents."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from support.models import DEMO, demo, write_model
from support.standin import StandIn

from mapsage_kaggle.checkpoints.inspect import inspect
from mapsage_kaggle.data.scenes import generate_scenes
from mapsage_kaggle.engine.jobs.average import average, batch_norms, gather_statistics
from mapsage_kaggle.engine.jobs.inference import load_model
from mapsage_kaggle.errors import CheckpointError, UsageError
from mapsage_kaggle.jobs.average import average as average_files
from mapsage_kaggle.jobs.subject import ModelOptions, open_subject
from mapsage_kaggle.paths import KagglePaths


def write(path: Path, **state: torch.Tensor) -> tuple[Path, str]:
    torch.save({"meta": {"iter": 8}, "state_dict": state}, path)
    return path, str(inspect(path).sha256)


def test_weights_are_the_mean_and_counters_are_the_last(tmp_path: Path) -> None:
    parents = [
        write(tmp_path / f"{n}.pth", w=torch.full((2,), float(n)), seen=torch.tensor(10 * n))
        for n in (1, 2, 6)
    ]

    found = average(parents)

    assert found["w"].tolist() == [3.0, 3.0]
    assert found["w"].dtype == torch.float32
    assert found["seen"].item() == 60


def test_half_precision_is_added_up_without_overflow(tmp_path: Path) -> None:
    large = torch.full((1,), 60000.0, dtype=torch.float16)
    parents = [write(tmp_path / "a.pth", w=large), write(tmp_path / "b.pth", w=large)]

    assert average([*parents])["w"].item() == 60000.0


def test_checkpoints_of_different_models_are_refused_with_what_differs(tmp_path: Path) -> None:
    one = write(tmp_path / "a.pth", w=torch.zeros(2), b=torch.zeros(1))
    other = write(tmp_path / "b.pth", w=torch.zeros(3), b=torch.zeros(1))

    with pytest.raises(CheckpointError, match=r"b\.pth is of another model than .*a\.pth: w differs"):
        average([one, other])


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scenes")
    generate_scenes(folder, train=8, val=2, size=128, seed=1)
    return folder


def test_batch_norm_gets_the_plain_mean_of_what_it_sees_and_nothing_else_changes(
    scenes: Path, tmp_path: Path
) -> None:
    cfg = demo(scenes, "train_dataloader.batch_size=4")
    model = load_model(cfg, write_model(cfg, tmp_path / "w.pth", 1), device="cpu")
    layer = batch_norms(model.net)[-1]
    before = {name: value.clone() for name, value in model.net.state_dict().items()}
    means: list[torch.Tensor] = []
    hook = layer.register_forward_pre_hook(lambda _, inputs: means.append(inputs[0].mean((0, 2, 3))))

    looked = gather_statistics(model, cfg, 8, 0, lambda *_, **__: None)
    hook.remove()

    assert looked == 8
    assert len(means) == 2
    assert torch.allclose(layer.running_mean, torch.stack(means).mean(0), atol=1e-5)  # type: ignore[arg-type]
    assert not torch.allclose(layer.running_mean, before["decode_head.fusion_conv.bn.running_mean"])  # type: ignore[arg-type]
    changed = {name for name, value in model.net.state_dict().items() if not torch.equal(value, before[name])}
    assert {name.rpartition(".")[2] for name in changed} <= {
        "running_mean", "running_var", "num_batches_tracked",
    }  # fmt: skip
    assert not layer.training


def test_the_same_images_are_seen_each_time(scenes: Path, tmp_path: Path) -> None:
    cfg = demo(scenes, "train_dataloader.batch_size=4")
    found = []
    for _ in range(2):
        model = load_model(cfg, write_model(cfg, tmp_path / "w.pth", 1), device="cpu")
        gather_statistics(model, cfg, 8, 3, lambda *_, **__: None)
        found.append(batch_norms(model.net)[0].running_var)

    assert torch.equal(*found)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["iter_8.pth", "best_mIoU_iter_8.pth", "epoch_3.pth", "latest.pth", "x.bin"])
def test_it_is_never_named_like_something_to_resume_from(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match="nothing can be resumed"):
        average_files(subject(tmp_path), [], out=tmp_path / name)


def test_one_checkpoint_alone_or_twice_is_refused(tmp_path: Path) -> None:
    given = subject(tmp_path)
    for others in ([], [given.checkpoint]):
        with pytest.raises(UsageError, match="two or more different"):
            average_files(given, others, out=tmp_path / "averaged.pth")


def subject(folder: Path) -> Any:
    paths = KagglePaths(input=folder / "input", working=folder / "working", temp=folder / "temp")
    for place in (paths.input, paths.working, paths.temp):
        place.mkdir()
    file, _ = write(folder / "a.pth", w=torch.zeros(1))
    return open_subject(ModelOptions(config=DEMO, checkpoint=file), paths=paths)


@pytest.mark.slow(scope_s=10)
def test_the_command_writes_weights_with_their_origin_and_measures_the_parents_too(
    tmp_path: Path,
) -> None:
    stand = StandIn.with_scenes(tmp_path / "kaggle", train=4, val=3, size=96)
    cfg = demo(stand.root / "input" / "scenes")
    patched = stand.run("patch", DEMO, "--out", stand.root / "config.py")  # as a session writes it
    assert patched.returncode == 0, patched.stderr
    parents = [write_model(cfg, stand.root / f"parent_{seed}.pth", seed) for seed in (1, 2)]
    out = stand.root / "working" / "averaged.pth"

    done = stand.run(
        "average", *parents, "--out", out, "--batch-norm-images", "4", "--json",
        "--threads", "1", "--device", "cpu", "--resamples", "200",
    )  # fmt: skip

    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert [Path(item["checkpoint"]).name for item in found["evaluations"]] == [
        "averaged.pth", "parent_1.pth", "parent_2.pth",
    ]  # fmt: skip
    best = max(found["evaluations"][1:], key=lambda item: item["miou"])
    assert found["evaluations"][0]["against"]["checkpoint"] == best["checkpoint"]
    assert (found["batch_norms"], found["batch_norm_images"]) == (5, 4)
    judged = inspect(out)
    assert judged.verdict == "weights-only"
    content = torch.load(out, weights_only=True)
    assert [Path(item["file"]).name for item in content["meta"]["averaged"]] == [
        "parent_1.pth",
        "parent_2.pth",
    ]
    assert content["meta"]["averaged"][0]["sha256"] == inspect(parents[0]).sha256


def test_a_folder_without_a_config_asks_for_one(tmp_path: Path) -> None:
    stand = StandIn.with_scenes(tmp_path / "kaggle", train=1, val=1, size=64, cold=True)
    file, _ = write(tmp_path / "a.pth", w=torch.zeros(1))

    done = stand.run("average", file, file, "--out", tmp_path / "averaged.pth")

    assert done.returncode == 2
    assert "--config" in done.stderr
