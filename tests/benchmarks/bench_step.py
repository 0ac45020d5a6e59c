"""A training step of the shipped config with mmsegmentation's own parts and with the kit's.

Run ``python tests/benchmarks/bench_step.py``. Both sides are built from the config as the kit patches it, one
with ``--no-fast``; they begin with the same weights, see the same images and draw the same drop path, and
their losses are compared at every step. On a CPU a turn is one step of one thread and what is measured is
the processor's time. On a GPU (``make bench-gpu``) a turn is twenty steps by the wall clock, for each batch,
in the precision that the kit chooses there, with peak memory and TFLOP/s, beside what a large matrix
product reaches on the card. Under torchrun every rank takes the batch, wrapped for gradients in common.

``--variants`` measures instead what channels-last memory and ``torch.compile`` make of the kit's own step,
and how many steps it takes to win back their start-up.
"""

from __future__ import annotations

import gc
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from mapsage_kaggle.config.patch import PatchContext, apply_patch, plan_patch
from mapsage_kaggle.config.reading import read_config

os.environ.setdefault("OMP_NUM_THREADS", "1")
ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(Path(__file__).parent)]

import torch  # noqa: E402 - found by the lines above
from mmengine.logging import MMLogger  # noqa: E402
from mmengine.model import MMDistributedDataParallel  # noqa: E402
from mmengine.optim import build_optim_wrapper  # noqa: E402
from mmengine.registry import DefaultScope  # noqa: E402
from mmengine.structures import PixelData  # noqa: E402
from mmseg.registry import MODELS  # noqa: E402
from mmseg.structures import SegDataSample  # noqa: E402
from side_by_side import Row, by_turns, cpu_ms, parser, show  # noqa: E402
from torch.utils.flop_counter import FlopCounterMode  # noqa: E402

import mapsage_kaggle.engine.register  # noqa: E402, F401
from mapsage_kaggle.engine import seeding  # noqa: E402

CONFIG = ROOT / "configs" / "train_earthvqa_kaggle.py"
SMALL = (
    "model.backbone.embed_dims=8", "model.backbone.num_layers=[1,1,1,1]",
    "model.backbone.num_heads=[1,2,4,4]",
    "model.decode_head.in_channels=[8,16,32,32]", "model.decode_head.channels=16",
)  # fmt: skip
SPEED_GOALS = {"cpu": 1.15, "cuda": 1.3}
MEMORY_GOAL = 1 / 0.75
TOLERANCE = 2e-3
"""Of the loss, in parts of it: rounding grows a little with every step."""
HALF_TOLERANCE = 3e-2


@dataclass
class Side:
    """A model that trains on one batch, again and again.

    Attributes:
        model: Wrapped where there are several ranks.
        optim_wrapper: Its optimizer.
        data: The batch.
        losses: One a step.
    """

    model: Any
    optim_wrapper: Any
    data: dict[str, Any]
    losses: list[torch.Tensor]

    def step(self) -> None:
        seeding.seed_step(0, len(self.losses), 0, 0)
        outputs = self.model.train_step(self.data, optim_wrapper=self.optim_wrapper)
        self.losses.append(outputs["loss"].detach())

    def leave_gradients(self) -> None:
        """Run forward and backward only."""
        inner = self.model.module if hasattr(self.model, "module") else self.model
        seeding.seed_step(0, 0, 0, 0)
        with self.optim_wrapper.optim_context(inner):
            losses = inner(**inner.data_preprocessor(self.data, True), mode="loss")
        loss, _ = inner.parse_losses(losses)
        self.optim_wrapper.backward(self.optim_wrapper.scale_loss(loss))


def images(batch: int, crop: int) -> dict[str, Any]:
    """Return a batch of noise with labels, some of them to be ignored, as a data loader gives it."""
    draws = torch.Generator().manual_seed(0)
    inputs, samples = [], []
    for _ in range(batch):
        inputs.append(torch.randint(0, 256, (3, crop, crop), dtype=torch.uint8, generator=draws))
        labels = torch.randint(0, 9, (1, crop, crop), generator=draws)
        sample = SegDataSample(metainfo={"img_shape": (crop, crop), "ori_shape": (crop, crop)})
        sample.gt_sem_seg = PixelData(data=torch.where(labels == 8, 255, labels))
        samples.append(sample)
    return {"inputs": inputs, "data_samples": samples}


def build(*, fast: bool, device: torch.device, overrides: Sequence[str], batch: int, crop: int) -> Side:
    """Return the model of the config as the kit trains it, with ``fast`` or with ``--no-fast``."""
    cfg = read_config(CONFIG, overrides)
    facts = PatchContext(work_dir=Path("unused"), fast=fast, on_gpu=device.type == "cuda")
    cfg = apply_patch(cfg, plan_patch(cfg, CONFIG, facts))
    with DefaultScope.overwrite_default_scope("mmseg"):
        torch.manual_seed(0)
        model: Any = MODELS.build(cfg.model)
        torch.manual_seed(0)
        model.init_weights()
        model = model.to(device).train()
        if torch.distributed.is_initialized():
            where = [device.index] if device.type == "cuda" else None
            model = MMDistributedDataParallel(module=model, device_ids=where, broadcast_buffers=False)
        wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
    core = model.module if hasattr(model, "module") else model
    assert (type(core.backbone).__name__ == "MapsageMixVisionTransformer") == fast
    return Side(model=model, optim_wrapper=wrapper, data=images(batch, crop), losses=[])


def measure(work: Callable[[], None], device: torch.device, times: int) -> float:
    """Return milliseconds that the work takes once."""
    if device.type == "cpu":
        return cpu_ms(lambda: [work() for _ in range(times)], per=times)
    torch.cuda.synchronize()
    begin = time.perf_counter()
    for _ in range(times):
        work()
    torch.cuda.synchronize()
    return 1000 * (time.perf_counter() - begin) / times


def check_equal(stock: Side, ours: Side, tolerance: float) -> float:
    """Return by how much the losses differ at most, in parts of them; they must be equal to rounding."""
    pairs = zip(map(float, stock.losses), map(float, ours.losses), strict=True)
    most = max(abs(one - other) / abs(one) for one, other in pairs)
    assert most <= tolerance, f"the two sides' losses differ by {most:.2g}"
    return most


def flops_of(side: Side) -> int:
    with FlopCounterMode(display=False) as counter:
        side.step()
    return counter.get_total_flops()


def peak_of(fresh: Callable[[], Side]) -> float:
    """Return the MB that a side's second step takes at most, alone on the card."""
    side = fresh()
    side.step()  # from here on the optimizer has its state
    torch.cuda.reset_peak_memory_stats()
    side.step()
    peak = torch.cuda.max_memory_allocated() / 1e6
    del side
    gc.collect()
    torch.cuda.empty_cache()
    return peak


def product_tflops(precision: str, device: torch.device, size: int = 8192) -> float:
    """Return the TFLOP/s of a large matrix product, tensor cores included."""
    dtype = getattr(torch, precision or "float32")
    one, other = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    work = partial(torch.matmul, one, other)
    measure(work, device, 5)
    return 2 * size**3 / (measure(work, device, 20) / 1000) / 1e12


def compare(
    options: Any, device: torch.device, overrides: Sequence[str], precision: str
) -> tuple[list[Row], dict[str, Any]]:
    rows: list[Row] = []
    more: dict[str, Any] = {}
    for batch in options.batch or ([4, 8, 16] if device.type == "cuda" else [1]):
        found, difference = compare_with(batch, options, device, overrides, precision)
        rows += found
        more[f"largest_difference_of_losses_{batch}"] = difference
        gc.collect()  # or the next batch's peak would hold these models
    return rows, more


def compare_with(
    batch: int, options: Any, device: torch.device, overrides: Sequence[str], precision: str
) -> tuple[list[Row], float]:
    rows = []
    on_gpu = device.type == "cuda"
    times, ranks = (20 if on_gpu else 1), int(os.environ.get("WORLD_SIZE", 1))
    fresh = partial(build, device=device, overrides=overrides, batch=batch, crop=options.crop)
    if on_gpu:
        both = (partial(peak_of, partial(fresh, fast=fast)) for fast in (False, True))
        peaks = by_turns(*both, turns=1)
    sides = [fresh(fast=fast) for fast in (False, True)]
    stock, ours = (partial(measure, side.step, device, times) for side in sides)
    found = by_turns(stock, ours, turns=options.turns)
    tolerance = HALF_TOLERANCE if precision else TOLERANCE
    difference = check_equal(*sides, tolerance)
    at, unit = f"batch {batch}", "ms" if on_gpu else "ms of one core"
    goal = SPEED_GOALS[device.type]
    rows.append(Row(what=f"a step, {at}", unit=unit, stock=found[0], ours=found[1], goal=goal))
    if on_gpu:
        rates = [[1000 * batch * ranks / value for value in side] for side in found]
        rows.append(
            Row(what=f"samples, {at}", unit="1/s", stock=rates[0], ours=rates[1], more_is_better=True)
        )
        work = flops_of(sides[0])
        speeds = [[work / value / 1e9 for value in side] for side in found]
        rows.append(
            Row(what=f"operations, {at}", unit="TFLOP/s", stock=speeds[0], ours=speeds[1],
                more_is_better=True)
        )  # fmt: skip
        rows.append(
            Row(what=f"peak memory, {at}", unit="MB", stock=peaks[0], ours=peaks[1], goal=MEMORY_GOAL)
        )
    if ranks == 1:
        for side in sides:
            side.leave_gradients()
        steps = [partial(measure, side.optim_wrapper.step, device, times) for side in sides]
        found = by_turns(*steps, turns=options.turns)
        rows.append(Row(what=f"its clipping and AdamW, {at}", unit=unit, stock=found[0], ours=found[1]))
    if options.profile:
        profile(sides[1], device)
    return rows, difference


def profile(side: Side, device: torch.device) -> None:
    """Print what the kit's step spends its time on."""
    from torch.profiler import ProfilerActivity

    on_gpu = device.type == "cuda"
    kinds = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    with torch.profiler.profile(activities=kinds) as found:
        side.step()
    by = "self_cuda_time_total" if on_gpu else "self_cpu_time_total"
    print(found.key_averages().table(sort_by=by, row_limit=15, max_name_column_width=45))


def variants(
    options: Any, device: torch.device, overrides: Sequence[str]
) -> tuple[list[Row], dict[str, Any]]:
    """Measure the kit's step as it is beside the same one in another memory format, and compiled."""
    times = 20 if device.type == "cuda" else 1
    batch = (options.batch or [4 if device.type == "cuda" else 1])[0]
    fresh = partial(build, fast=True, device=device, overrides=overrides, batch=batch, crop=options.crop)

    def channels_last(side: Side) -> None:
        side.model = side.model.to(memory_format=torch.channels_last)

    def compiled(side: Side) -> None:
        side.model.backbone.compile()
        side.model.decode_head.compile()

    rows, more = [], {}
    for name, change in (("channels last", channels_last), ("torch.compile", compiled)):
        if name == "torch.compile" and options.no_compile:
            continue
        plain, other = fresh(), fresh()
        change(other)
        begin = time.perf_counter()
        other.step()
        start_up_s = time.perf_counter() - begin
        plain.step()
        found = by_turns(
            partial(measure, plain.step, device, times), partial(measure, other.step, device, times),
            turns=options.turns,
        )  # fmt: skip
        row = Row(what=f"a step, {name} (the right one)", unit="ms", stock=found[0], ours=found[1])
        gained_s = (sorted(row.stock)[len(row.stock) // 2] - sorted(row.ours)[len(row.ours) // 2]) / 1000
        rows.append(row)
        more[name] = {
            "first_step_s": start_up_s,
            "steps_to_win_it_back": start_up_s / gained_s if gained_s > 0 else None,
        }
    return rows, more


def main() -> None:
    options = parser(__doc__, turns=5)
    options.add_argument("--batch", type=int, nargs="*", help="default: 4 8 16 on a GPU, 1 on a CPU")
    options.add_argument("--crop", type=int, default=512)
    options.add_argument("--precision", choices=["float32", "float16", "bfloat16"], help="on a GPU")
    options.add_argument("--small", action="store_true", help="a tiny model, to try the benchmark itself")
    options.add_argument("--profile", action="store_true", help="print what bounds the kit's step")
    options.add_argument("--variants", action="store_true")
    options.add_argument("--no-compile", action="store_true", help="of the variants, only channels last")
    arguments = options.parse_args()
    on_gpu, ranks = torch.cuda.is_available(), int(os.environ.get("WORLD_SIZE", 1))
    device = torch.device("cpu")
    if on_gpu:
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
        torch.cuda.set_device(device)
    torch.set_num_threads(1)
    MMLogger.get_instance("bench_step").setLevel("WARNING")  # the optimizer's groups, one by one
    if ranks > 1:
        torch.distributed.init_process_group("nccl" if on_gpu else "gloo")
    precision = ""
    if on_gpu:
        major, _ = torch.cuda.get_device_capability(device)
        precision = arguments.precision or ("bfloat16" if major >= 8 else "float16")
        precision = "" if precision == "float32" else precision
    overrides = list(SMALL) if arguments.small else []
    overrides.append(f"model.data_preprocessor.size=({arguments.crop},{arguments.crop})")
    if precision:
        overrides += ["optim_wrapper.type=AmpOptimWrapper", f"optim_wrapper.dtype={precision}"]
    if precision == "bfloat16":
        overrides.append("optim_wrapper.loss_scale=1.0")
    if arguments.variants:
        rows, more = variants(arguments, device, overrides)
    else:
        rows, more = compare(arguments, device, overrides, precision)
    if on_gpu:
        more["large_matrix_product_tflops"] = product_tflops(precision, device)
    model = "a tiny SegFormer" if arguments.small else "SegFormer-B2 of the shipped config"
    title = f"A training step of {model}, {arguments.crop} × {arguments.crop}, {precision or 'float32'}"
    title += f", {ranks} ranks" if ranks > 1 else ""
    if int(os.environ.get("RANK", 0)) == 0:
        show(title, rows, file=arguments.json, precision=precision or "float32", ranks=ranks, **more)
    if ranks > 1:
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
