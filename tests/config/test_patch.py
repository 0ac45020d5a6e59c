"""The patch: what it changes in a config and why, and which configs it takes for the same run."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
from mmengine.config import Config
from mmengine.model import PretrainedInit
from support.configs import patched, planned, small, without, wrapped

from mapsage_kaggle.config.fingerprint import fingerprint
from mapsage_kaggle.config.patch import (
    PatchContext,
    apply_patch,
    for_inference,
    plan_patch,
    write_config,
)
from mapsage_kaggle.config.reading import data_roots_of, datasets_of, read_config
from mapsage_kaggle.config.weights import pretrained_of
from mapsage_kaggle.errors import ConfigError

# --- the fingerprint -------------------------------------------------------------------------------------


# --- what is refused -------------------------------------------------------------------------------------


def test_a_batch_smaller_than_the_number_of_gpus_is_refused() -> None:
    with pytest.raises(ConfigError, match="batch of 4 images, too few for 5 GPUs"):
        planned(world_size=5, on_gpu=True)


# --- reading and overriding ------------------------------------------------------------------------------


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
    assert cfg.train_dataloader.batch_sampler.micro_batch == share
    assert cfg.train_dataloader.batch_sampler.effective_batch == 4


def test_what_reads_the_batch_size_sees_the_images_of_an_iteration() -> None:
    assert patched(micro_batch=1).train_dataloader.batch_size == 4
    assert patched(world_size=2, on_gpu=True).train_dataloader.batch_size == 4


@pytest.mark.parametrize(
    ("name", "scaled", "said"),
    [
        ("pspnet_r50-d8_8xb4-80k_loveda.py", False, "here an iteration has 4"),
        ("pspnet_r50-d8_8xb4-80k_loveda.py", True, ""),
        ("pspnet_r50-d8_1xb4-80k_loveda.py", False, ""),
        ("pspnet_r50-d8_2xb2-80k_loveda.py", False, ""),
        ("mine.py", False, ""),
    ],
)
def test_a_config_for_several_gpus_is_told_what_batch_it_has(name: str, scaled: bool, said: str) -> None:
    cfg = small(auto_scale_lr={"enable": scaled, "base_batch_size": 32})
    warnings = plan_patch(cfg, Path(name), PatchContext(work_dir=Path("work"))).warnings
    assert [said in line for line in warnings] == ([True] if said else [])


def test_a_config_is_told_that_by_the_name_of_its_base_too(tmp_path: Path) -> None:
    base = tmp_path / "pspnet_r50-d8_8xb4-80k_loveda.py"
    base.write_text("".join(f"{name} = {value!r}\n" for name, value in small().items()))
    (tmp_path / "mine.py").write_text(f"_base_ = {base.name!r}\n")
    for accumulated, said in ((1, True), (8, False)):
        cfg = read_config(tmp_path / "mine.py", [f"optim_wrapper.accumulative_counts={accumulated}"])
        warnings = plan_patch(cfg, tmp_path / "mine.py", PatchContext(work_dir=tmp_path)).warnings
        assert [f"{base.name} is written for 8 GPUs" in line for line in warnings] == [True] * said


def test_a_micro_batch_is_never_more_than_a_rank_s_share() -> None:
    assert planned(micro_batch=16).micro_batch == 4
    assert planned(micro_batch=3, world_size=2, on_gpu=True).micro_batch == 2


def test_data_workers_are_no_more_than_the_cores_of_a_rank() -> None:
    cfg = patched(small(train_dataloader__num_workers=8, val_dataloader__num_workers=8), num_cpus=2)
    assert (cfg.train_dataloader.num_workers, cfg.val_dataloader.num_workers) == (2, 2)


def test_data_workers_are_no_more_than_shared_memory_was_seen_to_hold() -> None:
    config = small(train_dataloader__num_workers=4, val_dataloader__num_workers=1)
    cfg = patched(config, num_cpus=8, most_workers=2)
    assert (cfg.train_dataloader.num_workers, cfg.val_dataloader.num_workers) == (2, 1)
    assert planned(config, num_cpus=8).num_workers == 4


def test_on_a_gpu_batches_lie_in_pinned_memory_unless_the_config_says_otherwise() -> None:
    config = small(val_dataloader__pin_memory=False)
    cfg = patched(config, on_gpu=True)
    assert (cfg.train_dataloader.pin_memory, cfg.val_dataloader.pin_memory) == (True, False)
    assert "pin_memory" not in patched(config).train_dataloader
    assert planned(config, on_gpu=True).fingerprint == planned(config).fingerprint


@pytest.mark.parametrize(
    ("facts", "size", "expected"),
    [
        ({"on_gpu": True}, (64, 64), True),
        ({"on_gpu": True}, None, None),
        ({"on_gpu": True, "deterministic": True}, (64, 64), False),
        ({}, (64, 64), None),
    ],
)
def test_convolutions_are_chosen_by_timing_where_sizes_are_fixed(
    facts: dict[str, Any], size: tuple[int, int] | None, expected: bool | None
) -> None:
    preprocessor = {"type": "SegDataPreProcessor", "size": size}
    silent = small(model__data_preprocessor=preprocessor, env_cfg={})
    assert patched(silent, **facts).env_cfg.get("cudnn_benchmark") is expected
    stated = small(model__data_preprocessor=preprocessor, env_cfg={"cudnn_benchmark": False})
    assert patched(stated, **facts).env_cfg.cudnn_benchmark is False


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


def test_pretrained_weights_are_known_by_the_initialiser_s_class_too() -> None:
    cfg = small(model__backbone__init_cfg={**PRETRAINED, "type": PretrainedInit})
    assert pretrained_of(cfg) == (PRETRAINED["checkpoint"],)
    assert patched(cfg).model.backbone.init_cfg is None


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


@pytest.mark.parametrize(
    "place", ["model__pretrained", "model__backbone__pretrained", "model__backbone__backbone_cfg__pretrained"]
)
def test_the_older_key_for_pretrained_weights_is_understood(place: str) -> None:
    cfg = small(**{place: "open-mmlab://resnet50_v1c"})
    assert pretrained_of(cfg) == ("open-mmlab://resnet50_v1c",)
    node = patched(cfg).model
    for name in place.split("__")[1:]:
        node = node[name]
    assert node is None


# --- norms over ranks -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("batch", "ranks", "micro", "kept"),
    [(4, 2, None, True), (4, 2, 1, True), (5, 2, 2, True), (4, 3, 2, True),
     (3, 2, 1, False), (5, 2, 1, False), (7, 2, 1, False), (4, 3, 1, False)],
)  # fmt: skip
def test_norms_over_ranks_stay_where_all_make_as_many_passes(
    batch: int, ranks: int, micro: int | None, kept: bool
) -> None:
    cfg = small(train_dataloader__batch_size=batch)
    patch = planned(cfg, on_gpu=True, world_size=ranks, ranks_here=ranks, micro_batch=micro)
    norm = apply_patch(Config(cfg), patch).model.decode_head.norm_cfg.type
    assert norm == ("SyncBN" if kept else "BN")
    assert any("SyncBN would wait for ever" in line for line in patch.warnings) is not kept
    assert patch.norms_in_step is kept


# --- data sets -------------------------------------------------------------------------------------------


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


def test_metrics_in_a_list_are_replaced_one_by_one() -> None:
    cfg = patched(small(val_evaluator=[{"type": "IoUMetric"}, {"type": "CityscapesMetric"}]))
    assert [item.type for item in cfg.val_evaluator] == ["MapsageIoUMetric", "CityscapesMetric"]


@pytest.mark.parametrize(
    ("metric", "num_classes", "labels"),
    [
        ({"type": "IoUMetric"}, 8, {"num_classes": 8, "ignore_index": 255}),
        ({"type": "IoUMetric", "ignore_index": 9}, 8, {"num_classes": 8, "ignore_index": 9}),
        ({"type": "DepthMetric"}, 8, {"ignore_index": 255}),
        ({"type": "IoUMetric"}, 1, {"ignore_index": 255}),
    ],
)
def test_labels_to_validate_on_are_those_that_the_metric_counts(
    metric: dict[str, Any], num_classes: int, labels: dict[str, int]
) -> None:
    cfg = patched(small(val_evaluator=metric, model__decode_head__num_classes=num_classes))
    dataset = cfg.val_dataloader.dataset
    assert {key: dataset[key] for key in ("num_classes", "ignore_index") if key in dataset} == labels


def test_a_user_s_own_imports_stay_beside_the_kit_s() -> None:
    for may_fail in (False, True):
        cfg = patched(small(custom_imports={"imports": ["my_module"], "allow_failed_imports": may_fail}))
        assert cfg.custom_imports.imports == ["my_module", "mapsage_kaggle.engine.register"]
        assert cfg.custom_imports.allow_failed_imports is may_fail


# --- extending -------------------------------------------------------------------------------------------


# --- names of weights ------------------------------------------------------------------------------------


# --- finding a user's own data set -----------------------------------------------------------------------
