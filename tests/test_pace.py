"""Sessions that end in time: what a session grants, simulated by the thousand, and what it foresees."""

from __future__ import annotations

import datetime
import math
import random
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from support.simulated import (
    HOUR_S,
    RESERVE_S,
    Machine,
    SimulatedSession,
    known,
    one_and_a_save_s,
    run,
    simulated,
)

from mapsage_kaggle.clock import SessionClock
from mapsage_kaggle.pace import (
    Pace,
    Samples,
    decaying_maximum,
    quota_date_s,
    week_start_s,
)


def test_samples_equal_a_sorted_window() -> None:
    rng, samples, values = random.Random(1), Samples(10, lately=3), []
    for _ in range(100):
        values.append(rng.choice([1.0, 2.0, rng.random()]))
        samples.add(values[-1])
        window = sorted(values[-10:])
        assert len(samples) == len(window)
        assert samples.slow(1.0) == window[-1]
        assert samples.slow(0.5) == window[math.ceil(len(window) / 2) - 1]
        assert samples.fastest() == window[0]
        assert samples.mean() == pytest.approx(sum(window) / len(window))
        assert samples.slowest_lately() == max(samples.slow(0.95), *values[-3:])


def test_without_samples_the_default_is_given() -> None:
    samples = Samples()
    assert [samples.slow(default=3), samples.mean(4), samples.median(5), samples.slowest_lately(6)] == [
        3,
        4,
        5,
        6,
    ]


KINDS: dict[str, dict[str, Callable[[random.Random], Any]]] = {
    "steady": {},
    "noisy": {"noise": lambda rng: rng.uniform(0.01, 0.3)},
    "drifting": {
        "noise": lambda rng: rng.uniform(0.0, 0.1),
        "drift": lambda rng: rng.uniform(-0.3, 1.5),
    },
    "stepping": {
        "noise": lambda rng: rng.uniform(0.0, 0.1),
        "step": lambda rng: (rng.random(), rng.uniform(0.1, 1.0)),
    },
    "stalling": {
        "noise": lambda rng: rng.uniform(0.0, 0.2),
        "stalls": lambda rng: rng.uniform(0.5, 5.0),
        "longest_stall_s": lambda rng: RESERVE_S * rng.uniform(0.2, 1.5),
    },
}


SESSIONS_OF_A_KIND = 2000


@pytest.mark.parametrize("kind", ["steady", "noisy"])
def test_on_stationary_timings_a_session_ends_in_time_and_not_early(kind: str) -> None:
    num_late, num_stopped = 0, 0
    for seed in range(SESSIONS_OF_A_KIND):
        session = simulated(seed, **KINDS[kind])
        _, stop = run(session)
        assert stop == "deadline"
        early_s = session.clock.deadline_s - session.now_s
        assert early_s <= one_and_a_save_s(session) + 1e-6, f"seed {seed} ends {early_s} s early"
        assert session.now_s <= session.clock.limit_s, f"seed {seed} is late"
        num_late += early_s < 0
        num_stopped += 1
    assert num_stopped == SESSIONS_OF_A_KIND
    # Where timings are noisy the last of them may be the slowest of all: the reserve is for that.
    assert num_late <= (0 if kind == "steady" else SESSIONS_OF_A_KIND // 100)


@pytest.mark.parametrize("kind", ["drifting", "stepping"])
def test_a_machine_that_becomes_slower_takes_half_of_the_reserve_at_most(kind: str) -> None:
    num_past = 0
    for seed in range(SESSIONS_OF_A_KIND):
        session = simulated(seed, **KINDS[kind])
        run(session)
        past_s = session.now_s - session.clock.deadline_s
        assert past_s <= 0.5 * RESERVE_S, f"seed {seed} takes {past_s} s of the reserve"
        num_past += past_s > 0
    assert num_past < SESSIONS_OF_A_KIND // 10


def test_a_session_is_late_only_by_a_stall_longer_than_the_reserve() -> None:
    num_late, num_long = 0, 0
    for seed in range(SESSIONS_OF_A_KIND):
        session = simulated(seed, **KINDS["stalling"])
        run(session)
        if session.now_s > session.clock.limit_s:
            num_late += 1
            assert session.stalled_s > RESERVE_S, f"seed {seed} stalled for {session.stalled_s} s"
        num_long += session.stalled_s > RESERVE_S
    # The stalls were there: the test could have failed.
    assert 0 < num_late < num_long


def test_everything_is_saved_and_a_validation_that_did_not_fit_is_owed() -> None:
    num_owed = 0
    for seed in range(300):
        session = simulated(seed, **KINDS["noisy"])
        session.owed_validation = None
        iteration, stop = run(session)
        assert stop == "deadline"
        assert session.saved_iteration == iteration
        due = iteration % session.val_interval == 0
        first_save = next(
            index for index, item in enumerate(session.trace) if item[:2] == ("save", iteration)
        )
        validated = any(item[0] == "validation" for item in session.trace[first_save:])
        assert session.owed_validation == (iteration if due and not validated else None)
        num_owed += session.owed_validation is not None
    assert num_owed > 10


def test_the_simulation_does_what_the_training_loop_does(tmp_path: Path) -> None:
    import torch

    from mapsage_kaggle.engine.control import Control
    from mapsage_kaggle.engine.loop import SessionTrainLoop, ValidationAborted

    class Loop(SessionTrainLoop):  # type: ignore[misc]
        """The real loop around a simulated session."""

        def __init__(self, session: SimulatedSession, max_iters: int) -> None:
            self._iter, self._max_iters, self.stop_training = 0, max_iters, False
            self.val_begin, self.val_interval = 1, session.val_interval
            self.dynamic_milestones, self.dynamic_intervals = None, None
            self.dataloader = ()
            self._runner = SimpleNamespace(
                session=session,
                seed=0,
                val_loop=SimpleNamespace(run=lambda: session.validate(ValidationAborted)),
                call_hook=lambda *_args, **_data: None,
                register_hook=lambda _hook: None,
                optim_wrapper=SimpleNamespace(
                    _accumulative_counts=1,
                    backward=lambda _loss: None,
                    step=lambda: None,
                    zero_grad=lambda: None,
                ),
                model=torch.nn.Linear(1, 1),
            )

        def _decide_current_val_interval(self) -> None:
            """The interval is always the same."""

        def _batch_sampler(self) -> Any:
            return SimpleNamespace()

        def _next_position(self, batches: Any) -> int:
            return 0

        def _run_iteration(self, loader: Any, batches: Any) -> None:
            self.session.run_iteration(self._iter)
            self._iter += 1

    seen: set[str] = set()
    cases = [(name, seed) for name in ("noisy", "stalling") for seed in range(60)]
    for name, seed in (*cases, ("drifting", 184), ("drifting", 272), ("stepping", 237), ("stepping", 579)):
        kind = KINDS[name]
        max_iters = 60 if seed % 4 == 0 else 10**9
        ours, real = simulated(seed, **kind), simulated(seed, **kind)
        run(ours, max_iters=max_iters)
        real.control = Control(
            clock=real.clock,
            pace=real.pace,
            stop_request=tmp_path / "none",
            save_request=tmp_path / "none",
            watch_pipe=False,
        )
        Loop(real, max_iters).run()
        assert real.trace == ours.trace, f"{name}, seed {seed}"
        seen |= {item[0] for item in real.trace} | {item[2] for item in real.trace if item[0] == "end"}
    assert seen == {"save", "validation", "left", "end", "deadline", "completed"}


def too_long(*, known: bool) -> SimulatedSession:
    """Return a session in which a validation takes three times as long as the session lives."""
    session = simulated(1, known=True)
    session.machine.iteration_s, session.machine.validation_s = 10.0, 2000.0
    session.machine.write_s = session.machine.copy_s = 1.0
    session.val_interval, session.owed_validation = 10, None
    expected = {"iteration_s": 10.0, "save_s": 1.0, "best_s": 0.3, "copy_s": 1.0, "finish_s": 8.0}
    session.pace.expected = {**expected, **({"validation_s": 2000.0} if known else {})}
    session.pace.validation_iterations = 300.0  # guessed as longer still
    return session


def kinds(session: SimulatedSession) -> list[str]:
    return [item[0] for item in session.trace]


@pytest.mark.parametrize("owed", [None, 0])
def test_a_validation_measured_as_longer_than_any_session_is_left_out(
    owed: int | None,
) -> None:
    session = too_long(known=True)
    session.owed_validation = owed
    iteration, stop = run(session)
    assert stop == "deadline"
    assert iteration > 3 * session.val_interval
    skipped = [item[1] for item in session.trace if item[0] == "skip"]
    assert skipped == [*([0] if owed is not None else []), *range(10, iteration + 1, 10)]
    assert "validation" not in kinds(session)
    assert session.owed_validation is None
    assert session.saved_iteration == iteration


def test_a_validation_only_guessed_longer_than_any_session_is_tried_then_left_out() -> None:
    first = too_long(known=False)
    iteration, stop = run(first)
    assert (iteration, stop) == (10, "deadline")
    assert kinds(first).count("validation") == kinds(first).count("left") == 1
    assert first.owed_validation == 10
    assert first.now_s <= first.clock.limit_s

    # It had iterations to do before: a session that begins with the validation may be long enough.
    second = too_long(known=False)
    second.pace.expected = first.pace.learned()  # by way of the record
    second.owed_validation = 10
    run(second, iteration=iteration)

    third = too_long(known=False)
    third.pace.expected = second.pace.learned()
    third.owed_validation = second.owed_validation
    run(third, iteration=iteration)
    tries = [kinds(session).count("validation") for session in (second, third)]
    assert tries == [1, 0]
    assert third.trace[0][0] == "skip"
    assert third.trace[-1][1] > iteration + 3 * third.val_interval


def test_a_validation_that_a_whole_session_can_hold_is_owed_and_not_left_out() -> None:
    whole_s = 800.0
    pace = known(validation_s=700.0)
    verdict = pace.decide(at(300.0), validation_due=True, whole_s=whole_s)
    assert (verdict.stop, verdict.validate, verdict.skip) == (True, False, False)
    verdict = known(validation_s=900.0).decide(at(300.0), validation_due=True, whole_s=whole_s)
    assert (verdict.stop, verdict.validate, verdict.skip) == (False, False, True)
    # Left out or not, the next iteration must fit.
    assert known(validation_s=900.0).decide(at(20.0), validation_due=True, whole_s=whole_s).stop


def test_what_a_session_needs_at_its_end_rises_at_once_and_falls_slowly() -> None:
    expected: float | None = None
    for measured, told in ((4.0, 4.0), (10.0, 10.0), (2.0, 8.0), (2.0, 6.5)):
        expected = decaying_maximum(expected, measured)
        assert expected == told
    assert Pace(expected={"finish_s": 6.5}).finish_s(at(100.0)) == 6.5
    assert Pace(expected={"finish_s": 6.5}).learned()["finish_s"] == 6.5


def at(left_s: float, **kind: Any) -> SessionClock:
    """Return a clock of a 1000 s session with a reserve of 100 s, so much before its deadline."""
    return SessionClock(started_s=0.0, limit_s=1000.0, reserve_s=100.0, now=lambda: 900.0 - left_s, **kind)


@pytest.mark.parametrize(("left_s", "stop"), [(23.01, False), (22.99, True)])
def test_an_iteration_is_begun_if_it_and_a_save_and_the_finish_fit(left_s: float, stop: bool) -> None:
    assert known().decide(at(left_s), validation_due=False).stop is stop


def test_a_save_that_is_due_must_fit_before_the_iteration_unless_it_is_done() -> None:
    assert known().decide(at(24.01), validation_due=False, save_due=True).stop is False
    assert known().decide(at(23.99), validation_due=False, save_due=True).stop is True
    assert known().decide(at(23.01), validation_due=False, save_due=True, saved=True).stop is False


@pytest.mark.parametrize(("left_s", "validate"), [(117.01, True), (116.99, False)])
def test_a_validation_is_begun_if_it_and_both_saves_fit(left_s: float, validate: bool) -> None:
    verdict = known().decide(at(left_s), validation_due=True)
    assert (verdict.validate, verdict.stop) == (validate, not validate)


def test_kaggles_saving_of_the_output_counts() -> None:
    pace = known()
    pace.output_bytes, pace.checkpoint_bytes = 4e9, 1e9
    assert pace.closing_s(at(900)) == pytest.approx(1 + 8 + 4 + 600)
    assert pace.closing_s(at(900), saved=True) == pytest.approx(4 + 480)
    assert pace.decide(at(620), validation_due=False).stop


def test_a_write_that_is_going_on_counts() -> None:
    pace = known()
    pace.write_begins(now_s=800.0)
    assert pace.closing_s(at(98)) == pytest.approx(6 + 8 + 4)
    assert pace.closing_s(at(98), saved=True) == pytest.approx(6 + 4)
    assert pace.closing_s(at(98), ahead_s=5.5) == pytest.approx(1 + 8 + 4)
    assert pace.closing_s(at(98), saved=True, ahead_s=60) == pytest.approx(4)
    pace.write_ends(now_s=802.0)
    assert pace.save.mean() == 2.0
    assert pace.closing_s(at(98), saved=True) == pytest.approx(4)


def test_inside_an_accumulation_training_goes_on_and_the_whole_of_it_must_fit() -> None:
    assert not known().decide(at(1), validation_due=False, may_stop=False, stride=4).stop
    assert known().decide(at(50), validation_due=False, stride=4).stop
    assert not known().decide(at(54), validation_due=False, stride=4).stop


def test_what_was_measured_here_counts_more_than_what_an_earlier_session_measured() -> None:
    pace = known()
    for _ in range(20):
        pace.iteration.add(2.0)
    pace.validated(20.0)
    assert (pace.iteration_s(), pace.validation_s()) == (2.0, 20.0)
    assert pace.learned() == {
        "iteration_s": 2.0,
        "validation_s": 20.0,
        "save_s": 8.0,
        "best_s": 3.0,
        "copy_s": 1.0,
        "finish_s": 4.0,
    }


def test_the_slow_iterations_count_and_not_the_mean() -> None:
    pace = Pace()
    for index in range(200):
        pace.iteration.add(3.0 if index % 10 == 0 else 1.0)
    assert pace.iteration_s() == 3.0
    pace.iteration.add(7.0)
    assert pace.iteration_s() == 7.0


def test_a_validation_is_taken_to_have_become_slower_as_iterations_have() -> None:
    pace = Pace()
    for _ in range(50):
        pace.iteration.add(1.0)
    pace.validated(60.0)
    for _ in range(500):
        pace.iteration.add(1.5)
    assert pace.validation_s() == pytest.approx(90.0)


def test_a_slower_machine_than_the_earlier_sessions_is_noticed() -> None:
    pace = known()
    pace.iteration.add(20.0)
    assert pace.validation_s() == pytest.approx(200.0)


def test_a_first_validation_is_guessed_from_iterations_and_else_tried() -> None:
    pace = Pace(validation_iterations=30.0)
    assert pace.decide(at(60), validation_due=True, saved=True).validate
    pace.iteration.add(2.5)
    assert pace.validation_s() == 75.0
    assert not pace.decide(at(60), validation_due=True).validate


def test_a_guess_replaces_nothing_that_was_measured() -> None:
    pace = known()
    pace.guess(save_s=99.0, other_s=1.0)
    assert (pace.save_s(), pace.expected["other_s"]) == (8.0, 1.0)


def test_a_validation_that_is_far_too_late_is_left_and_its_length_remembered() -> None:
    pace = known()
    assert not pace.must_leave_validation(at(-8.9))  # a quarter of the reserve is for it
    assert pace.must_leave_validation(at(-9.1))
    pace.left_validation(150.0)
    assert pace.learned()["validation_s"] == 150.0
    pace.left_validation(30.0)
    assert pace.learned()["validation_s"] == 150.0


def planned(
    session: SimulatedSession, *, max_iters: int, start: int, time_s: float, at_iteration: int
) -> Any:
    """Run a session, and return its plan after so many iterations and where it ended."""
    plans: list[Any] = []
    begin_s, original = session.now_s, session.run_iteration

    def run_iteration(iteration: int) -> None:
        original(iteration)
        if iteration + 1 - start == at_iteration:
            plans.append(
                session.pace.plan(
                    session.clock,
                    iteration=iteration + 1,
                    max_iters=max_iters,
                    val_interval=session.val_interval,
                    start_up_s=begin_s,
                    time_s=time_s + session.now_s,
                )
            )

    session.run_iteration = run_iteration  # type: ignore[method-assign]
    iteration, _ = run(session, iteration=start, max_iters=max_iters)
    return (plans[0] if plans else None), iteration


def long_session(rng: random.Random, machine: Machine, pace: Pace, val_interval: int) -> SimulatedSession:
    """Return a session of 12 hours."""
    session = SimulatedSession(
        machine=machine,
        clock=SessionClock(started_s=0.0),
        pace=pace,
        val_interval=val_interval,
        save_every_s=300.0,
        now_s=120.0,
    )
    session.clock = SessionClock(started_s=0.0, now=lambda: session.now_s)
    return session


@pytest.mark.parametrize("seed", range(8))
def test_the_plan_is_within_3_percent_after_200_iterations(seed: int) -> None:
    rng = random.Random(seed)
    machine = Machine(
        rng=rng,
        iteration_s=rng.uniform(3.0, 8.0),
        validation_s=rng.uniform(120.0, 900.0),
        copy_s=0.3,
        write_s=5.0,
        finish_s=20.0,
        checkpoint_bytes=3e8,
        noise=0.1,
    )
    val_interval, max_iters, time_s = rng.choice((200, 500, 1000)), 20_000, 1.8e9
    earlier = {"iteration_s": machine.iteration_s, "validation_s": machine.validation_s}
    iteration, sessions, begin_s, first = 0, 0, time_s, None
    reached, owed = 0, None
    while iteration < max_iters:
        session = long_session(rng, machine, Pace(expected=dict(earlier)), val_interval)
        session.pace.checkpoint_bytes = machine.checkpoint_bytes
        session.owed_validation = owed
        start = iteration
        plan, iteration = planned(session, max_iters=max_iters, start=start, time_s=begin_s, at_iteration=200)
        if sessions == 0:
            first, reached = plan, iteration
        sessions += 1
        begin_s += session.now_s if iteration >= max_iters else session.clock.limit_s - 600
        owed = session.owed_validation
    assert first is not None
    assert first.reach == pytest.approx(reached, rel=0.03)
    assert abs(first.sessions_left - (sessions - 1)) <= 1
    assert first.finish_s - time_s == pytest.approx(begin_s - time_s, rel=0.03)


def test_the_plan_counts_as_a_person_would() -> None:
    pace = known(iteration_s=1.0, validation_s=49.0, save_s=10.0, copy_s=0.5, finish_s=10.0)
    clock = at(700.5)
    # 680 s without the closing: 4 times 100 iterations and a validation of 50 s, then 80 iterations.
    plan = pace.plan(clock, iteration=0, max_iters=1000, val_interval=100, start_up_s=29.5, time_s=0.0)
    assert plan.reach == 480
    # A session has 900 s, and 850 of them to train: 550 iterations, from there on.
    assert plan.sessions_left == 1
    assert plan.finish_s == pytest.approx(700.5 + 29.5 + 20.5 + (1000 - 480) * 1.0 + 6 * 50)
    assert plan.to_json() == {"reach": 480, "sessions_left": 1, "finish_s": 1570, "finish_by_quota_s": None}


def test_the_plan_ends_at_a_validation_that_will_not_fit() -> None:
    pace = known(iteration_s=1.0, validation_s=99.0, save_s=10.0, copy_s=0.5, finish_s=0.0)
    plan = pace.plan(at(200), iteration=50, max_iters=1000, val_interval=200)
    assert plan.reach == 200


def test_the_plan_counts_a_validation_that_is_due_now() -> None:
    pace = known(iteration_s=1.0, validation_s=98.0, save_s=10.0, copy_s=1.0, finish_s=0.0)
    assert pace.plan(at(261), iteration=200, max_iters=1000, val_interval=200).reach == 350
    assert pace.plan(at(261), iteration=201, max_iters=1000, val_interval=200).reach == 400
    assert pace.time_for(400, iteration=200, val_interval=200) == 200 + 2 * 100
    assert pace.time_for(400, iteration=0, val_interval=200) == 400 + 2 * 100
    assert pace.time_for(400, iteration=400, val_interval=200) == 0


def test_the_plan_of_the_last_session_is_the_end() -> None:
    pace = known(iteration_s=1.0)
    plan = pace.plan(at(800), iteration=500, max_iters=600, time_s=1000.0, quota_used_s=0.0)
    assert (plan.reach, plan.sessions_left) == (600, 0)
    assert plan.finish_s == plan.finish_by_quota_s == pytest.approx(1000 + 100 + 13)


def test_a_session_whose_time_is_that_of_what_is_left_is_the_last() -> None:
    plan = known(iteration_s=3.0).plan(at(313), iteration=500, max_iters=600, time_s=1000.0)
    assert (plan.reach, plan.sessions_left, plan.finish_s) == (600, 0, 1000 + 313)


def test_a_session_too_short_for_an_iteration_foresees_no_end() -> None:
    plan = known(iteration_s=5000.0).plan(at(800), iteration=3, max_iters=600)
    assert (plan.reach, plan.sessions_left, plan.finish_s) == (3, None, None)
    plan = known(iteration_s=600.0).plan(at(800), iteration=3, max_iters=600)
    assert (plan.reach, plan.sessions_left) == (4, 596)  # one iteration in each


def test_before_anything_is_known_no_iteration_is_foreseen() -> None:
    assert Pace().iterations_in(100.0, iteration=0) == 0
    assert Pace().plan(at(100.0), iteration=3, max_iters=600).reach == 3


def test_before_anything_is_measured_a_stop_costs_a_save_and_2_percent_of_the_limit() -> None:
    pace, clock = Pace(), SessionClock(started_s=0.0, limit_s=100.0, reserve_s=10.0, now=lambda: 0.0)
    assert (pace.iteration_s(), pace.save_s(), pace.best_s(), pace.copy_s()) == (1.0, 5.0, 5.0, 0.0)
    assert Pace(validation_iterations=10).validation_s() == 0.0  # unknown, and so tried
    assert pace.finish_s(clock) == 2.0
    assert (pace.closing_s(clock), pace.closing_s(clock, saved=True)) == (7.0, 2.0)
    # As long as nothing is known of best checkpoints, one is as long as another.
    assert pace.validation_needs_s(clock, saved=False) == 5.0 + 5.0 + 5.0 + 2.0


@pytest.mark.parametrize(("seconds", "iterations"), [(-5.0, 0), (0.0, 0), (2.9, 1), (4.1, 2)])
def test_whole_iterations_are_foreseen_and_never_fewer_than_none(seconds: float, iterations: int) -> None:
    assert known(iteration_s=2.0).iterations_in(seconds, iteration=3) == iterations


def test_costs_of_less_than_a_second_are_handed_on_and_those_unmeasured_are_not() -> None:
    pace = Pace()
    pace.copy.add(0.25)
    assert pace.learned() == {"copy_s": 0.25}


def moment(text: str) -> float:
    return datetime.datetime.fromisoformat(text).replace(tzinfo=datetime.timezone.utc).timestamp()


@pytest.mark.parametrize(
    ("now", "needed_h", "used_h", "then"),
    [
        ("2026-01-07 10:00", 20, 5, "2026-01-08 06:00"),  # a Wednesday; it fits into this week
        ("2026-01-07 10:00", 35, 10, "2026-01-10 15:00"),  # 20 h now, the rest from Saturday on
        ("2026-01-07 10:00", 80, 0, "2026-01-17 20:00"),  # 30 h each week
        ("2026-01-07 10:00", 60, 0, "2026-01-11 06:00"),  # all of the next week's
        ("2026-01-07 10:00", 10, 50, "2026-01-10 10:00"),  # nothing is left of this week's
        ("2026-01-09 20:00", 10, 0, "2026-01-10 06:00"),  # 4 h are left of the week itself
        ("2026-01-10 00:00", 30, 0, "2026-01-11 06:00"),  # a week begins
    ],
)
def test_the_quota_begins_anew_on_saturday(now: str, needed_h: float, used_h: float, then: str) -> None:
    date = quota_date_s(moment(now), needed_h * HOUR_S, used_s=used_h * HOUR_S)
    assert date == pytest.approx(moment(then))


def test_a_week_begins_on_saturday() -> None:
    assert week_start_s(moment("2026-01-09 23:59")) == moment("2026-01-03 00:00")
    assert week_start_s(moment("2026-01-10 00:00")) == moment("2026-01-10 00:00")
