"""Two ranks that run one clip over gloo: what they decide, what they make, and that none waits for ever.

A rank that waits longer than the group's time-out raises "left alone", which no test here expects: a hang is a failure.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest
import tasks
from crew import TIMEOUT_SECONDS, Crew, Failure

pytestmark = pytest.mark.ranks
ALL = ["step", "cfg", "block"]
CASES = [
    ("always_compute", {}),
    ("hindsight", {}),
    ("hindsight", {"granularities": ALL}),
    ("mixcache", {}),
    ("hold", {}),
    ("every_nth", {"granularities": "step", "period": 3, "predictor": "line", "corrector": True}),
    ("every_nth", {"granularities": "cfg", "period": 2}),
    ("every_nth", {"granularities": "block", "period": 2}),
]


@pytest.fixture(scope="module")
def two() -> Iterator[Crew]:
    crew = Crew(2)
    yield crew
    crew.close()


@pytest.fixture(scope="module")
def four() -> Iterator[Crew]:
    crew = Crew(4)
    yield crew
    crew.close()


@pytest.fixture
def two_scripts() -> Iterator[Crew]:
    """Each of two ranks is over with its first error."""
    crew = Crew(2, ends_on_error=True)
    yield crew
    crew.close()


def failures(answers: list[Any]) -> list[Failure]:
    assert all(isinstance(answer, Failure) for answer in answers), answers
    return answers


def sound(answers: list[Any]) -> list[Any]:
    assert not any(isinstance(answer, Failure) for answer in answers), answers
    return answers


def check_clips(answers: list[Any]) -> None:
    """Each rank made the clip that it makes alone, to the bit where it does so without the cache, and by the same
    decisions; with few bytes."""
    first = sound(answers)[0][3]
    for plain, plain_spread, alone, together in sound(answers):
        assert together.decisions == first.decisions
        assert together.latents.equal(first.latents)
        assert (plain_spread - plain).abs().max() < 0.01  # of values around 1
        if plain_spread.equal(plain):
            assert together.decisions == alone.decisions
            assert together.corrected == alone.corrected
            assert together.latents.equal(alone.latents)
        assert together.num_steps == tasks.NUM_STEPS
        assert 0 < together.num_bytes <= 64 * together.num_steps + 8 * together.num_measured
        assert alone.num_bytes == 0


@pytest.mark.parametrize(("policy", "settings"), CASES, ids=str)
def test_the_clip_is_that_of_one_rank(two: Crew, policy: str, settings: dict[str, Any]) -> None:
    answers = two(tasks.alone_and_spread, policy, settings)
    check_clips(answers)
    assert all(plain_spread.equal(plain) for plain, plain_spread, *_ in answers)


@pytest.mark.parametrize("model", ["wan, 3 heads", "shapes-wan", "hunyuan"])
@pytest.mark.parametrize(("policy", "settings"), CASES, ids=str)
def test_other_models(two: Crew, model: str, policy: str, settings: dict[str, Any]) -> None:
    check_clips(two(tasks.alone_and_spread, policy, settings, model))


@pytest.mark.parametrize("model", ["wan, two experts", "wan, compiled"])
@pytest.mark.parametrize("granularities", [["step"], ALL], ids=str)
def test_two_experts_and_compiled_blocks(two: Crew, model: str, granularities: list[str]) -> None:
    check_clips(two(tasks.alone_and_spread, "hindsight", {"granularities": granularities}, model))


@pytest.mark.parametrize(("policy", "settings"), CASES, ids=str)
def test_four_ranks(four: Crew, policy: str, settings: dict[str, Any]) -> None:
    check_clips(four(tasks.alone_and_spread, policy, settings))


def test_an_error_on_one_of_four_ranks(four: Crew) -> None:
    answers = failures(four(tasks.with_fault, "error", on=2))
    assert answers.pop(2).text == "the disk is full"
    assert {answer.text for answer in answers} == {"rank 2 failed: OSError: the disk is full"}


def test_a_trace_is_replayed(two: Crew) -> None:
    for first, again in sound(two(tasks.replayed)):
        assert again.latents.equal(first.latents)
        assert again.decisions == first.decisions
        assert sum(first.corrected) > 0


def test_the_clock_is_that_of_rank_0(two: Crew) -> None:
    first, second = sound(two(tasks.with_own_clocks, 2.0))
    assert first.decisions == second.decisions
    # 2x of 16 steps, where a cached one takes a fiftieth: 8 are computed; it would be 5 on the clock of rank 1
    assert sum(decision.startswith("compute") for decision in first.decisions) == 8


# diffusers spreads no tokens of CogVideoX
@pytest.mark.parametrize("model", ["wan", "cogvideox", "hunyuan"])
@pytest.mark.parametrize(("policy", "settings"), CASES, ids=str)
def test_a_group_that_is_given(two: Crew, model: str, policy: str, settings: dict[str, Any]) -> None:
    for alone, together in sound(two(tasks.on_a_group, policy, settings, model)):
        assert together.latents.equal(alone.latents)
        assert together.decisions == alone.decisions
        assert 0 < together.num_bytes <= 64 * together.num_steps + 8 * together.num_measured


def test_three_calls_a_step(two: Crew) -> None:
    for alone, together in sound(two(tasks.on_a_group, "hindsight", {}, "hunyuan 1.5, three calls")):
        assert together.latents.equal(alone.latents)
        assert max(len(entry["calls"]) for entry in together.entries) == 3
        assert 0 < together.num_bytes <= 64 * together.num_steps + 8 * together.num_measured


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"differently": {"error": 0.5}, "policy": "hold"}, "error"),
        ({"differently": {"max_age": 3}}, "max_age"),
        ({"differently": {"span_after": 2}}, "span_after"),
        ({"arguments": {"num_steps": 9}}, "noise levels"),
        ({"arguments": {"guidance_scale": 3.0}}, "guidance"),
        ({"arguments": {"num_frames": 9}}, "shape"),
    ],
    ids=lambda value: str(value),
)
def test_what_differs_is_named_on_all_ranks(two: Crew, changes: dict[str, Any], name: str) -> None:
    first, second = failures(two(tasks.with_fault, "none", **changes))
    assert first.kind == second.kind == "ValueError"
    assert first.text == second.text
    assert first.text.startswith(f"{name} differs between ranks: ")


@pytest.mark.parametrize("on", [0, 1])
@pytest.mark.parametrize("after", [0, 6, 11])
def test_an_error_on_one_rank_is_one_on_all(two: Crew, on: int, after: int) -> None:
    answers = failures(two(tasks.with_fault, "error", on=on, after=after))
    assert (answers[on].kind, answers[on].text) == ("OSError", "the disk is full")
    other = answers[1 - on]
    assert (other.kind, other.text) == ("RuntimeError", f"rank {on} failed: OSError: the disk is full")


def test_an_error_before_the_first_call(two: Crew) -> None:
    first, second = failures(two(tasks.with_fault, "before the first call"))
    assert second.text == "the disk is full"
    assert first.text == "rank 1 failed: OSError: the disk is full"


@pytest.mark.parametrize(("on", "error"), [(0, MemoryError("no room")), (1, KeyboardInterrupt("by the user"))])
def test_what_ends_the_transformer_of_one_rank(two_scripts: Crew, on: int, error: BaseException) -> None:
    begun = time.monotonic()
    answers = failures(two_scripts(tasks.fails_inside, error, on=(on,)))
    assert time.monotonic() - begun < TIMEOUT_SECONDS
    kind = type(error).__name__
    assert (answers[on].kind, answers[on].text) == (kind, str(error))
    other = answers[1 - on]
    assert (other.kind, other.text) == ("RuntimeError", f"rank {on} failed: {kind}: {error}")


@pytest.mark.slow  # it waits for the time-out
def test_a_process_that_lives_on_after_an_error_inside_the_transformer() -> None:
    crew = Crew(2)
    try:
        first, second = failures(crew(tasks.fails_inside, MemoryError("no room"), on=(1,)))
    finally:
        crew.close()
    assert second.text == "no room"
    assert first.text == "rank 1 failed: MemoryError: no room"


def test_an_error_inside_the_transformer_of_all_ranks_is_each_ones_own(two: Crew) -> None:
    for failure in failures(two(tasks.fails_inside, ValueError("too large"), on=(0, 1))):
        assert (failure.kind, failure.text) == ("ValueError", "too large")


def test_after_an_error_on_all_ranks_the_next_clip_is_made(two: Crew) -> None:
    first, second = sound(two(tasks.fails_inside, ValueError("too large"), on=(0, 1), recovers=True))
    assert first.latents.equal(second.latents)
    assert len(first.decisions) == 12


def test_an_interrupt(two: Crew) -> None:
    first, second = failures(two(tasks.with_fault, "interrupt"))
    assert second.kind == "KeyboardInterrupt"
    assert first.text.startswith("rank 1 failed: KeyboardInterrupt")


def test_after_an_error_the_next_clip_is_made(two: Crew) -> None:
    first, second = sound(two(tasks.with_fault, "error", recovers=True))
    assert first.latents.equal(second.latents)
    assert first.decisions == second.decisions
    assert len(first.decisions) == 12


def test_a_nan_on_one_rank_is_one_on_all(two: Crew) -> None:
    first, second = sound(two(tasks.with_fault, "NaN"))
    assert first.decisions == second.decisions
    spoilt = [[entry["non_finite"] for entry in clip.entries] for clip in (first, second)]
    assert spoilt[0] == spoilt[1]
    assert sum(spoilt[0][:7]) == 0 < sum(spoilt[0])


def test_a_call_in_full_takes_the_others_along(two: Crew) -> None:
    first, second = sound(two(tasks.with_fault, "in full"))
    assert first.num_calls_in_full == second.num_calls_in_full == 1
    assert first.latents.equal(second.latents)
    assert first.decisions == second.decisions


def test_cfg_parallel_is_refused(two: Crew) -> None:
    first, second = failures(two(tasks.branches_apart))
    assert first.kind == second.kind == "ValueError"
    assert first.text == second.text
    assert first.text.startswith("call differs between ranks: cond on rank 0, uncond on rank 1; branches on different")


def test_weights_that_are_spread_are_refused(two: Crew) -> None:
    for failure in failures(two(tasks.with_spread_weights)):
        assert failure.kind == "TypeError"
        assert "cannot be cached: its weights are spread by FSDP" in failure.text


def test_tensor_parallel_weights_are_refused(two: Crew) -> None:
    for failure in failures(two(tasks.with_tensor_parallel)):
        assert failure.kind == "TypeError"
        assert "cannot be cached: its weights are DTensors" in failure.text


def test_the_span_does_not_hold_the_block_that_spreads_tokens(two: Crew) -> None:
    settings = {"granularities": "block", "period": 2, "span_first": 0}
    for failure in failures(two(tasks.with_fault, "none", policy="every_nth", settings=settings)):
        assert failure.kind == "ValueError"
        assert failure.text.startswith("span_first=0 leaves out the block before which tokens are spread")
