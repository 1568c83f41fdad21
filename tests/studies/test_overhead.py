"""What is counted as the hook's own time, and that nothing is left behind."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from mixcache.core.engine import Engine
from studies import overhead
from studies.overhead import share_of_hook


def test_the_time_of_the_hook_is_what_the_model_does_not_take(
    make_pipeline: Callable[..., Any], generate: Callable[..., torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a clock on which a decision takes 2 seconds, a run of the model 5, and nothing else any time."""
    pipeline = make_pipeline()
    before, begin = generate(pipeline), Engine._begin
    clock, num_decisions = [0.0], [0]

    def slow_begin(engine: Engine, info: Any, device: Any) -> Any:
        clock[0] += 2.0
        num_decisions[0] += 1
        return begin(engine, info, device)

    def slow_model(*_: Any) -> None:
        clock[0] += 5.0

    def denoise() -> float:
        generate(pipeline)
        return clock[0]

    monkeypatch.setattr(overhead, "time", SimpleNamespace(perf_counter=lambda: clock[0]))
    monkeypatch.setattr(Engine, "_begin", slow_begin)
    slowed = pipeline.transformer.patch_embedding.register_forward_pre_hook(slow_model)
    share = share_of_hook(pipeline, "always_compute", denoise)
    slowed.remove()
    own = 2.0 * num_decisions[0]
    assert clock[0] > own > 0
    assert share == pytest.approx(own / (clock[0] - own))
    assert "forward" not in vars(pipeline.transformer)
    assert torch.equal(generate(pipeline), before)


def test_nothing_stays_after_an_error(make_pipeline: Callable[..., Any]) -> None:
    pipeline = make_pipeline()

    def broken() -> float:
        raise ArithmeticError

    with pytest.raises(ArithmeticError):
        share_of_hook(pipeline, "hindsight", broken)
    assert "forward" not in vars(pipeline.transformer)
    assert not hasattr(pipeline.transformer, "_diffusers_hook")
