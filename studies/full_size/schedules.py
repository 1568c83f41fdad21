"""The schedule that is carried over: recorded on the built-in model, read by noise level on another one."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch

from mixcache import generation
from mixcache.attachment import Handle, enable
from mixcache.calls import CallInfo
from mixcache.config import MixCacheConfig
from mixcache.decision import Choice, Granularity
from mixcache.engine import Compute, Engine
from mixcache.models import row_for
from mixcache.trace import Trace, TraceEntry
from mixcache.zoo import call_defaults, load, world

Schedule = list[Choice]
SPEEDUP = 2.0


def recorded(path: Path | None, kept: Path) -> Trace:
    """One generation: of the trace at `path`; else of the one at `kept`, which is recorded if it is not there.

    Recorded is policy "planned" at a speed-up of 2 on the built-in model; on a CPU that takes seconds. ValueError for a
    file that is no trace, or an empty one.
    """
    if path is None and not kept.exists():
        pipeline = load()
        with enable(pipeline, "planned", speedup=SPEEDUP) as handle:
            generation.final_latents(pipeline, world.held_out_captions(1)[0], seed=0, **call_defaults())
        handle.trace.generation(0).save(kept)
    trace = Trace.load(path or kept)
    if not len(trace):
        raise ValueError(f"{path or kept} holds no steps; give the trace of a generation")
    return trace.generation(0)


def carried(trace: Trace, levels: Sequence[float]) -> Schedule:
    """For each noise level what the trace did at the nearest one."""
    return _schedule([min(trace, key=lambda entry: abs(entry.sigma - level)) for level in levels])


def placed(trace: Trace, num_steps: int) -> Schedule:
    """For each of `num_steps` what the trace did at the same place of its loop: as many of them are cached, whatever
    their noise levels."""
    return _schedule([trace[int((step + 0.5) * len(trace) / num_steps)] for step in range(num_steps)])


def _schedule(entries: Sequence[TraceEntry]) -> Schedule:
    """What was done; the first step is computed."""
    return [
        (entry.granularity if step else Granularity.COMPUTE, entry.order if step else 0)
        for step, entry in enumerate(entries)
    ]


def share_left_out(schedule: Schedule, *, has_two_branches: bool, num_blocks: int) -> float:
    """Block work that a schedule leaves out, as a share of all; a span leaves out all blocks but the first and last."""
    saved = {
        Granularity.STEP: 1.0,
        Granularity.CFG: 0.5 if has_two_branches else 0.0,
        Granularity.BLOCK: max(0, num_blocks - 2) / num_blocks,
        Granularity.COMPUTE: 0.0,
    }
    return sum(saved[granularity] for granularity, _ in schedule) / len(schedule)


class LevelsKnownError(Exception):
    """Ends a generation before its first call is computed."""


class LevelsEngine(Engine):
    """Reads the noise levels of the first call, and ends the generation."""

    levels: tuple[float, ...] = ()

    def call(self, info: CallInfo, compute: Compute, compute_conditional: Compute | None = None) -> torch.Tensor:
        self.levels = info.sigmas
        raise LevelsKnownError


def levels_of(pipeline: Any, arguments: dict[str, Any]) -> list[float]:
    """Noise levels of the steps that a call of the pipeline would take; nothing is computed."""
    row = row_for(pipeline.transformer, pipeline)
    handle = Handle(pipeline, MixCacheConfig(policy="always_compute"), row, LevelsEngine)
    handle._attach()
    try:
        with contextlib.suppress(LevelsKnownError):
            pipeline(**arguments)
    finally:
        handle.disable()
    levels = cast(LevelsEngine, handle.engine).levels
    if not levels:
        raise ValueError(f"{type(pipeline.scheduler).__name__} does not tell its noise levels")
    return list(levels[:-1])
