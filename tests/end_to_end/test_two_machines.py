"""Two machines, here two network namespaces joined by a cable of their own, train one run."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from support.standin import REPOSITORY, StandIn, differences

pytestmark = pytest.mark.slow(scope_s=100)

PORT = 29517

HOOK = '''
"""Tells that an iteration has come, and waits there, so that the machine can be killed in the middle."""
import signal
from pathlib import Path
from mmengine.hooks import Hook
from mmengine.registry import HOOKS

@HOOKS.register_module()
class WaitForDeath(Hook):
    def __init__(self, iteration, marker):
        self.iteration, self.marker = iteration, Path(marker)

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if runner.rank == 1 and runner.iter == self.iteration and not self.marker.exists():
            self.marker.touch()
            while True:
                signal.pause()
'''


@dataclass
class Host:
    """A machine: a network namespace with one interface, and a ``/kaggle`` of its own."""

    namespace: str
    interface: str
    address: str
    run: StandIn
    number: int

    def start(self, endpoint: str, extra: str) -> subprocess.Popen[str]:
        """Start this machine's part of the training."""
        config = self.run.config(extra=extra)
        command = self.run.command(
            "train", config, "--threads", "1", "--save-every", "0", "--nnodes", "2",
            "--node-rank", str(self.number), "--rdzv-endpoint", endpoint,
        )  # fmt: skip
        return subprocess.Popen(
            ["ip", "netns", "exec", self.namespace, *command],
            env={**self.run.environment(), "GLOO_SOCKET_IFNAME": self.interface},
            cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip

    def processes(self) -> list[int]:
        """Return everything that runs on this machine."""
        listed = subprocess.run(
            ["ip", "netns", "pids", self.namespace], capture_output=True, text=True, check=True
        )
        return [int(pid) for pid in listed.stdout.split()]

    def kill(self) -> None:
        """End all that runs on this machine at once."""
        for pid in self.processes():
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue


@pytest.fixture
def hosts(tmp_path: Path) -> Iterator[tuple[Host, Host]]:
    """Return two machines that see each other and nothing else."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        pytest.skip("network namespaces need root and iproute2's ip")
    tag = f"mk{os.getpid()}"
    names = (f"{tag}-a", f"{tag}-b")

    def ip(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(["ip", *arguments], capture_output=True, text=True, check=False)

    made = [ip("netns", "add", name) for name in names]
    made.append(
        ip("link", "add", "cable0", "netns", names[0], "type", "veth", "peer", "cable0", "netns", names[1])
    )
    for number, name in enumerate(names):
        made.append(ip("-n", name, "addr", "add", f"10.77.0.{number + 1}/24", "dev", "cable0"))
        made += [ip("-n", name, "link", "set", device, "up") for device in ("cable0", "lo")]
    made_hosts = tuple(
        Host(
            namespace=name, interface="cable0", address=f"10.77.0.{number + 1}", number=number,
            run=StandIn.with_scenes(tmp_path / name, val=3, max_iters=12, val_interval=5, cold=True),
        )
        for number, name in enumerate(names)
    )  # fmt: skip
    try:
        failed = [done.stderr.strip() for done in made if done.returncode]
        if failed:
            pytest.skip(f"network namespaces cannot be made here: {failed[0]}")
        yield made_hosts[0], made_hosts[1]
    finally:
        if not any(done.returncode for done in made):
            for host in made_hosts:
                host.kill()
        for name in names:
            ip("netns", "del", name)


def wait_until(happened: Callable[[], bool], *, limit_s: float) -> None:
    """Return once something has happened; fail after a limit that is far too long."""
    pause, end = threading.Event(), time.monotonic() + limit_s
    while not happened():
        assert time.monotonic() < end, "it did not happen"
        pause.wait(0.1)


def test_a_machine_is_killed_comes_back_and_the_run_ends_as_if_nothing_had_been(
    hosts: tuple[Host, Host], tmp_path: Path
) -> None:
    whole = StandIn.with_scenes(tmp_path / "whole", val=3, max_iters=12, val_interval=5)
    done = whole.train("--cpu-ranks", "2")
    assert done.returncode == 0, done.stdout + done.stderr

    first, second = hosts
    marker = tmp_path / "there"
    extra = (
        'custom_imports = dict(imports=["at_iteration", "wait_for_death"], allow_failed_imports=False)\n'
        f'custom_hooks += [dict(type="WaitForDeath", iteration=7, marker={str(marker)!r})]\n'
    )
    for host in hosts:
        (host.run.root / "code").mkdir()
        (host.run.root / "code" / "wait_for_death.py").write_text(HOOK)
    endpoint = f"{first.address}:{PORT}"
    stays = first.start(endpoint, extra)
    dies = second.start(endpoint, extra)
    wait_until(marker.exists, limit_s=200)
    second.kill()
    dies.communicate()
    # Machine 0 notices, and starts again from the newest checkpoint: there it waits for the other.
    wait_until(lambda: bool(first.run.events("restart")), limit_s=100)
    returns = second.start(endpoint, extra)
    said = stays.communicate(timeout=250)[0]
    assert stays.returncode == 0, said
    also_said = returns.communicate(timeout=60)[0]
    assert returns.returncode == 0, also_said

    assert first.run.record().stop_reason == "completed"
    assert [event.iteration for event in first.run.events("resume")] == [5]
    assert differences(whole.checkpoint(12), first.run.checkpoint(12)) == []
    # The other machine has a log of its own, and nothing else: it got its start over the network.
    beside = second.run.work_dir.path.with_name("small-node1")
    assert not list(beside.glob("*.pth"))
    assert (beside / "session.json").is_file()
    assert [path.name for path in (second.run.root / "temp" / "from-rank-0").iterdir()] == ["iter_5.pth"]
    assert first.processes() == second.processes() == []
