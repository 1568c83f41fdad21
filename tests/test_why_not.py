"""Whoever asked for speed and does not get it reads one line why, once, and `summary()` tells it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

import mixcache
from mixcache import zoo
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
    assert told.startswith("nothing was cached: cost 0 + ")
    assert "is over the budget (" in told
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


def test_a_plan_for_too_few_steps_says_what_is_followed_instead(caplog: pytest.LogCaptureFixture) -> None:
    pipeline = zoo.load()
    pipeline.set_progress_bar_config(disable=True)
    arguments = zoo.call_defaults() | {"num_inference_steps": 2, "output_type": "latent"}
    with mixcache.enable(pipeline, speedup=2.0) as handle:
        pipeline("a large red circle", generator=torch.Generator().manual_seed(0), **arguments)
        told = handle.summary()["why_not"]
        assert handle.plan.speedup == 1.0
    assert told == "speedup=2 at 2 steps would give -10.1 dB, which is another video: everything is computed instead"
    assert lines(caplog).count(told) == 1


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


def test_a_run_that_falls_short_of_its_plan_takes_back_what_was_foretold(caplog: pytest.LogCaptureFixture) -> None:
    pipeline = zoo.load()
    pipeline.set_progress_bar_config(disable=True)
    arguments = zoo.call_defaults() | {"num_inference_steps": 12, "output_type": "latent"}
    with mixcache.enable(pipeline, speedup=2.0, guard=1e-9) as handle:
        pipeline("a large red circle", generator=torch.Generator().manual_seed(0), **arguments)
        told, plan = handle.summary().why_not, handle.plan
    assert told is not None
    assert "guard: an error" in told
    assert lines(caplog).count(told) == 1
    assert plan is not None
    assert (str(plan.speedup), str(plan.psnr_db)) == ("nan", "nan")


def test_a_guidance_that_changes_takes_the_promise_from_a_plan(caplog: pytest.LogCaptureFixture) -> None:
    pipeline = zoo.load()
    pipeline.set_progress_bar_config(disable=True)
    arguments = zoo.call_defaults() | {"num_inference_steps": 12, "output_type": "latent"}

    def callback(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        pipe._guidance_scale = 5.0 - step / 4
        return {}

    with mixcache.enable(pipeline, speedup=1.5) as handle:
        generator = torch.Generator().manual_seed(0)
        pipeline("a large red circle", generator=generator, callback_on_step_end=callback, **arguments)
        assert handle.plan.psnr_db != handle.plan.psnr_db
    assert any(line.startswith("the guidance scale changes from step to step (5 to 2.") for line in lines(caplog))
