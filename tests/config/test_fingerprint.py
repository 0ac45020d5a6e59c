"""Which configs are the same run."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.configs import CONFIGS, patched, small, wrapped

from mapsage_kaggle.config.fingerprint import DEFAULT_SEED, fingerprint
from mapsage_kaggle.config.reading import read_config


def shipped(name: str, *overrides: str) -> str:
    return fingerprint(read_config(CONFIGS / f"{name}.py", overrides))


def test_the_train_and_the_resume_config_are_the_same_run() -> None:
    assert shipped("train_earthvqa_kaggle") == shipped("resume_earthvqa_kaggle")


def test_the_shipped_runs_differ_from_each_other() -> None:
    names = ("train_earthvqa_kaggle", "train_loveda_kaggle", "demo")
    assert len({shipped(name) for name in names}) == len(names)


@pytest.mark.parametrize(
    ("optim_wrapper", "known"),
    [
        ({"optimizer": {"type": "SGD", "lr": 0.1}}, "54943f56f26ae736"),
        ({"clip_grad": {"max_norm": 1.0}}, "fde2511f99cbb80f"),
    ],
)
def test_a_config_keeps_the_fingerprint_that_its_records_state(
    optim_wrapper: dict[str, object], known: str
) -> None:
    loader = {"batch_size": 4, "dataset": {"type": "LoveDADataset", "pipeline": [{"type": "Resize"}]}}
    cfg = {"model": {"type": "EncoderDecoder"}, "train_dataloader": loader, "optim_wrapper": optim_wrapper}
    assert fingerprint(cfg) == known


@pytest.mark.parametrize("counts", [None, 0, 1])
def test_an_optimizer_that_accumulates_nothing_steps_each_iteration(counts: int | None) -> None:
    cfg = {"train_dataloader": {"batch_size": 4}, "optim_wrapper": {}}
    assert fingerprint({**cfg, "optim_wrapper": {"accumulative_counts": counts}}) == fingerprint(cfg)
    assert fingerprint({**cfg, "optim_wrapper": {"accumulative_counts": 2}}) != fingerprint(cfg)


def test_what_a_config_imports_is_known_by_its_name_and_not_by_its_address() -> None:
    def with_function() -> str:
        def scale(value: int) -> int:
            return value

        return fingerprint({"model": {"type": "Net", "scale": scale}})

    assert with_function() == with_function()


@pytest.mark.parametrize(
    "override",
    [
        "train_dataloader.dataset.data_root=/elsewhere",
        "train_dataloader.num_workers=0",
        "train_cfg.max_iters=80000",
        "train_cfg.val_interval=7",
        "model.backbone.init_cfg.checkpoint=mine.pth",
        "model.backbone.with_cp=True",
        "model.decode_head.norm_cfg.type=BN",
        "work_dir=/elsewhere",
        "load_from=iter_8.pth",
        "default_hooks.logger.interval=1",
        "log_level=DEBUG",
    ],
)
def test_what_does_not_change_the_run_does_not_change_the_fingerprint(override: str) -> None:
    assert shipped("train_earthvqa_kaggle", override) == shipped("train_earthvqa_kaggle")


@pytest.mark.parametrize(
    "override",
    [
        "optim_wrapper.optimizer.lr=1e-4",
        "optim_wrapper.clip_grad.max_norm=2.0",
        "model.decode_head.num_classes=9",
        "model.backbone.embed_dims=32",
        "train_dataloader.dataset.pipeline.4.prob=0.25",
        "train_dataloader.batch_size=8",
        "randomness.seed=1",
    ],
)
def test_what_changes_the_run_changes_the_fingerprint(override: str) -> None:
    assert shipped("train_earthvqa_kaggle", override) != shipped("train_earthvqa_kaggle")


def test_classes_count_wherever_they_are_stated() -> None:
    named = small(train_dataloader__dataset__metainfo={"classes": ("a", "b")})
    assert fingerprint(named) != fingerprint(small())


def test_accumulated_batches_are_the_batch_that_the_optimizer_sees() -> None:
    accumulated = small(train_dataloader__batch_size=2, optim_wrapper__accumulative_counts=2)
    assert fingerprint(accumulated) == fingerprint(small())


def test_a_scope_before_a_type_is_the_same_type() -> None:
    scoped = small(model__type="mmseg::EncoderDecoder", model__decode_head__norm_cfg__type="mmengine::SyncBN")
    assert fingerprint(scoped) == fingerprint(small())


@pytest.mark.parametrize("micro_batch", [None, 2, 1])
def test_the_patched_config_is_the_same_run(micro_batch: int | None) -> None:
    assert fingerprint(patched(micro_batch=micro_batch)) == fingerprint(small())


def test_the_fingerprint_is_the_same_in_another_process() -> None:
    # Frozen: earlier sessions' records and checkpoints hold it.
    assert fingerprint(small()) == "93295c6ede23b12a"


def test_each_of_several_data_sets_counts_in_the_fingerprint() -> None:
    cfg, other = wrapped("ConcatDataset"), wrapped("ConcatDataset")
    other["train_dataloader"]["dataset"]["datasets"][0]["pipeline"] = []
    assert fingerprint(cfg) != fingerprint(other)


def test_a_seed_that_is_left_out_is_the_one_that_is_taken_then() -> None:
    cfg = read_config(CONFIGS / "demo.py")
    cfg["randomness"] = {}
    left_out = fingerprint(cfg)
    cfg["randomness"] = {"seed": None}
    assert fingerprint(cfg) == left_out
    cfg["randomness"] = {"seed": DEFAULT_SEED}
    assert fingerprint(cfg) == left_out
    cfg["randomness"] = {"seed": DEFAULT_SEED + 1}
    assert fingerprint(cfg) != left_out


def test_values_without_a_name_of_their_own_count_by_what_they_are() -> None:
    cfg = read_config(CONFIGS / "demo.py")
    prints = set()
    for value in (Path("a"), Path("b"), len, max):
        cfg["model"]["decode_head"]["extra"] = value
        prints.add(fingerprint(cfg))
    assert len(prints) == 4


def test_how_often_a_data_set_is_repeated_does_not_count() -> None:
    cfg, other = wrapped("RepeatDataset"), wrapped("RepeatDataset")
    other["train_dataloader"]["dataset"]["times"] = 30
    assert fingerprint(cfg) == fingerprint(other)
