"""Whoever asked for speed and does not get it reads one line why, once, and `summary()` tells it."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch

import mixcache
from mixcache.hosts.diffusers.clock import UnknownCallError
from mixcache.hosts.diffusers.reader import Reader

Generate = Callable[..., torch.Tensor]


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == "mixcache"]


def test_a_run_that_is_cached_has_nothing_to_say(
    pipeline: Any, generate: Generate, caplog: pytest.LogCaptureFixture
) -> None:
    with mixcache.enable(pipeline, "every_nth") as handle:
        generate(pipeline)
        assert handle.summary()["why_not"] is None
    with mixcache.enable(pipeline, "always_compute") as handle:
        generate(pipeline)
        assert handle.summary()["why_not"] is None
    assert lines(caplog) == []


def test_a_budget_that_nothing_fits_into(pipeline: Any, generate: Generate, caplog: pytest.LogCaptureFixture) -> None:
    with mixcache.enable(pipeline, error=1e-12) as handle:
        generate(pipeline)
        generate(pipeline)
        told = handle.summary()["why_not"]
    assert re.fullmatch(r"nothing was cached: an error of [\d.e+-]+ is expected \(9 times\)", told)
    assert [line.partition(":")[0] for line in lines(caplog)] == ["nothing was cached"]


def test_calls_that_cannot_be_told(
    pipeline: Any, generate: Generate, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read(self: Reader, context: Any, arguments: Any) -> Any:
        raise UnknownCallError("the scheduler is past its last step")

    monkeypatch.setattr(Reader, "read", read)
    with mixcache.enable(pipeline, "every_nth") as handle:
        generate(pipeline)
        assert handle.summary()["why_not"] == "nothing was cached: the scheduler is past its last step (24 times)"
    assert lines(caplog)[0] == "a call of the transformer is computed in full: the scheduler is past its last step"


def test_a_transformer_that_was_replaced(
    pipeline: Any, make_pipeline: Callable[..., Any], generate: Generate, caplog: pytest.LogCaptureFixture
) -> None:
    handle = mixcache.enable(pipeline, "every_nth")
    pipeline.transformer = make_pipeline(seed=1).transformer
    generate(pipeline)
    generate(pipeline)
    assert lines(caplog) == [
        "pipe.transformer was replaced after mixcache.enable, and is not cached; call mixcache.disable(pipe), then "
        "mixcache.enable(pipe, ...) again"
    ]
    assert not handle.is_enabled
    assert len(handle.trace) == 0
    mixcache.disable(pipeline)
    with mixcache.enable(pipeline, "every_nth") as again:
        generate(pipeline)
    assert again.trace.counts()["step"] > 0


def test_a_handle_that_is_disabled_is_no_context(pipeline: Any) -> None:
    handle = mixcache.enable(pipeline)
    handle.disable()
    with pytest.raises(
        ValueError, match=r"^this handle is disabled, and nothing would be cached; call mixcache.enable"
    ):
        handle.__enter__()


@pytest.mark.usefixtures("steady_times")
def test_a_wish_that_the_bounds_stand_against(
    pipeline: Any, generate: Generate, caplog: pytest.LogCaptureFixture
) -> None:
    """Of 12 steps, 10 are warm-up and cool-down; a run that is as fast as was wished for says nothing."""
    with mixcache.enable(pipeline, speedup=2.0, num_warmup_steps=9) as handle:
        generate(pipeline)
        told = handle.summary().why_not
        share = handle.summary().computed_share
    assert told is not None
    assert told.startswith(f"{1 / share:.2f}x of the wished 2x by work: ")
    assert lines(caplog) == [told]
    with mixcache.enable(pipeline, speedup=1.5) as handle:
        generate(pipeline)
        assert handle.summary().why_not is None
        assert handle.summary().ideal_speedup == pytest.approx(1.5)
    assert lines(caplog) == [told]


@pytest.mark.usefixtures("steady_times")
def test_a_wish_in_a_loop_that_is_all_warm_up(pipeline: Any, generate: Generate) -> None:
    with mixcache.enable(pipeline, speedup=1.5, num_warmup_steps=11) as handle:
        generate(pipeline)
    assert handle.summary().why_not == (
        "12 steps are no more than the 11 of the warm-up and the 1 of the cool-down: everything is computed"
    )
