"""Two ranks train what one trains, survive the loss of one, and may come and go between sessions."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
import torch.distributed
import torch.multiprocessing
from support.memory_faults import TO_ROUNDING
from support.standin import StandIn, differences

from mapsage_kaggle.clock import boot_time_s
from mapsage_kaggle.engine.control import Control
from mapsage_kaggle.engine.ranks import follow_rank_0
from mapsage_kaggle.errors import TrainingError
from mapsage_kaggle.pace import Pace
from mapsage_kaggle.spec import ChildSpec

pytestmark = pytest.mark.slow(scope_s=50)

HOOK = '''
"""Does harm to one rank only, once."""
import os, signal
from pathlib import Path
from mmengine.hooks import Hook
from mmengine.registry import HOOKS

@HOOKS.register_module()
class OnOneRank(Hook):
    def __init__(self, rank, iteration, harm, marker):
        self.rank, self.iteration, self.harm, self.marker = rank, iteration, harm, Path(marker)

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if runner.rank != self.rank or runner.iter != self.iteration or self.marker.exists():
            return
        self.marker.touch()
        if self.harm == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        raise MemoryError("a fault that was planted")
'''


def harming(run: StandIn, *, rank: int, iteration: int, harm: str) -> str:
    """Return config lines that do harm to one rank, once."""
    (run.root / "code").mkdir(exist_ok=True)
    (run.root / "code" / "on_one_rank.py").write_text(HOOK)
    options = {"rank": rank, "iteration": iteration, "harm": harm, "marker": str(run.root / "harmed")}
    return (
        'custom_imports = dict(imports=["at_iteration", "on_one_rank"], allow_failed_imports=False)\n'
        f'custom_hooks += [dict(type="OnOneRank", **{options!r})]\n'
    )


def stand_in(root: Path, extra: str = "", *, cold: bool = False) -> StandIn:
    return StandIn.with_scenes(root, val=3, max_iters=12, val_interval=5, extra=extra, cold=cold)


def weights(run: StandIn) -> torch.Tensor:
    state = run.checkpoint(12)["state_dict"]
    return torch.cat([state[name].double().reshape(-1) for name in sorted(state)])


def _machine(rank: int, folder: str) -> None:
    """Be one of two machines that have a worker each: follow rank 0, then ask for a stop on machine 1."""
    from mmengine.config import Config

    os.environ |= {"RANK": str(rank), "LOCAL_RANK": "0", "WORLD_SIZE": "2"}
    os.environ |= {"GROUP_RANK": str(rank), "GROUP_WORLD_SIZE": "2"}
    mine = Path(folder, str(rank))
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)

    def follow(fingerprint: str) -> ChildSpec:
        cfg = Config({"train_cfg": {"max_iters": 9}, "randomness": {"seed": rank + 5}})
        spec = ChildSpec(
            config=mine / "config.py", work_dir=mine, clock_started_s=boot_time_s(), limit_s=900.0,
            reserve_s=9.0, action="resume" if rank == 0 else "fresh", run_id=f"run{rank}",
            fingerprint=fingerprint, checkpoint=mine / "iter_3.pth" if rank == 0 else None,
            expect_iteration=3 if rank == 0 else None,
        )  # fmt: skip
        followed = follow_rank_0(spec, cfg, mine)
        assert cfg.randomness.seed == 5
        assert cfg.load_from == str(followed.checkpoint)
        return followed

    followed = follow("same")
    assert (followed.action, followed.run_id, followed.expect_iteration) == ("resume", "run0", 3)
    assert followed.checkpoint is not None
    assert followed.checkpoint.read_bytes() == Path(folder, "0", "iter_3.pth").read_bytes()
    assert followed.checkpoint.parent == (mine if rank == 0 else mine / "from-rank-0")
    with pytest.raises(TrainingError, match="Machine 1 trains another config"):
        follow(f"fingerprint {rank}")

    control = Control(
        clock=followed.clock(),
        pace=Pace(),
        stop_request=mine / "stop_request.json",
        save_request=mine / "save_request.json",
        watch_pipe=False,
    )
    assert control.decide(validation_due=False, save_due=False).stop == ""
    if rank == 1:
        (mine / "stop_request.json").touch()
    assert control.decide(validation_due=False, save_due=False).stop == "user"
    torch.distributed.destroy_process_group()


def test_machines_follow_the_first_one_and_any_may_ask_for_a_stop(tmp_path: Path) -> None:
    for rank in range(2):
        (tmp_path / str(rank)).mkdir()
    # More than one chunk, and not a whole number of them.
    (tmp_path / "0" / "iter_3.pth").write_bytes(os.urandom((1 << 23) + 12345))
    torch.multiprocessing.spawn(_machine, args=(str(tmp_path),), nprocs=2)  # type: ignore[attr-defined, no-untyped-call]


def test_a_rank_that_is_killed_costs_nothing_but_time(tmp_path: Path) -> None:
    whole = stand_in(tmp_path / "whole")
    done = whole.train("--cpu-ranks", "2")
    assert done.returncode == 0, done.stdout + done.stderr
    run = stand_in(tmp_path / "killed", cold=True)
    done = run.train("--cpu-ranks", "2", config_extra=harming(run, rank=1, iteration=7, harm="kill"))
    assert done.returncode == 0, done.stdout + done.stderr
    assert run.record().stop_reason == "completed"
    assert len(run.events("restart")) == 1
    assert [event.iteration for event in run.events("resume")] == [5]
    assert sorted(event.data["rank"] for event in run.events("start")) == [0, 0, 1, 1]
    # BatchNorm's running figures too: they do not depend on when a checkpoint was written.
    assert differences(whole.checkpoint(12), run.checkpoint(12)) == []


@pytest.mark.soak
def test_one_two_one_ranks_and_smaller_micro_batches_equal_one_to_rounding(tmp_path: Path) -> None:
    whole = stand_in(tmp_path / "whole", TO_ROUNDING)
    done = whole.train()
    assert done.returncode == 0, done.stdout + done.stderr

    run = stand_in(tmp_path / "cut", TO_ROUNDING)
    assert run.train(stop=3).returncode == 0
    run.hand_over("first")
    harm = harming(run, rank=1, iteration=6, harm="memory")
    done = run.train("--cpu-ranks", "2", config_extra=harm, stop=8)
    assert done.returncode == 0, done.stdout + done.stderr
    record = run.record()
    assert record.learned.micro_batch == 1
    assert record.exactness.split == ()
    assert "equal to rounding" in record.exactness.reasons[0]
    assert [event.data["kind"] for event in run.events("restart")] == ["memory"]
    run.hand_over("second")
    done = run.train()
    assert done.returncode == 0, done.stdout + done.stderr

    expected, actual = weights(whole), weights(run)
    start_to_end = float(expected.norm())
    # Kernels for AVX-512 add in another order than those for AVX2: 5e-5 instead of less than 1e-5.
    assert float((actual - expected).norm()) / start_to_end < 1e-4
    assert {"per_class", "confusion"} <= run.events("validation")[0].data.keys()
