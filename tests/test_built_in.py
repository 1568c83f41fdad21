"""The attachment on the built-in models: the same promises as on the tiny pipeline, on real weights."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch

import mixcache
from mixcache import zoo
from mixcache.decision import CACHED
from mixcache.hosts.diffusers.rows import row_for

CAPTION = "a small red circle moving left and a large blue cross growing on a chequered grey background"
MIXED: dict[str, Any] = {
    # thresholds that let everything be cached, and a penalty that never takes one granularity twice running
    "impacts": {"step": 1.0, "cfg": 1.0, "block": 1.0},
    "penalty": 1000.0,
    "delta_1": 50.0,
    "delta_2": 100.0,
    "num_warmup_steps": 2,
    "first_interval": 3,
    "max_interval": 3,
}
NUM_STEPS = 10
SMALL = {"height": 48, "width": 48, "num_frames": 5}
Latents = Callable[..., torch.Tensor]


def latents_of(model: str, pipeline: Any) -> Latents:
    """What makes a clip's latents; arguments are those of the pipeline's call."""

    def latents(**arguments: Any) -> torch.Tensor:
        settings = zoo.call_defaults(model) | SMALL | {"num_inference_steps": NUM_STEPS, "output_type": "latent"}
        return pipeline(CAPTION, generator=torch.Generator().manual_seed(1), **settings | arguments).frames

    return latents


def load(model: str = "shapes-wan", scheduler: str = "own", dtype: torch.dtype = torch.float32) -> tuple[Any, Latents]:
    from diffusers import FlowMatchEulerDiscreteScheduler

    pipeline = zoo.load(model, dtype=dtype)
    pipeline.set_progress_bar_config(disable=True)
    if scheduler == "euler":
        pipeline.scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    return pipeline, latents_of(model, pipeline)


@pytest.mark.parametrize(
    ("model", "scheduler", "dtype"),
    [
        *((model, "own", torch.float32) for model in zoo.BUILT_IN),
        ("shapes-wan", "euler", torch.float32),
        ("shapes-wan", "own", torch.bfloat16),
    ],
)
def test_attached_is_plain_and_a_trace_replays_to_the_same_bits(
    model: str, scheduler: str, dtype: torch.dtype, counted: Callable[..., Any]
) -> None:
    pipeline, latents = load(model, scheduler, dtype)
    plain = latents()
    with mixcache.enable(pipeline, "always_compute"):
        assert torch.equal(latents(), plain)
    with mixcache.enable(pipeline, "mixcache", **MIXED) as handle, counted(pipeline.transformer) as work:
        mixed = latents()
    chosen = {entry.granularity for entry in handle.trace}
    assert len(chosen & set(CACHED)) >= 2
    is_joined = bool(row_for(pipeline.transformer, pipeline).batched_cfg)  # both branches of guidance in one forward
    together = max if is_joined else sum
    assert work.num_calls == sum(together(call.computed for call in entry.calls) for entry in handle.trace)
    assert work.num_blocks == sum(together(call.num_blocks for call in entry.calls) for entry in handle.trace)
    assert not torch.equal(mixed, plain)
    with mixcache.enable(pipeline, "replay", trace=handle.trace) as again:
        assert torch.equal(latents(), mixed)
    assert [entry.granularity for entry in again.trace] == [entry.granularity for entry in handle.trace]
    assert torch.equal(latents(), plain)


def test_one_handle_serves_other_sizes_batches_and_step_counts() -> None:
    pipeline, latents = load()
    runs: list[dict[str, Any]] = [{}, {"width": 64}, {"num_frames": 9}, {"num_inference_steps": 8}, {}]
    with mixcache.enable(pipeline, "mixcache", **MIXED) as handle:
        served = [latents(**arguments) for arguments in runs]
    assert handle.trace.num_generations == len(runs)
    assert torch.equal(served[0], served[-1])
    for arguments, video in zip(runs, served, strict=True):
        with mixcache.enable(pipeline, "mixcache", **MIXED):
            assert torch.equal(latents(**arguments), video)


@pytest.mark.parametrize(
    ("policy", "settings", "why_not"),
    [
        ("hindsight", {"error": 1e-9}, r"nothing was cached: cost .* is over the budget \(7 times\)"),
        ("hold", {"error": 1e-9}, r"nothing was cached: an error of .* is expected \(7 times\)"),
    ],
)
def test_why_a_run_was_not_made_faster_is_said_once(
    policy: str, settings: dict[str, Any], why_not: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Reasons that differ in their numbers are one."""
    pipeline, latents = load()
    with caplog.at_level("WARNING", "mixcache"), mixcache.enable(pipeline, policy, **settings) as handle:
        for width in (48, 64):
            latents(width=width)
    assert re.fullmatch(why_not, handle.summary()["why_not"])
    assert sum("nothing was cached" in text for text in caplog.messages) == 1
