"""What only a GPU can prove: ``make gpu``. Much of it runs on the CPU too, as far as it means a thing."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from benchmarks import bench_step
from mmengine.config import ConfigDict
from mmengine.optim import OptimWrapper
from support.losses import MEAN, VALID, WEIGHTED, build, images
from support.memory_faults import TO_ROUNDING
from support.standin import StandIn, differences
from torch.nn import functional

from mapsage_kaggle.checkpoints.host_copy import HostCopy
from mapsage_kaggle.checkpoints.load import load_checkpoint
from mapsage_kaggle.engine import deterministic
from mapsage_kaggle.engine.fast.optimizer import step_equal_groups_together
from mapsage_kaggle.engine.validation_memory import less_memory
from mapsage_kaggle.training.fallback import VALIDATION_RUNGS

NUM_GPUS = torch.cuda.device_count() if torch.cuda.is_available() else 0
HAS_BFLOAT16 = NUM_GPUS > 0 and torch.cuda.get_device_capability() >= (8, 0)
WITH_GPU = [
    pytest.mark.gpu,
    pytest.mark.skipif(NUM_GPUS < 1, reason="no CUDA device: torch.cuda.is_available() is False"),
]
WITH_TWO = [
    pytest.mark.gpu,
    pytest.mark.skipif(NUM_GPUS < 2, reason=f"needs two CUDA devices, and there are {NUM_GPUS}"),
]
ON_EITHER = pytest.mark.parametrize(
    "gpus",
    [
        pytest.param(0, marks=pytest.mark.slow(scope_s=50), id="cpu"),
        pytest.param(1, marks=WITH_GPU, id="cuda"),
    ],
)
ON_CUDA = pytest.mark.parametrize("gpus", [pytest.param(1, marks=WITH_GPU, id="cuda")])
DEVICES = pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=WITH_GPU)])


def train(run: StandIn, gpus: int, *arguments: str, **faults: Any) -> StandIn:
    done = run.train("--gpus", str(gpus), *arguments, **faults)
    assert done.returncode == 0, done.stdout + done.stderr
    return run


def whole_and_cut(
    root: Path, gpus: int, *arguments: str, cut: int, **options: Any
) -> tuple[StandIn, StandIn]:
    """Return a run in one session, and one in two."""
    whole = train(StandIn.with_scenes(root / "whole", **options), gpus, *arguments)
    parts = StandIn.with_scenes(root / "cut", **options)
    train(parts, gpus, *arguments, stop=cut)
    parts.hand_over()
    return whole, train(parts, gpus, *arguments, workers=1)


def apart(first: StandIn, second: StandIn) -> float:
    """Return how far the last weights of two runs are apart, relative to their length."""
    flat = []
    for run in (first, second):
        state = run.checkpoint(run.max_iters)["state_dict"]
        flat.append(torch.cat([state[name].double().reshape(-1) for name in sorted(state)]))
    return float((flat[0] - flat[1]).norm() / flat[0].norm())


# --- exact -----------------------------------------------------------------------------------------------


@ON_CUDA
def test_with_deterministic_a_cut_run_equals_an_uncut_one_bit_for_bit(tmp_path: Path, gpus: int) -> None:
    whole, cut = whole_and_cut(tmp_path, gpus, "--deterministic", cut=7, max_iters=12, val_interval=5)
    assert differences(whole.checkpoint(12), cut.checkpoint(12)) == []
    assert cut.record().exactness.bitwise is True
    assert "randomness = dict(deterministic=True" in cut.work_dir.config.read_text()


@ON_CUDA
def test_in_fast_mode_the_difference_is_small_and_the_record_says_there_may_be_one(
    tmp_path: Path, gpus: int
) -> None:
    whole, cut = whole_and_cut(tmp_path, gpus, cut=7, max_iters=12, val_interval=5)
    difference = apart(whole, cut)
    print(f"cut against uncut in fast mode on {torch.cuda.get_device_name()}: {difference:.2e} apart")
    assert difference < 1e-2
    exactness = cut.record().exactness
    assert exactness.bitwise is False
    assert "--deterministic" in " ".join(exactness.reasons)


def one_step(device: str, decode: Any) -> torch.Tensor:
    """Return the weights after a training step."""
    model = build(decode, MEAN).to(device)
    model.train_step(images(0, 4), OptimWrapper(torch.optim.SGD(model.parameters(), lr=1.0)))
    return torch.cat([parameter.detach().cpu().reshape(-1) for parameter in model.parameters()])


@DEVICES
@pytest.mark.filterwarnings("ignore:Default ``avg_non_ignore``:UserWarning")
@pytest.mark.parametrize("decode", [MEAN, VALID, WEIGHTED], ids=["mean", "avg_non_ignore", "class_weight"])
def test_a_training_step_runs_deterministically_and_gives_the_same_weights_again(
    only_deterministic: None, device: str, decode: Any
) -> None:
    first = one_step(device, decode)
    assert torch.equal(first, one_step(device, decode))
    start = torch.cat([parameter.detach().reshape(-1) for parameter in build(decode, MEAN).parameters()])
    assert not torch.equal(first, start)


@pytest.mark.parametrize("device", [pytest.param("cuda", marks=WITH_GPU)])
def test_torch_still_has_no_deterministic_kernels_for_what_is_replaced(device: str) -> None:
    logits = torch.randn(1, 4, 8, 8, device=device, requires_grad=True)
    labels = torch.zeros(1, 8, 8, dtype=torch.long, device=device)
    torch.use_deterministic_algorithms(True)
    try:
        for refused in (
            lambda: functional.cross_entropy(logits, labels),
            lambda: functional.adaptive_avg_pool2d(logits, 3).sum().backward(),
        ):
            with pytest.raises(RuntimeError) as caught:
                refused()
            assert deterministic.is_refusal(caught.value)
    finally:
        torch.use_deterministic_algorithms(False)


# --- mixed precision -------------------------------------------------------------------------------------

# On a CPU AmpOptimWrapper refuses; the loss scaler itself and its place in the checkpoint are the same.
SCALED_ON_CPU = '''
"""Mixed precision with a loss scaler, as AmpOptimWrapper has it, on a CPU."""
import torch
from mmengine.optim import AmpOptimWrapper, OptimWrapper
from mmengine.registry import OPTIM_WRAPPERS

@OPTIM_WRAPPERS.register_module()
class ScaledOnCPU(AmpOptimWrapper):
    def __init__(self, loss_scale, **options):
        OptimWrapper.__init__(self, **options)  # AmpOptimWrapper's own asks for a GPU
        self._scale_update_param = None
        self.cast_dtype = torch.bfloat16
        self.loss_scaler = torch.amp.GradScaler("cpu", **loss_scale)
'''
# So low that nothing overflows: then the scale doubles every three iterations.
LOSS_SCALE = "loss_scale=dict(init_scale=16.0, growth_interval=3)"
AMP = {
    0: 'custom_imports["imports"].append("scaled")\n'
    f'optim_wrapper = dict(type="ScaledOnCPU", {LOSS_SCALE})\n',
    1: f'optim_wrapper = dict(type="AmpOptimWrapper", dtype="float16", {LOSS_SCALE})\n',
}


@ON_EITHER
def test_the_loss_scaler_goes_on_where_it_was(tmp_path: Path, gpus: int) -> None:
    for name in ("whole", "cut"):
        code = tmp_path / name / "code"
        code.mkdir(parents=True)
        (code / "scaled.py").write_text(SCALED_ON_CPU)
    options = {"max_iters": 8, "val_interval": 8, "extra": AMP[gpus]}
    whole, cut = whole_and_cut(tmp_path, gpus, "--deterministic", cut=5, **options)
    # Between two growths: the scale has grown, and the count towards the next has begun.
    found = load_checkpoint(next((cut.root / "input").rglob("iter_5.pth")))["optimizer"]["loss_scaler"]
    assert (found["scale"], found["_growth_tracker"]) == (32.0, 2)
    assert whole.checkpoint(8)["optimizer"]["loss_scaler"]["scale"] == 64.0
    assert differences(whole.checkpoint(8), cut.checkpoint(8)) == []
    assert cut.record().exactness.bitwise is True


# In float32 such a loss and its gradients are numbers; in float16 no gradient of it is.
OVERFLOWING = 'model["decode_head"]["loss_decode"] = dict(loss_weight=1e30)\n'


@pytest.mark.skipif(HAS_BFLOAT16, reason="the kit's choice here is bfloat16, which has float32's range")
@ON_CUDA
def test_half_precision_that_fails_is_given_up_for_float32(tmp_path: Path, gpus: int) -> None:
    run = StandIn.with_scenes(tmp_path / "kaggle", max_iters=40, val_interval=40, extra=OVERFLOWING)
    train(run, gpus)
    assert [event.data["kind"] for event in run.events("restart")] == ["precision"]
    record = run.record()
    assert record.learned.precision == "float32"
    assert record.exactness.precision == "float32"


PLANTED = """
@OPTIM_WRAPPERS.register_module()
class Overflowing(ScaledOnCPU):
    def backward(self, loss, **options):
        super().backward(loss, **options)
        self.optimizer.param_groups[0]["params"][0].grad.fill_(float("inf"))
"""


@pytest.mark.slow
def test_half_precision_of_the_config_s_own_that_fails_is_not_tried_again(tmp_path: Path) -> None:
    code = tmp_path / "kaggle" / "code"
    code.mkdir(parents=True)
    (code / "scaled.py").write_text(SCALED_ON_CPU + PLANTED)
    extra = AMP[0].replace("init_scale=16.0", "init_scale=2.0").replace("ScaledOnCPU", "Overflowing")
    run = StandIn.with_scenes(tmp_path / "kaggle", extra=extra)
    done = run.train("--gpus", "0")
    assert done.returncode == 5, done.stdout + done.stderr
    assert [event.data["kind"] for event in run.events("failure")] == ["precision"]
    assert run.events("restart") == []
    message = run.record().message
    assert message.startswith("The loss scale has come down to 0.5 in iteration 2")
    assert message.endswith("--precision float32 trains without it.")


# --- host copies -----------------------------------------------------------------------------------------


@DEVICES
def test_a_host_copy_holds_what_was_there_whatever_is_written_over_it_at_once(device: str) -> None:
    host = HostCopy()
    weights = torch.arange(1 << 24, dtype=torch.float32, device=device)
    for turn in range(5):
        expected = weights.clone()
        taken = host.take({"state_dict": {"w": weights}})
        weights.mul_(-1.5).add_(turn)
        assert torch.equal(taken["state_dict"]["w"], expected.cpu())


# --- labels ----------------------------------------------------------------------------------------------


FEWER_CLASSES = 'model["decode_head"]["num_classes"] = 4\n'


@ON_EITHER
def test_a_label_beyond_the_classes_is_refused_once_and_by_name(tmp_path: Path, gpus: int) -> None:
    run = StandIn.with_scenes(tmp_path / "kaggle", extra=FEWER_CLASSES)
    done = run.train("--gpus", str(gpus))
    assert done.returncode == 2, done.stdout + done.stderr
    assert run.events("restart") == []
    message = run.record().message
    assert message.startswith("The mask ")
    assert "with num_classes = 4, labels are 0 to 3, and 255 is ignored" in message
    assert "reduce_zero_label is True" in message


# --- memory ----------------------------------------------------------------------------------------------

MEMORY_HOOK = '''
"""Limits what the allocator may take, and writes down the peaks: after loading, and at the end."""
import json, resource
from pathlib import Path
import torch
from mmengine.hooks import Hook
from mmengine.registry import HOOKS

def peak_bytes():
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

@HOOKS.register_module()
class Memory(Hook):
    def __init__(self, file, limit_bytes=None):
        self.file, self.limit_bytes, self.seen = Path(file), limit_bytes, {}

    def before_train(self, runner):
        self.seen["loaded"] = peak_bytes()
        if self.limit_bytes is not None:
            total = torch.cuda.get_device_properties(0).total_memory
            torch.cuda.set_per_process_memory_fraction(min(1.0, self.limit_bytes / total))

    def after_train(self, runner):
        self.seen["trained"] = peak_bytes()
        self.file.write_text(json.dumps(self.seen))
'''
# Large enough that activations, and not the libraries, take the memory.
LARGE = """
model["backbone"]["embed_dims"] = {width}
model["decode_head"]["in_channels"] = [{width}, 2 * {width}, 4 * {width}, 6 * {width}]
model["data_preprocessor"]["size"] = ({crop}, {crop})
train_dataloader["dataset"]["pipeline"][2]["scale"] = ({crop}, {crop})
train_dataloader["dataset"]["pipeline"][3]["crop_size"] = ({crop}, {crop})
custom_imports["imports"].append("memory_hook")
custom_hooks.append(dict(type="Memory", file={file!r}, limit_bytes={limit_bytes}))
"""


def large(root: Path, *, crop: int, width: int = 32, limit_bytes: int | None = None) -> StandIn:
    """Return a run of the *to rounding* class that notes its peaks, and may be limited to so many bytes."""
    extra = LARGE.format(crop=crop, width=width, file=str(root / "peaks.json"), limit_bytes=limit_bytes)
    run = StandIn.with_scenes(root, size=crop, max_iters=6, val_interval=6, extra=TO_ROUNDING + extra)
    (root / "code").mkdir()
    (root / "code" / "memory_hook.py").write_text(MEMORY_HOOK)
    return run


def peaks(run: StandIn) -> dict[str, int]:
    found: dict[str, int] = json.loads((run.root / "peaks.json").read_text())
    return found


@ON_EITHER
def test_a_resume_takes_no_more_memory_than_training_did(tmp_path: Path, gpus: int) -> None:
    run = large(tmp_path / "kaggle", crop=512 if gpus else 64, width=32 if gpus else 64)
    train(run, gpus, stop=3)
    first = peaks(run)
    checkpoint_bytes = (run.work_dir.path / "iter_3.pth").stat().st_size
    run.hand_over()
    train(run, gpus)
    second = peaks(run)
    what = {name: f"{before / 1e6:.0f} then {second[name] / 1e6:.0f} MB" for name, before in first.items()}
    print(f"peaks of a fresh start and of a resume: {what}")
    if gpus:
        # Loading goes by way of the CPU: what is on the card is the model and its optimizer's state, once.
        assert second["loaded"] < 0.5 * first["trained"]
        assert second["trained"] < 1.05 * first["trained"]
    # Held through training, or kept by the allocator, a checkpoint of 59 MB would add all of its bytes.
    assert second["trained"] - first["trained"] < 0.8 * checkpoint_bytes


@ON_CUDA
def test_real_memory_that_runs_out_costs_a_rung_and_nothing_else(tmp_path: Path, gpus: int) -> None:
    whole = train(large(tmp_path / "whole", crop=512), gpus)
    # Too little for four images; two take somewhat more than half.
    limit_bytes = int(0.8 * peaks(whole)["trained"])
    run = train(large(tmp_path / "limited", crop=512, limit_bytes=limit_bytes), gpus)
    restarts = [event.data["kind"] for event in run.events("restart")]
    assert restarts
    assert set(restarts) == {"memory"}
    assert "CUDA out of memory" in run.events("failure")[0].data["message"]
    record = run.record()
    assert record.stop_reason == "completed"
    assert record.learned.micro_batch in (1, 2)
    assert peaks(run)["trained"] <= limit_bytes
    assert apart(whole, run) < 1e-3


# --- the time of a step ----------------------------------------------------------------------------------

_attention = functional.scaled_dot_product_attention


def folded_queries(query: Any, key: Any, value: Any, *, chunks: int = 8, **options: Any) -> torch.Tensor:
    """Return what attention does, with parts of the queries as if they were images of their own.

    SegFormer's keys are few: a backward pass over them has few blocks to spread over a card.
    """
    batch, heads, length, width = query.shape
    if length % chunks:
        return _attention(query, key, value, **options)
    parts = query.view(batch, heads, chunks, length // chunks, width).transpose(1, 2).flatten(0, 1)
    pairs = (item.repeat_interleave(chunks, dim=0) for item in (key, value))
    found = _attention(parts, *pairs, **options)
    return found.view(batch, chunks, heads, -1, width).transpose(1, 2).flatten(2, 3)


def products(query: Any, key: Any, value: Any, dropout_p: float = 0.0) -> torch.Tensor:
    """Return what attention does, by two products of matrices, as mmsegmentation has it."""
    weights = (query * query.shape[-1] ** -0.5) @ key.transpose(-1, -2)
    return functional.dropout(weights.softmax(-1), dropout_p) @ value


VARIANTS = ("stock", "fast", "folded queries", "bmm", "merged groups", "deterministic")


@pytest.mark.parametrize(
    "device", [pytest.param("cpu", marks=pytest.mark.slow), pytest.param("cuda", marks=WITH_GPU)]
)
@pytest.mark.filterwarnings("ignore:Default ``avg_non_ignore``:UserWarning")
def test_a_step_of_the_shipped_model_learns_the_same_in_each_variant(
    device: str, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    """Print what each variant takes in float16, by which to choose; none of it decides here."""
    on_gpu = device == "cuda"
    batch, crop = (4, 512) if on_gpu else (2, 64)
    overrides = ["optim_wrapper.type=AmpOptimWrapper", "optim_wrapper.dtype=float16"]
    overrides = overrides if on_gpu else list(bench_step.SMALL)
    size = {
        "batch": batch,
        "crop": crop,
        "overrides": [*overrides, f"model.data_preprocessor.size=({crop},{crop})"],
    }
    gradients, told = {}, []
    for variant in VARIANTS:
        with monkeypatch.context() as patch:
            if variant in ("folded queries", "bmm"):
                way = folded_queries if variant == "folded queries" else products
                patch.setattr(functional, "scaled_dot_product_attention", way)
            if variant == "deterministic":  # the last one: what it sets, it sets until the test ends
                request.getfixturevalue("only_deterministic")
            side = bench_step.build(fast=variant != "stock", device=torch.device(device), **size)
            if variant == "merged groups":
                step_equal_groups_together(side.optim_wrapper.optimizer)
            side.leave_gradients()
            gradients[variant] = torch.cat(
                [
                    weight.grad.double().cpu().reshape(-1)
                    for name, weight in side.model.named_parameters()
                    if ".attn." in name
                ]
            )
            side.optim_wrapper.zero_grad()
            bench_step.measure(side.step, torch.device(device), 5 if on_gpu else 1)
            took_ms = bench_step.measure(side.step, torch.device(device), 20 if on_gpu else 2)
        told.append(f"{variant}: {took_ms:.1f} ms a step of {batch} × {crop}²")
    print("\n".join(told))
    tolerance, stock = (0.1 if on_gpu else 1e-4), gradients["stock"]
    apart_by = {variant: float((found - stock).norm() / stock.norm()) for variant, found in gradients.items()}
    assert [variant for variant, by in apart_by.items() if not by < tolerance] == [], apart_by


# --- several GPUs ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("gpus", [pytest.param(2, marks=WITH_TWO, id="cuda")])
def test_two_gpus_train_what_one_trains(tmp_path: Path, gpus: int) -> None:
    options = {"max_iters": 12, "val_interval": 5, "extra": TO_ROUNDING}
    whole = train(StandIn.with_scenes(tmp_path / "whole", **options), 1)
    run = StandIn.with_scenes(tmp_path / "cut", **options)
    for stop, ranks in ((4, 1), (8, gpus), (None, 1)):
        train(run, ranks, stop=stop)
        if stop:
            run.hand_over(f"after-{stop}")
    assert apart(whole, run) < 1e-3
    assert {"per_class", "confusion"} <= run.events("validation")[0].data.keys()


@ON_EITHER
def test_more_gpus_than_there_are_is_refused_with_what_to_do(tmp_path: Path, gpus: int) -> None:
    run = StandIn.with_scenes(tmp_path / "kaggle")
    done = run.train("--gpus", str(NUM_GPUS + 1))
    assert done.returncode == 4, done.stdout + done.stderr
    assert f"--gpus {NUM_GPUS + 1} was asked for" in done.stderr
    assert "--gpus auto" in done.stderr


# Takes what is free but so much, trains a step from nothing, and says how that ended.
STEP_IN = """
import sys, torch
sys.path.insert(0, {tests!r})
from mmengine.config import ConfigDict
from mmengine.optim import OptimWrapper
from support.losses import MEAN, VALID, build, images
from mapsage_kaggle.engine.faults import failure_kind
torch.cuda.init()
free, _ = torch.cuda.mem_get_info()
hog = torch.empty(max(0, free - {left}), dtype=torch.uint8, device="cuda")
try:
    model = build(VALID, MEAN).float().cuda()
    model.backbone._forward_pre_hooks.clear()
    batch = images(0, 4)
    batch["inputs"] = [item.float().repeat(1, {size} // 32, {size} // 32) for item in batch["inputs"]]
    for sample in batch["data_samples"]:
        sample.gt_sem_seg.data = sample.gt_sem_seg.data.repeat(1, {size} // 32, {size} // 32)
        sample.set_metainfo({{"img_shape": ({size}, {size})}})
    model.data_preprocessor.size = ({size}, {size})
    model.train_step(batch, OptimWrapper(torch.optim.AdamW(model.parameters())))
    torch.cuda.synchronize()
    print("fits")
except Exception as error:
    print(failure_kind(error, has_trained=False), "|", str(error).splitlines()[0])
"""


@pytest.mark.parametrize("device", [pytest.param("cuda", marks=WITH_GPU)])
def test_memory_that_runs_out_is_known_in_whatever_words_it_is_said(device: str) -> None:
    left_bytes, said = 3e9, set[str]()
    while left_bytes > 1.5e8:
        code = STEP_IN.format(tests=str(Path(__file__).parents[1]), left=int(left_bytes), size=256)
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        said.add((done.stdout.strip().splitlines() or [f"no word (exit code {done.returncode})"])[-1])
        left_bytes *= 0.97 if said - {"fits"} else 0.8
    print("\n".join(sorted(said)))
    assert "fits" in said
    assert [line for line in said if line != "fits" and not line.startswith("memory |")] == []


@DEVICES
@pytest.mark.filterwarnings("ignore:Default ``avg_non_ignore``:UserWarning")
def test_validation_of_a_large_image_gives_the_same_classes_at_each_level_of_memory(device: str) -> None:
    model = build(MEAN, MEAN).float().to(device).eval()
    model.test_cfg = ConfigDict(mode="whole")
    model.backbone._forward_pre_hooks.clear()
    side = 1024 if device == "cuda" else 160
    image = torch.randn(1, 3, side, side, generator=torch.Generator().manual_seed(0)).to(device)
    metas = [{"img_shape": (side, side), "ori_shape": (side, side)}]
    found = []
    for level in range(len(VALIDATION_RUNGS)):
        if device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        with torch.no_grad(), less_memory(model, level):
            found.append(model.inference(image, metas).argmax(dim=1).cpu())
        if device == "cuda":
            print(f"level {level}: {torch.cuda.max_memory_allocated() / 1e6:.0f} MB")
    assert all(float((item == found[0]).float().mean()) > 0.9999 for item in found)
