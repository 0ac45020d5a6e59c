"""The spec that is passed to a training child, and how that child is launched."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from mapsage_kaggle.paths import WorkDir
from mapsage_kaggle.records import CheckpointRef, SessionRecord
from mapsage_kaggle.spec import ChildSpec
from mapsage_kaggle.training.learning import Learning
from mapsage_kaggle.training.prepare import Prepared
from mapsage_kaggle.training.supervisor import Launch


def first_spec(prepared: Prepared, record: SessionRecord, learning: Learning) -> ChildSpec:
    """Return the spec of a session's first child, which starts from the chosen checkpoint or from scratch."""
    options, clock, patch = prepared.options, prepared.clock, prepared.patch
    choice = prepared.discovery.choice
    return ChildSpec(
        config=WorkDir(prepared.work_dir).config,
        work_dir=prepared.work_dir,
        clock_started_s=clock.started_s,
        limit_s=clock.limit_s,
        reserve_s=clock.reserve_s,
        action=choice.action,
        checkpoint=choice.target,
        checkpoint_sha256=choice.inspection.sha256 if choice.inspection else None,
        expect_iteration=prepared.start_iteration if choice.action == "resume" else None,
        run_id=record.run_id,
        fingerprint=record.fingerprint,
        threads=prepared.threads,
        save_interval=patch.save_interval,
        save_every_s=options.save_every_s,
        budget_bytes=options.budget_bytes,
        save_best=patch.save_best,
        best_rules=dict(patch.best_rules),
        deterministic=options.deterministic,
        pace=dict(learning.pace),
        extend=prepared.facts.extend_to is not None,
        on_changed_data=options.on_changed_data,
        take_up=options.extend_to is not None,
        track=options.track,
        validation_rung=learning.ladder.validation_rung,
        rung=learning.tried(),
        launched_s=clock.elapsed_s(),
    )


def next_spec(
    prepared: Prepared, record: SessionRecord, learning: Learning, newest: CheckpointRef | None
) -> ChildSpec:
    """Return the spec of a later child, which resumes from the newest proven checkpoint if there is one."""
    spec = replace(first_spec(prepared, record, learning), restarted=True)
    if newest is None:
        return spec
    return replace(
        spec,
        action="resume",
        checkpoint=prepared.work_dir / newest.file,
        checkpoint_sha256=newest.sha256,
        expect_iteration=newest.iteration,
    )


def launch_of(prepared: Prepared, spec: ChildSpec, tracking: Mapping[str, str]) -> Launch:
    """Write the spec to scratch space, and return how to launch its child."""
    options, paths = prepared.options, prepared.discovery.paths
    paths.temp.mkdir(parents=True, exist_ok=True)
    file = paths.temp / f"child-{spec.run_id}.json"
    spec.write(file)
    return Launch(
        spec=file,
        work_dir=prepared.work_dir,
        num_workers=prepared.facts.ranks_here,
        threads=prepared.threads,
        gpus=prepared.facts.on_gpu,
        code=prepared.discovery.code,
        passed=options.pass_env,
        tracking=tracking,
        scratch=paths.temp,
        nnodes=options.nnodes,
        node_rank=options.node_rank,
        rdzv_endpoint=options.rdzv_endpoint,
        deterministic=options.deterministic,
    )
