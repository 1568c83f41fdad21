"""What steps took, on a clock that tests set, and on events that pass when tests say so."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

import mixcache
from mixcache.core import step_times
from mixcache.core.step_times import NUM_REMEMBERED, StepTimes
from mixcache.decision import Granularity

C, S, G = Granularity.COMPUTE, Granularity.STEP, Granularity.CFG
CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)


class Clock:
    """Stands still but where it is set."""

    now = 0.0

    def perf_counter(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(step_times, "time", clock)
    return clock


def run(times: StepTimes, clock: Clock, steps: str, seconds: dict[str, float], device: torch.device = CPU) -> None:
    """Steps by the letters of their granularities, the last of them over too."""
    for letter in steps:
        times.begin({"c": C, "s": S, "g": G}[letter], device)
        clock.now += seconds[letter]


def test_a_step_lasts_until_the_next_begins(clock: Clock) -> None:
    times = StepTimes()
    assert times.medians() == {}
    times.begin(C, CPU)
    clock.now = 3.0
    assert times.medians() == {}
    times.begin(S, CPU)
    clock.now = 3.5
    times.begin(C, CPU)
    assert times.medians() == {C: 3.0, S: 0.5}


def test_the_median_of_the_newest_is_told(clock: Clock) -> None:
    times = StepTimes()
    for seconds in (100.0, 2.0, 4.0, 3.0):
        run(times, clock, "c", {"c": seconds})
    times.begin(S, CPU)
    assert times.medians() == {C: 3.5}  # the middle of 2, 3, 4 and 100
    times.clear()
    run(times, clock, "c" * (NUM_REMEMBERED + 1), {"c": 7.0})
    assert times.medians() == {C: 7.0}
    assert len(times._seconds[C]) == NUM_REMEMBERED


def test_the_last_step_of_a_loop_is_not_counted(clock: Clock) -> None:
    times = StepTimes()
    run(times, clock, "cs", {"c": 2.0, "s": 1.0})
    times.end()
    clock.now += 1000.0  # until the next run
    run(times, clock, "cs", {"c": 2.0, "s": 1.0})
    assert times.medians() == {C: 2.0}
    assert times.seconds == 4.0


def test_sums_are_of_the_run_under_way_and_medians_go_on(clock: Clock) -> None:
    times = StepTimes()
    run(times, clock, "cccc", {"c": 4.0})
    times.medians()
    times.clear()
    assert (times.seconds, times.plain_seconds) == (0.0, 0.0)
    run(times, clock, "csscc", {"c": 2.0, "s": 0.5})
    assert times.medians() == {C: 4.0, S: 0.5}  # of 4, 4, 4, 2 and 2
    # four steps are over: 2 + 0.5 + 0.5 + 2, where computed ones would have been 4 x 2
    assert (times.seconds, times.plain_seconds) == (5.0, 8.0)


def test_without_a_computed_step_nothing_is_told_of_a_plain_run(clock: Clock) -> None:
    times = StepTimes()
    run(times, clock, "sss", {"s": 0.5})
    assert times.medians() == {S: 0.5}
    assert (times.seconds, times.plain_seconds) == (1.0, 0.0)


# ---------------------------------------------------------------------------------------------------------- accelerator


class Event:
    """Of a stream that runs behind: passes when it is let."""

    clock: Clock
    all: list[Event]

    def __init__(self, *, device: torch.device, enable_timing: bool) -> None:
        assert (device, enable_timing) == (GPU, True)
        self.at: float | None = None
        self.has_passed = False
        self.all.append(self)

    def record(self) -> None:
        self.at = self.clock.now

    def query(self) -> bool:
        return self.has_passed

    def elapsed_time(self, end: Event) -> float:
        """Milliseconds."""
        assert self.has_passed
        assert end.has_passed
        assert self.at is not None
        assert end.at is not None
        return 1000 * (end.at - self.at)


@pytest.fixture
def events(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> list[Event]:
    """Those recorded, in order."""
    events: list[Event] = []
    monkeypatch.setattr(Event, "clock", clock, raising=False)
    monkeypatch.setattr(Event, "all", events, raising=False)
    monkeypatch.setattr(torch, "Event", Event)
    return events


def test_on_an_accelerator_a_step_is_told_once_its_end_has_passed(clock: Clock, events: list[Event]) -> None:
    times = StepTimes()
    run(times, clock, "csc", {"c": 2.0, "s": 0.25}, GPU)
    assert len(events) == 3
    assert times.medians() == {}
    for event in events[:2]:
        event.has_passed = True
    assert times.medians() == {C: 2.0}
    assert times.seconds == 2.0
    events[2].has_passed = True
    assert times.medians() == {C: 2.0, S: 0.25}
    assert times.seconds == 2.25
    assert (times.medians(), times.seconds) == ({C: 2.0, S: 0.25}, 2.25)  # each step once


def test_steps_whose_ends_never_pass_do_not_pile_up(
    clock: Clock, events: list[Event], monkeypatch: pytest.MonkeyPatch
) -> None:
    times = StepTimes()
    run(times, clock, "c" * (step_times.MAX_OPEN + 50), {"c": 1.0}, GPU)
    assert len(times._open) == step_times.MAX_OPEN


def test_sums_are_of_all_that_has_passed_by_then(clock: Clock, events: list[Event]) -> None:
    """Nobody asks for medians after the last step of a loop."""
    times = StepTimes()
    run(times, clock, "csc", {"c": 2.0, "s": 0.25}, GPU)
    times.end()
    for event in events:
        event.has_passed = True
    assert (times.plain_seconds, times.seconds) == (4.0, 2.25)


def test_what_is_open_at_the_end_of_a_run_is_not_of_the_next(clock: Clock, events: list[Event]) -> None:
    times = StepTimes()
    run(times, clock, "ccc", {"c": 2.0}, GPU)
    times.clear()
    for event in events:
        event.has_passed = True
    assert times.medians() == {}
    assert times.seconds == 0.0


def test_a_model_that_moves_between_steps_is_not_timed_across_them(clock: Clock, events: list[Event]) -> None:
    times = StepTimes()
    for device in (CPU, GPU, GPU, CPU, CPU):
        times.begin(C, device)
        clock.now += 1.0 if device == CPU else 3.0
    for event in events:
        event.has_passed = True
    assert times.medians() == {C: 2.0}  # of 3 on the accelerator and 1 elsewhere


# ------------------------------------------------------------------------------------------------------------ pipelines


@pytest.fixture
def slow_calls(clock: Clock, pipeline: Any) -> Any:
    """A pipeline whose transformer takes a second for each call that runs."""

    def pass_on(*_: Any) -> None:
        clock.now += 1.0

    pipeline.transformer.patch_embedding.register_forward_hook(pass_on)
    return pipeline


def test_a_policy_is_told_what_steps_take(slow_calls: Any, generate: Callable[..., Any]) -> None:
    seen: list[dict[Granularity, float]] = []
    with mixcache.enable(slow_calls, "every_nth", granularities="cfg", period=2, num_warmup_steps=2) as handle:
        decide = type(handle.policy).decide

        def watched(self: Any, step: Any, state: Any) -> Any:
            seen.append(dict(step.seconds))
            return decide(self, step, state)

        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(type(handle.policy), "decide", watched)
            generate(slow_calls)
        granularities = [entry.granularity for entry in handle.trace]
    assert set(granularities) == {C, G}
    # a step of two calls takes 2 s, one of cond alone 1 s; a step is over when the next one was decided
    assert seen[:3] == [{}, {}, {C: 2.0}]
    assert seen[-1] == {C: 2.0, G: 1.0}


def test_the_summary_has_the_speedup_of_the_newest_run(slow_calls: Any, generate: Callable[..., Any]) -> None:
    with mixcache.enable(slow_calls, "every_nth", granularities="step", period=2, num_warmup_steps=2) as handle:
        assert (handle.summary().speedup, handle.summary().wished_speedup) == (None, None)
        assert "speed-up" not in str(handle.summary())
        generate(slow_calls)
        granularities = [entry.granularity for entry in handle.trace]
        summary = handle.summary()
    counted = granularities[: 12 - 1]  # the last step has no end
    assert summary.speedup == pytest.approx(len(counted) / counted.count(C))
    assert f"speed-up     {summary.speedup:.2f}x of the denoising loop\n" in str(summary)
