"""Work counted from outside against a count by hand, and memory against a tensor of known size."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

import pytest
import torch

import mixcache
from mixcache.bench import meter
from mixcache.bench.meter import MemoryGauge, WorkMeter, live_tensor_bytes, work_digits, work_share
from mixcache.generation import watched_loop

WIDTH, FEED_FORWARD, NUM_BLOCKS = 24, 32, 4
TOKENS, TEXT = 2, 24
"""Latents of 2 frames of 2 x 2 in patches of 2 x 2; the text is padded."""
BLOCK = (
    4 * TOKENS * WIDTH * WIDTH  # self-attention: query, key, value, output
    + 2 * TOKENS * WIDTH * WIDTH  # cross-attention: query, output
    + 2 * TEXT * WIDTH * WIDTH  # its key and value, of the text
    + 2 * TOKENS * WIDTH * FEED_FORWARD
)
STEP = 2 * NUM_BLOCKS * BLOCK  # conditional and unconditional


def counted_steps(pipeline: Any, generate: Callable[..., Any], num_steps: int, **arguments: Any) -> list[int]:
    work = WorkMeter()
    with work.on(pipeline), watched_loop(pipeline, work.mark):
        generate(pipeline, num_steps=num_steps, **arguments)
    return work.steps


def test_the_work_of_a_plain_step_is_what_a_count_by_hand_gives(pipeline: Any, generate: Callable[..., Any]) -> None:
    assert counted_steps(pipeline, generate, 3) == [STEP, STEP, STEP]
    assert counted_steps(pipeline, generate, 2, guidance_scale=1.0) == [STEP // 2, STEP // 2]


@pytest.mark.parametrize(("granularity", "work", "digits"), [("step", 0, "."), ("cfg", STEP // 2, "5")])
def test_a_cached_step_is_seen_from_outside(
    pipeline: Any, generate: Callable[..., Any], granularity: str, work: int, digits: str
) -> None:
    settings = {
        "granularities": granularity,
        "period": 2,
        "predictor": "reuse",
        "num_warmup_steps": 2,
        "num_cooldown_steps": 1,
    }
    with mixcache.enable(pipeline, "every_nth", **settings):
        steps = counted_steps(pipeline, generate, 5)
    assert steps == [STEP, STEP, STEP, work, STEP]
    assert work_digits(steps, [STEP] * 5) == f"###{digits}#"


def test_a_block_step_computes_the_blocks_around_the_span(pipeline: Any, generate: Callable[..., Any]) -> None:
    settings = {
        "granularities": "block",
        "period": 2,
        "predictor": "reuse",
        "num_warmup_steps": 2,
        "num_cooldown_steps": 1,
    }
    with mixcache.enable(pipeline, "every_nth", span_first=1, span_after=2, **settings):
        steps = counted_steps(pipeline, generate, 5)
    assert steps == [STEP, STEP, STEP, 2 * 3 * BLOCK, STEP]


def test_a_layer_that_is_answered_for_is_not_counted(pipeline: Any, generate: Callable[..., Any]) -> None:
    query = pipeline.transformer.blocks[0].attn1.to_q
    query.forward = torch.zeros_like  # as wide as what goes in
    assert counted_steps(pipeline, generate, 2) == [STEP - 2 * TOKENS * WIDTH * WIDTH] * 2


def test_nothing_is_left_behind_not_even_after_an_error(pipeline: Any) -> None:
    linear = torch.nn.functional.linear
    with WorkMeter().on(pipeline):
        assert torch.nn.functional.linear is not linear
    assert torch.nn.functional.linear is linear
    with pytest.raises(KeyboardInterrupt), WorkMeter().on(pipeline):
        raise KeyboardInterrupt
    assert torch.nn.functional.linear is linear


def test_a_second_loop_begins_anew(pipeline: Any, generate: Callable[..., Any]) -> None:
    work = WorkMeter()
    with work.on(pipeline), watched_loop(pipeline, work.mark):
        generate(pipeline, num_steps=4)
        generate(pipeline, num_steps=2)
    assert work.steps == [STEP, STEP]


def test_work_as_a_share_and_as_digits() -> None:
    assert work_share([100, 50, 0], [100, 100, 100, 100]) == 0.375
    plain = [1000, 1000]
    assert work_digits([1000, 995, 994, 500, 499, 99, 1, 0], plain) == "##95411."
    assert work_digits([], plain) == ""


def test_the_gauge_sees_what_is_held(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MemoryGauge, "EVERY", 5)
    cpu = torch.device("cpu")
    plain, holding = MemoryGauge(cpu), MemoryGauge(cpu)
    gc.collect()
    for num_done in range(13):
        plain.mark(num_done, 12)
    held = torch.zeros(2**20)
    views = [held.view(-1), held[:10]]
    for num_done in range(13):
        holding.mark(num_done, 12)
    assert list(plain.seen) == [0, 5, 10, 11]
    assert holding.above(plain) == pytest.approx(2**22, abs=2**16)  # four bytes each, and views hold nothing more
    assert plain.above(holding) == 0
    before = live_tensor_bytes(cpu)
    del held, views
    assert before - live_tensor_bytes(cpu) == pytest.approx(2**22, abs=2**16)


def test_short_loops_are_gauged_at_their_last_step_but_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(meter, "live_tensor_bytes", lambda device: 0)
    gauge = MemoryGauge(torch.device("cpu"))
    for num_done in range(5):
        gauge.mark(num_done, 4)
    assert list(gauge.seen) == [0, 3]


def test_steps_that_only_one_of_two_gauges_saw_tell_nothing() -> None:
    first, second = MemoryGauge(torch.device("cpu")), MemoryGauge(torch.device("cpu"))
    first.seen, second.seen = {0: 100, 5: 130, 9: 500}, {0: 90, 5: 100, 10: 100}
    assert first.above(second) == 30
