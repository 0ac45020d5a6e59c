"""The patch: what it changes in a config and why, and which configs it takes for the same run."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from mmengine.config import Config

from mapsage_kaggle.config.fingerprint import fingerprint
from mapsage_kaggle.config.patch import (
    ConfigPatch,
    PatchContext,
    apply_patch,
    for_inference,
    plan_patch,
    write_config,
)
from mapsage_kaggle.config.reading import (
    changes_between,
    data_roots_of,
    datasets_of,
    pretrained_of,
    read_config,
    weights_files,
)
from mapsage_kaggle.data.check import check_data_of
from mapsage_kaggle.data.find import find_data, find_pretrained
from mapsage_kaggle.errors import ConfigError, DataError

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
SOURCE = Path("small.py")


def small(**changes: Any) -> dict[str, Any]:
    """Return a small iteration-based config; ``a__b=value`` sets ``a.b``."""
    cfg: dict[str, Any] = {
        "model": {
            "type": "EncoderDecoder",
            "backbone": {"type": "MixVisionTransformer", "init_cfg": None},
            "decode_head": {
                "type": "SegformerHead", "num_classes": 8, "dropout_ratio": 0.0,
                "norm_cfg": {"type": "SyncBN", "requires_grad": True},
                "loss_decode": {"type": "CrossEntropyLoss"},
            },
        },
        "train_dataloader": {
            "batch_size": 4, "num_workers": 2, "persistent_workers": True,
            "sampler": {"type": "InfiniteSampler", "shuffle": True},
            "dataset": {
                "type": "EarthVQADataset", "data_root": "data/earthvqa",
                "data_prefix": {"img_path": "Train/images_png", "seg_map_path": "Train/masks_png"},
                "pipeline": [{"type": "LoadImageFromFile"}, {"type": "RandomFlip", "prob": 0.5}],
            },
        },
        "val_dataloader": {
            "batch_size": 1, "num_workers": 2, "persistent_workers": True,
            "sampler": {"type": "DefaultSampler", "shuffle": False},
            "dataset": {"type": "EarthVQADataset", "data_root": "data/earthvqa", "pipeline": []},
        },
        "val_cfg": {"type": "ValLoop"},
        "val_evaluator": {"type": "IoUMetric", "iou_metrics": ["mIoU"]},
        "optim_wrapper": {"type": "OptimWrapper", "optimizer": {"type": "AdamW", "lr": 6e-5}},
        "param_scheduler": [
            {"type": "LinearLR", "by_epoch": False, "begin": 0, "end": 10},
            {"type": "PolyLR", "by_epoch": False, "begin": 10, "end": 100},
        ],
        "train_cfg": {"type": "IterBasedTrainLoop", "max_iters": 100, "val_interval": 20},
        "default_hooks": {
            "checkpoint": {
                "type": "CheckpointHook", "by_epoch": False, "interval": 20,
                "save_best": "mIoU", "rule": "greater",
            },
            "sampler_seed": {"type": "DistSamplerSeedHook"},
        },
        "env_cfg": {"cudnn_benchmark": True, "dist_cfg": {"backend": "nccl"}},
        "randomness": {"seed": 3},
    }  # fmt: skip
    for key, value in changes.items():
        *parents, last = key.split("__")
        node = cfg
        for name in parents:
            node = node.setdefault(name, {})
        node[last] = value
    return cfg


def without(cfg: dict[str, Any], key: str) -> dict[str, Any]:
    *parents, last = key.split(".")
    node = cfg
    for name in parents:
        node = node[name]
    del node[last]
    return cfg


def planned(cfg: dict[str, Any] | None = None, **facts: Any) -> ConfigPatch:
    return plan_patch(small() if cfg is None else cfg, SOURCE, PatchContext(work_dir=Path("work"), **facts))


def patched(cfg: dict[str, Any] | None = None, **facts: Any) -> Any:
    source = small() if cfg is None else cfg
    return apply_patch(Config(copy.deepcopy(source)), planned(source, **facts))


# --- the fingerprint -------------------------------------------------------------------------------------


def shipped(name: str, *overrides: str) -> str:
    return fingerprint(read_config(CONFIGS / f"{name}.py", overrides))


def test_the_train_and_the_resume_config_are_the_same_run() -> None:
    assert shipped("train_earthvqa_kaggle") == shipped("resume_earthvqa_kaggle")


def test_the_shipped_runs_differ_from_each_other() -> None:
    names = ("train_earthvqa_kaggle", "train_loveda_kaggle", "demo")
    assert len({shipped(name) for name in names}) == len(names)


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


# --- what is refused -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "train_cfg",
    [
        {"type": "EpochBasedTrainLoop", "max_epochs": 12},
        {"type": "mmengine.EpochBasedTrainLoop", "max_epochs": 12},
        {"by_epoch": True, "max_epochs": 12},
        {"max_epochs": 12},
    ],
)
def test_a_config_that_trains_by_epochs_is_refused_with_what_to_write_instead(
    train_cfg: dict[str, Any],
) -> None:
    with pytest.raises(ConfigError, match=r"small\.py trains by epochs .*IterBasedTrainLoop"):
        planned(small(train_cfg=train_cfg))


@pytest.mark.parametrize(
    ("cfg", "message"),
    [
        (without(small(), "train_cfg"), "no training loop"),
        (small(train_cfg=None), "no training loop"),
        (small(train_cfg__type="MyLoop"), r"a training loop of its own \(MyLoop\)"),
        (small(train_cfg__max_iters=0), "max_iters is 0"),
        (small(train_cfg__max_iters="many"), "max_iters is 'many'"),
        (small(train_cfg__max_iters=True), "max_iters is True"),
        (without(small(), "model"), "has no model"),
        (without(small(), "train_dataloader"), "has no train_dataloader"),
        (without(small(), "optim_wrapper"), "has no optim_wrapper"),
        (small(train_dataloader__sampler__type="ClassBalanced"), "samples with ClassBalanced"),
        (without(small(), "train_dataloader.sampler"), "samples with no sampler"),
    ],
)
def test_what_the_kit_cannot_train_is_refused(cfg: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        planned(cfg)


def test_an_iteration_based_config_without_a_type_is_taken() -> None:
    assert planned(small(train_cfg={"by_epoch": False, "max_iters": 100})).max_iters == 100


def test_a_batch_smaller_than_the_number_of_gpus_is_refused() -> None:
    with pytest.raises(ConfigError, match="batch of 4 images, too few for 5 GPUs"):
        planned(world_size=5, on_gpu=True)


# --- reading and overriding ------------------------------------------------------------------------------


def test_overrides_are_read_as_mmengine_reads_them() -> None:
    cfg = read_config(
        CONFIGS / "demo.py",
        ["optim_wrapper.optimizer.lr=1e-4", "optim_wrapper.optimizer.betas=[0.8,0.9]", "log_level=DEBUG",
         "train_dataloader.dataset.pipeline.4.prob=0.25"],
    )  # fmt: skip
    assert cfg.optim_wrapper.optimizer.lr == 1e-4
    assert cfg.optim_wrapper.optimizer.betas == [0.8, 0.9]
    assert cfg.log_level == "DEBUG"
    assert cfg.train_dataloader.dataset.pipeline[4].prob == 0.25


@pytest.mark.parametrize(
    "override",
    [
        "max_iters",
        "=3",
        "optim_wrapper.clip_grad=[1,(2]",
        "train_dataloader.dataset.pipeline.99.prob=1",
        "model.type.x=1",
    ],
)
def test_an_override_that_does_not_fit_is_a_config_error(override: str) -> None:
    with pytest.raises(ConfigError, match=r"--set"):
        read_config(CONFIGS / "demo.py", [override])


@pytest.mark.parametrize(
    "text",
    ["model = dict(", "_base_ = ['./nowhere.py']", "raise SystemError('no')", "import sys; sys.exit(7)"],
)
def test_a_config_that_does_not_parse_is_named(tmp_path: Path, text: str) -> None:
    path = tmp_path / "broken.py"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"broken\.py does not parse"):
        read_config(path)


def test_a_config_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"There is no config at .*nowhere\.py"):
        read_config(tmp_path / "nowhere.py")


# --- for inference ---------------------------------------------------------------------------------------


def test_a_config_that_trains_by_epochs_or_not_at_all_can_be_asked() -> None:
    cfg = Config(small(train_cfg={"by_epoch": True, "max_epochs": 3}))

    found = for_inference(cfg, {"data/earthvqa": Path("/found")})

    assert found.val_dataloader.dataset.data_root == "/found"
    assert "mapsage_kaggle.engine.register" in found.custom_imports.imports
    assert for_inference(Config({"model": {"type": "EncoderDecoder"}}), {}).model.type


def test_inference_needs_no_pretrained_weights_and_no_second_gpu() -> None:
    backbone = {"type": "ResNet", "norm_cfg": {"type": "SyncBN"}, "init_cfg": {"type": "Pretrained"}}
    source = {"model": {"type": "EncoderDecoder", "pretrained": "x.pth", "backbone": backbone}}

    found = for_inference(Config(copy.deepcopy(source)), {})

    assert found.model.backbone.norm_cfg.type == "BN"
    assert not found.model.backbone.get("init_cfg")
    assert not found.model.get("pretrained")


# --- the patch -------------------------------------------------------------------------------------------


def test_what_changed_since_the_session_before_is_told_by_key_and_not_where_things_lie() -> None:
    def effective(mounted: str, **changes: Any) -> str:
        cfg = patched(
            small(launcher="none", **changes),
            data_roots={"data/earthvqa": Path(mounted)},
            checkpoint=Path(mounted, "iter_8.pth"),
            action="resume",
        )
        text: str = cfg.pretty_text
        return text

    roots = {"data_root": ["/kaggle/input/earthvqa/a-long-name-that-fills-the-line", "/kaggle/input/more"]}
    before = effective("/kaggle/input/earthvqa", val_dataloader__dataset=roots)
    moved = {"data_root": ["/kaggle/input/datasets/someone/earthvqa", "/kaggle/input/datasets/someone/more"]}
    after = effective("/kaggle/input/datasets/someone/earthvqa", val_dataloader__dataset=moved)
    assert before != after
    assert changes_between(before, after.replace("launcher = 'none'", "launcher = 'pytorch'")) == ()
    other = effective(
        "/kaggle/input/datasets/someone/earthvqa", val_dataloader__dataset=moved,
        optim_wrapper__optimizer__lr=1e-4, model__decode_head__dropout_ratio=0.1,
    )  # fmt: skip
    assert changes_between(before, other) == (
        "-model.decode_head.dropout_ratio = 0.0",
        "+model.decode_head.dropout_ratio = 0.1",
        "-optim_wrapper.optimizer.lr = 6e-05",
        "+optim_wrapper.optimizer.lr = 0.0001",
    )


@pytest.mark.parametrize("text", ["import os\na = os.getpid()\n", "a = inf\n", "a = dict(\n", "a = [*b]\n"])
def test_a_config_of_an_earlier_session_is_read_and_never_run(text: str) -> None:
    lines = [f"-{line}" for line in text.splitlines()]
    assert changes_between(text, "b = 1\n") == (*lines, "+b = 1")


def test_the_source_config_is_left_as_it_is() -> None:
    source = small()
    before = copy.deepcopy(source)
    cfg = Config(copy.deepcopy(source))
    apply_patch(cfg, planned(source, data_roots={"data/earthvqa": Path("/found")}, micro_batch=1))
    assert source == before
    assert cfg.to_dict() == before


@pytest.mark.parametrize(
    "facts",
    [
        {},
        {"micro_batch": 2},
        {"data_roots": {"data/earthvqa": Path("/found")}},
        {"action": "resume", "checkpoint": Path("/in/iter_8.pth"), "checkpoint_seed": 3},
        {"world_size": 2, "ranks_here": 2, "on_gpu": True, "deterministic": True, "with_cp": True},
        {"extend_to": 200},
    ],
)
def test_patching_what_is_patched_already_changes_nothing(facts: dict[str, Any]) -> None:
    once = patched(**facts)
    again = planned(once.to_dict(), **facts)
    assert again.changes == ()
    assert again.effective_batch == 4
    assert again.fingerprint == fingerprint(small())


def test_the_diff_names_each_key_with_its_reason_and_both_values() -> None:
    diff = planned(data_roots={"data/earthvqa": Path("/found")}).diff()
    assert diff.startswith("--- small.py\n+++ effective config\n")
    assert "@@ val_dataloader.dataset.data_root: the data set as it is mounted here @@" in diff
    assert "-val_dataloader.dataset.data_root = 'data/earthvqa'\n" in diff
    assert "+val_dataloader.dataset.data_root = '/found'\n" in diff
    assert "+work_dir = 'work'\n" in diff
    assert "-work_dir" not in diff


def test_the_patched_config_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    effective = patched()
    write_config(effective, planned(), tmp_path)
    assert read_config(tmp_path / "config.py").to_dict() == effective.to_dict()


def test_a_seed_is_fixed_where_the_config_has_none() -> None:
    cfg = patched(without(small(), "randomness"))
    assert cfg.randomness.seed == 0


def test_a_resume_keeps_the_checkpoint_s_seed() -> None:
    facts = {"action": "resume", "checkpoint": Path("/in/iter_8.pth"), "checkpoint_seed": 77}
    assert patched(**facts).randomness.seed == 77
    assert planned(**facts).seed == 77


def test_a_fresh_start_drops_what_the_config_would_have_loaded() -> None:
    cfg = patched(small(load_from="/gone/iter_8.pth", resume=True))
    assert (cfg.load_from, cfg.resume) == (None, False)


def test_a_resume_loads_the_chosen_checkpoint() -> None:
    cfg = patched(action="resume", checkpoint=Path("/in/iter_8.pth"))
    assert (cfg.load_from, cfg.resume) == ("/in/iter_8.pth", True)


def test_weights_alone_are_loaded_without_resuming() -> None:
    cfg = patched(action="weights-only", checkpoint=Path("/in/best.pth"))
    assert (cfg.load_from, cfg.resume) == ("/in/best.pth", False)


def test_the_config_s_own_checkpoint_schedule_is_kept_by_the_kit() -> None:
    patch = planned()
    assert (patch.save_interval, patch.val_interval) == (20, 20)
    assert patch.save_best == ("mIoU",)
    assert patch.best_rules == {"mIoU": "greater"}
    assert patched().default_hooks.checkpoint is None


@pytest.mark.parametrize(
    "interval", [{"by_epoch": True, "interval": 1}, {"by_epoch": False, "interval": -1}, {}]
)
def test_a_checkpoint_hook_that_does_not_count_iterations_leaves_the_clock(interval: dict[str, Any]) -> None:
    patch = planned(small(default_hooks__checkpoint={"type": "CheckpointHook", **interval}))
    assert patch.save_interval == 0


def test_a_config_that_never_validates_has_no_interval_of_it() -> None:
    cfg = without(without(small(), "val_cfg"), "val_dataloader")
    assert planned(cfg).val_interval == 0


# --- the parts of a machine ------------------------------------------------------------------------------


def test_syncbn_becomes_bn_where_there_is_one_rank_or_no_gpu() -> None:
    assert patched().model.decode_head.norm_cfg.type == "BN"
    assert patched(on_gpu=True).model.decode_head.norm_cfg.type == "BN"
    assert patched(world_size=2, ranks_here=2).model.decode_head.norm_cfg.type == "BN"


def test_syncbn_stays_on_several_gpus() -> None:
    cfg = patched(on_gpu=True, world_size=2, ranks_here=2)
    assert cfg.model.decode_head.norm_cfg.type == "SyncBN"
    assert cfg.env_cfg.dist_cfg.backend == "nccl"


def test_mixed_precision_is_dropped_without_a_gpu_and_kept_with_one() -> None:
    amp = {"optim_wrapper__type": "AmpOptimWrapper", "optim_wrapper__dtype": "float16"}
    cfg = patched(small(**amp, optim_wrapper__loss_scale="dynamic"))
    assert cfg.optim_wrapper.type == "OptimWrapper"
    assert not {"dtype", "loss_scale"} & set(cfg.optim_wrapper)
    cfg = patched(small(**amp), on_gpu=True)
    assert (cfg.optim_wrapper.type, cfg.optim_wrapper.dtype) == ("AmpOptimWrapper", "float16")


@pytest.mark.parametrize(("world_size", "share"), [(1, 4), (2, 2), (3, 2), (4, 1)])
def test_a_batch_is_shared_among_the_ranks(world_size: int, share: int) -> None:
    cfg = patched(world_size=world_size, ranks_here=world_size, on_gpu=True, num_cpus=8)
    assert cfg.train_dataloader.batch_size == share
    assert cfg.train_dataloader.batch_sampler.effective_batch == 4


def test_a_micro_batch_is_never_more_than_a_rank_s_share() -> None:
    assert planned(micro_batch=16).micro_batch == 4
    assert planned(micro_batch=3, world_size=2, on_gpu=True).micro_batch == 2


def test_data_workers_are_no_more_than_the_cores_of_a_rank() -> None:
    cfg = patched(small(train_dataloader__num_workers=8, val_dataloader__num_workers=8), num_cpus=2)
    assert (cfg.train_dataloader.num_workers, cfg.val_dataloader.num_workers) == (2, 2)


def test_without_data_workers_nothing_asks_for_them() -> None:
    cfg = small(train_dataloader__prefetch_factor=4, val_dataloader__prefetch_factor=4)
    cfg = patched(cfg, num_cpus=1, ranks_here=2, world_size=2)
    for loader in (cfg.train_dataloader, cfg.val_dataloader):
        assert loader.num_workers == 0
        assert loader.persistent_workers is False
        assert loader.get("prefetch_factor") is None


def test_a_config_that_has_no_data_workers_but_keeps_them_is_mended() -> None:
    loader = {"num_workers": 0, "persistent_workers": True, "prefetch_factor": 2}
    changes = {
        f"{name}__{key}": value
        for name in ("train_dataloader", "val_dataloader")
        for key, value in loader.items()
    }
    cfg = patched(small(**changes))
    for name in ("train_dataloader", "val_dataloader"):
        assert cfg[name].persistent_workers is False
        assert cfg[name].get("prefetch_factor") is None


# --- weights ---------------------------------------------------------------------------------------------

PRETRAINED = {"type": "Pretrained", "checkpoint": "https://download.example/mit_b2.pth"}


def test_pretrained_weights_are_taken_from_the_attached_file() -> None:
    cfg = small(model__backbone__init_cfg=PRETRAINED)
    effective = patched(cfg, pretrained={PRETRAINED["checkpoint"]: Path("/in/mit_b2.pth")})
    assert effective.model.backbone.init_cfg.checkpoint == "/in/mit_b2.pth"
    assert planned(cfg, pretrained={PRETRAINED["checkpoint"]: Path("/in/mit_b2.pth")}).warnings == ()


def test_pretrained_weights_that_are_not_attached_are_dropped_with_one_warning() -> None:
    cfg = small(model__backbone__init_cfg=PRETRAINED)
    assert patched(cfg).model.backbone.init_cfg is None
    (warning,) = planned(cfg).warnings
    assert "mit_b2.pth" in warning
    assert "scratch" in warning


def test_a_resume_needs_no_pretrained_weights_and_warns_of_none() -> None:
    cfg = small(model__backbone__init_cfg=PRETRAINED)
    facts = {"action": "resume", "checkpoint": Path("/in/iter_8.pth")}
    assert patched(cfg, **facts).model.backbone.init_cfg is None
    assert planned(cfg, **facts).warnings == ()


def test_of_a_list_of_initialisers_only_the_pretrained_one_goes() -> None:
    normal = {"type": "Normal", "std": 0.01}
    cfg = small(model__backbone__init_cfg=[normal, PRETRAINED])
    assert patched(cfg).model.backbone.init_cfg == [normal]
    found = patched(cfg, pretrained={PRETRAINED["checkpoint"]: Path("/in/mit_b2.pth")})
    assert found.model.backbone.init_cfg[1].checkpoint == "/in/mit_b2.pth"


@pytest.mark.parametrize("place", ["model__pretrained", "model__backbone__pretrained"])
def test_the_older_key_for_pretrained_weights_is_understood(place: str) -> None:
    cfg = small(**{place: "open-mmlab://resnet50_v1c"})
    assert pretrained_of(cfg) == ("open-mmlab://resnet50_v1c",)
    node = patched(cfg).model
    for name in place.split("__")[1:]:
        node = node[name]
    assert node is None


# --- data sets -------------------------------------------------------------------------------------------


def wrapped(kind: str) -> dict[str, Any]:
    inner = small()["train_dataloader"]["dataset"]
    other = {**copy.deepcopy(inner), "data_root": "data/more"}
    dataset = {
        "RepeatDataset": {"type": "RepeatDataset", "times": 3, "dataset": inner},
        "ConcatDataset": {"type": "ConcatDataset", "datasets": [inner, other]},
        "both": {
            "type": "RepeatDataset",
            "times": 2,
            "dataset": {"type": "ConcatDataset", "datasets": [inner, other]},
        },
        "tuple": {"type": "ConcatDataset", "datasets": (inner, other)},
    }[kind]
    return small(train_dataloader__dataset=dataset)


ROOTS = {"data/earthvqa": Path("/in/one"), "data/more": Path("/in/two")}


@pytest.mark.parametrize("kind", ["RepeatDataset", "ConcatDataset", "both", "tuple"])
def test_data_roots_within_wrappers_are_found_and_patched(kind: str) -> None:
    cfg = wrapped(kind)
    names = set(data_roots_of(cfg))
    assert names == {"data/earthvqa"} if kind == "RepeatDataset" else set(ROOTS)
    dataset = patched(cfg, data_roots=ROOTS).train_dataloader.dataset
    assert dataset.type == "MapsagePositional"
    inner = [item["data_root"] for item in datasets_of(dataset.to_dict()) if "data_root" in item]
    assert inner == [str(ROOTS[name]) for name in ROOTS if name in names]


def test_each_of_several_data_sets_counts_in_the_fingerprint() -> None:
    cfg, other = wrapped("ConcatDataset"), wrapped("ConcatDataset")
    other["train_dataloader"]["dataset"]["datasets"][0]["pipeline"] = []
    assert fingerprint(cfg) != fingerprint(other)


def test_how_often_a_data_set_is_repeated_does_not_count() -> None:
    cfg, other = wrapped("RepeatDataset"), wrapped("RepeatDataset")
    other["train_dataloader"]["dataset"]["times"] = 30
    assert fingerprint(cfg) == fingerprint(other)


def test_metrics_in_a_list_are_replaced_one_by_one() -> None:
    cfg = patched(small(val_evaluator=[{"type": "IoUMetric"}, {"type": "CityscapesMetric"}]))
    assert [item.type for item in cfg.val_evaluator] == ["MapsageIoUMetric", "CityscapesMetric"]


def test_a_user_s_own_imports_stay_beside_the_kit_s() -> None:
    cfg = patched(small(custom_imports={"imports": ["my_module"], "allow_failed_imports": False}))
    assert cfg.custom_imports.imports == ["my_module", "mapsage_kaggle.engine.register"]


# --- extending -------------------------------------------------------------------------------------------


def test_extending_moves_the_end_of_the_loop_and_of_the_schedulers_that_end_with_it() -> None:
    cfg = patched(extend_to=200)
    assert cfg.train_cfg.max_iters == 200
    assert [item.end for item in cfg.param_scheduler] == [10, 200]
    assert planned(extend_to=200).max_iters == 200


def test_extending_to_less_is_refused() -> None:
    with pytest.raises(ConfigError, match="--extend-to 50 is below"):
        planned(extend_to=50)


WARM_UP = {"type": "LinearLR", "by_epoch": False, "begin": 0, "end": 10}


def cosine(**options: Any) -> dict[str, Any]:
    return {"type": "CosineAnnealingLR", "by_epoch": False, **options}


@pytest.mark.parametrize(
    ("scheduler", "expected"),
    [
        ({"type": "PolyLR", "by_epoch": False, "end": 100}, {"end": 200}),
        ({"type": "PolyLR", "by_epoch": False}, {"end": None}),
        (cosine(T_max=100), {"T_max": 200, "end": None}),
        (cosine(T_max=90, begin=10, end=100), {"T_max": 190, "end": 200}),
        (cosine(T_max=100, begin=10, end=100), {"T_max": 200, "end": 200}),
        (cosine(T_max=25, end=100), {"T_max": 25, "end": 200}),
        (cosine(T_max=400, end=100), {"T_max": 400, "end": 200}),
        (cosine(T_max=25, end=10**9), {"T_max": 25, "end": 10**9}),
        ({"type": "OneCycleLR", "by_epoch": False, "total_steps": 100}, {"total_steps": 200}),
        ({"type": "MultiStepLR", "by_epoch": False, "milestones": [50]}, {"milestones": [50]}),
        (WARM_UP, {"end": 10}),
        ({"type": "PolyLR", "end": 99}, {"end": 99}),
    ],
)
def test_extending_lays_out_anew_what_ends_with_the_run(scheduler: Any, expected: Any) -> None:
    for cfg in (small(param_scheduler=scheduler), small(param_scheduler=[scheduler])):
        found = patched(cfg, extend_to=200).param_scheduler
        found = found if isinstance(found, dict) else found[0]
        assert {name: found.get(name) for name in expected} == expected


def test_extending_reaches_the_schedulers_of_several_optimizers() -> None:
    poly = {"type": "PolyLR", "by_epoch": False, "end": 100}
    cfg = patched(small(param_scheduler={"one": poly, "two": [WARM_UP, poly]}), extend_to=200)
    assert [cfg.param_scheduler.one.end, *(item.end for item in cfg.param_scheduler.two)] == [200, 10, 200]


def test_one_of_several_decays_may_end_within_the_run() -> None:
    first = {"type": "PolyLR", "by_epoch": False, "begin": 0, "end": 50}
    last = {"type": "PolyLR", "by_epoch": False, "begin": 50, "end": 100}
    assert [
        item.end for item in patched(small(param_scheduler=[first, last]), extend_to=200).param_scheduler
    ] == [
        50,
        200,
    ]


def test_a_constant_rate_needs_no_schedule() -> None:
    for schedulers in ([], None, [WARM_UP]):
        assert planned(small(param_scheduler=schedulers), extend_to=200).max_iters == 200


@pytest.mark.parametrize(
    ("scheduler", "named"),
    [
        (
            {"type": "PolyLR", "by_epoch": False, "end": 99},
            r"param_scheduler\.end \(PolyLR\) ends at iteration 99",
        ),
        ({"type": "PolyLR", "by_epoch": False, "end": 101}, "ends at iteration 101"),
        ({"type": "PolyLR", "by_epoch": False, "end": 80}, "ends at iteration 80"),
        (cosine(T_max=100, end=80), r"end \(CosineAnnealingLR\) ends at iteration 80"),
        (cosine(T_max=99, end=100), r"T_max \(CosineAnnealingLR\) ends at iteration 99"),
        ({"type": "LinearLR", "by_epoch": False, "end": 80, "end_factor": 0.1}, "ends at iteration 80"),
        ({"type": "CosineRestartLR", "by_epoch": False, "periods": [50, 50], "end": 100}, "periods"),
    ],
)
def test_extending_what_would_leave_the_rate_without_a_schedule_is_refused(
    scheduler: Any, named: str
) -> None:
    with pytest.raises(ConfigError, match=named) as caught:
        planned(small(param_scheduler=scheduler), extend_to=200)
    assert "max_iters=200" in str(caught.value)
    # Written out for the new end, the same is taken as it is.
    written = small(param_scheduler=scheduler, train_cfg__max_iters=200)
    assert planned(written, extend_to=200).max_iters == 200


# --- names of weights ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "files"),
    [
        ("pretrain/mit_b0.pth", ("mit_b0.pth",)),
        ("open-mmlab://resnet50_v1c", ("resnet50_v1c-2cccc1ad.pth",)),
        ("torchvision://resnet50", ("resnet50-0676ba61.pth",)),
        ("open-mmlab://of_nobody", ("of_nobody",)),
        (
            "https://download.openmmlab.com/x/mit_b2_20220624-66e8bf70.pth",
            ("mit_b2_20220624-66e8bf70.pth", "mit_b2.pth"),
        ),
    ],
)
def test_weights_are_looked_for_under_the_name_of_the_published_file(
    name: str, files: tuple[str, ...]
) -> None:
    assert weights_files(name) == files


# --- finding a user's own data set -----------------------------------------------------------------------


def own_data(root: str = "data/fields", **dataset: Any) -> dict[str, Any]:
    """Return a config of a data set that the kit knows nothing of but what the config says."""
    cfg = small()
    for name, split in (("train_dataloader", "train"), ("val_dataloader", "val")):
        cfg[name]["dataset"] = {
            "type": "FieldsDataset", "data_root": root,
            "data_prefix": {"img_path": f"img/{split}", "seg_map_path": f"ann/{split}"},
            "pipeline": [], **dataset,
        }  # fmt: skip
    return cfg


def lay_out(folder: Path, splits: Sequence[str] = ("train", "val")) -> Path:
    for split in splits:
        for kind in ("img", "ann"):
            (folder / kind / split).mkdir(parents=True)
            (folder / kind / split / "0.png").touch()
    return folder


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


def test_attached_weights_are_found_under_any_folder(tmp_path: Path) -> None:
    file = tmp_path / "datasets" / "bob" / "weights" / "resnet50_v1c-2cccc1ad.pth"
    file.parent.mkdir(parents=True)
    file.touch()
    cfg = small(model__pretrained="open-mmlab://resnet50_v1c")
    assert find_pretrained(cfg, tmp_path) == {"open-mmlab://resnet50_v1c": file}
    assert find_pretrained(small(model__pretrained="open-mmlab://resnet18_v1c"), tmp_path) == {}
