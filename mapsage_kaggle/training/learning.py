"""What a session learns about its machine: what fits in memory, what takes how long, what was adapted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from mapsage_kaggle.pace import decaying_maximum
from mapsage_kaggle.records import Learned
from mapsage_kaggle.training.fallback import MemoryFallback
from mapsage_kaggle.training.prepare import Prepared, memory_of


class Learning:
    """What earlier sessions have learned, updated as this one trains.

    Attributes:
        ladder: The settings in use.
        steps: What was done to keep going, one sentence each.
        pace: Seconds, by the names of :meth:`mapsage_kaggle.pace.Pace.learned`.
    """

    def __init__(self, prepared: Prepared) -> None:
        facts, patch = prepared.facts, prepared.patch
        record = prepared.discovery.choice.record
        before = record.learned if record is not None else Learned()
        share = -(-patch.effective_batch // facts.world_size)
        self.ladder = MemoryFallback(
            micro_batch=patch.micro_batch,
            above=min(share, 2 * patch.micro_batch) if patch.micro_batch < share else None,
            with_cp=facts.with_cp,
            validation_rung=facts.validation_rung,
            workers=patch.num_workers,
            float32=before.precision == "float32" and not facts.precision,
        )
        self.steps: list[str] = []
        self.pace: Mapping[str, float] = before.pace or {}
        self._memory = Learned().with_memory(before)
        self._threads = prepared.threads
        self._effective_batch, self._world_size = patch.effective_batch, facts.world_size
        self._machine = memory_of(prepared.machine, facts.ranks_here, on_gpu=facts.on_gpu)

    def learned(self) -> Learned:
        """Return what the record keeps."""
        rung = self.ladder.validation_rung
        machine: Mapping[str, Any] | None = self._memory.machine
        return replace(
            self._memory,
            threads=self._threads,
            ladder=tuple(self.steps),
            machine=self._machine if machine is None and rung else machine,
            validation_rung=rung or None,
            precision="float32" if self.ladder.float32 else None,
            pace=dict(self.pace) or None,
        )

    def tried(self) -> Learned:
        """Return what one iteration with the settings in use would prove about memory."""
        whole = self.ladder.micro_batch * self._world_size >= self._effective_batch
        micro_batch, with_cp = None if whole else self.ladder.micro_batch, self.ladder.with_cp or None
        machine = self._machine if micro_batch is not None or with_cp else None
        return Learned(micro_batch=micro_batch, with_cp=with_cp, machine=machine)

    def has_trained(self) -> None:
        """Note that an iteration was done with the settings in use."""
        self._memory = self.tried()

    def measure_finish(self, seconds: float) -> None:
        """Note how long the hand-over took once training had ended."""
        expected_s = decaying_maximum(self.pace.get("finish_s"), seconds)
        self.pace = {**self.pace, "finish_s": round(expected_s, 3)}
