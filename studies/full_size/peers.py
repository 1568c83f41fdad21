"""Caches of diffusers and cache-dit with a schedule forced on them, so that they leave out as much as ours and cost
what they cost.

FirstBlockCache decides by a threshold; what it measures for that is measured all the same, and its answer replaced.
TaylorSeer has a fixed interval already, and DBCache takes a mask of steps.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Collection, Iterator
from typing import Any

import torch
from diffusers import FirstBlockCacheConfig, TaylorSeerCacheConfig
from diffusers.hooks.first_block_cache import _FBC_LEADER_BLOCK_HOOK

from mixcache.attachment import blocks_of
from mixcache.bench.methods import Case
from mixcache.bench.peers.cache_dit import enabled, masked_options
from mixcache.bench.peers.diffusers_caches import forecast_by_taylorseer
from mixcache.models import row_for
from studies.full_size.compiling import compiled_blocks
from studies.full_size.medians import step_names
from studies.full_size.runs import Account, Subject
from studies.full_size.schedules import share_left_out

TAYLORSEER_WARM_UP = 3
"""Steps that are computed first: the class's default."""


def num_blocks_of(pipeline: Any) -> int:
    """Blocks of one call of the transformer."""
    return len(blocks_of(pipeline.transformer, row_for(pipeline.transformer, pipeline)))


def wanted_share(subject: Subject) -> float:
    """Block work that the schedule by place leaves out on this model."""
    return share_left_out(
        subject.placed,
        has_two_branches=subject.family.has_two_branches,
        num_blocks=num_blocks_of(subject.pipeline),
    )


def spread(num_steps: int, num_skipped: int) -> list[int]:
    """`num_skipped` of the steps after the first one, evenly apart; of all but the first where there are too few."""
    share = min(1.0, num_skipped / max(1, num_steps - 1))
    return [k for k in range(1, num_steps) if math.floor(k * share + 1e-9) > math.floor((k - 1) * share + 1e-9)]


def interval_steps(num_steps: int, interval: int) -> list[int]:
    """Steps that TaylorSeer predicts."""
    return [k for k in range(TAYLORSEER_WARM_UP, num_steps) if (k - TAYLORSEER_WARM_UP - 1) % interval]


def nearest_interval(num_steps: int, share: float) -> int:
    """The interval with which the share of predicted steps is nearest to the wanted one."""
    return min(range(1, num_steps + 1), key=lambda n: abs(len(interval_steps(num_steps, n)) / num_steps - share))


def force_first_block_cache(transformer: Any, skipped: Collection[int]) -> None:
    """Replaces the answer of an enabled FirstBlockCache, step by step, where it has something to reuse."""
    hook = next(
        module._diffusers_hook.hooks[_FBC_LEADER_BLOCK_HOOK]
        for module in transformer.modules()
        if _FBC_LEADER_BLOCK_HOOK in getattr(getattr(module, "_diffusers_hook", None), "hooks", {})
    )
    measured = hook._should_compute_remaining_blocks

    def answer(residual: torch.Tensor) -> bool:
        should_compute = measured(residual)
        state = hook.state_manager.get_state()  # of this branch, and new in every generation
        step = getattr(state, "num_answers", 0)
        state.num_answers = step + 1
        return step not in skipped if state.tail_block_residuals is not None else bool(should_compute)

    hook._should_compute_remaining_blocks = torch.compiler.disable(answer)


def share_but_for_a_block(subject: Subject) -> float:
    """Block work that a step leaves out in which the first block alone runs."""
    return 1 - 1 / num_blocks_of(subject.pipeline)


def steps_but_for_a_block(subject: Subject) -> list[int]:
    """As many of such steps as leave out what the schedule does."""
    return spread(subject.num_steps, round(wanted_share(subject) * subject.num_steps / share_but_for_a_block(subject)))


@contextlib.contextmanager
def first_block_cache(subject: Subject) -> Iterator[Account]:
    """FirstBlockCache that leaves out as much block work as the schedule: all blocks but the first in some steps."""
    skipped = steps_but_for_a_block(subject)
    with _enabled(subject, FirstBlockCacheConfig(threshold=0.05)):
        force_first_block_cache(subject.pipeline.transformer, skipped)
        yield lambda: _account(subject, skipped, share_but_for_a_block(subject))


@contextlib.contextmanager
def db_cache(subject: Subject) -> Iterator[Account]:
    """DBCache of cache-dit under a mask that leaves out as much: all blocks but the first in some steps.

    MissingExtraError where its package is not installed.
    """
    skipped = steps_but_for_a_block(subject)
    mask = [int(step not in skipped) for step in range(subject.num_steps)]
    options = masked_options(mask, num_warmup_steps=1)
    case = Case(pipeline=subject.pipeline, arguments=subject.arguments)
    with contextlib.ExitStack() as stack:
        stack.enter_context(enabled(options, 0, case))
        if subject.is_compiled:
            stack.enter_context(compiled_blocks(subject.pipeline, fullgraph=False, backend=subject.backend))
        yield lambda: _account(subject, skipped, share_but_for_a_block(subject))


@contextlib.contextmanager
def taylorseer(subject: Subject, *, is_lite: bool) -> Iterator[Account]:
    """TaylorSeer at the interval nearest to the schedule: of the model's output (lite), or of all parts of blocks."""
    interval = nearest_interval(subject.num_steps, wanted_share(subject))
    skipped = interval_steps(subject.num_steps, interval)
    forecast = forecast_by_taylorseer(subject.family.transformer, is_lite=is_lite)
    config = TaylorSeerCacheConfig(
        cache_interval=interval, disable_cache_before_step=TAYLORSEER_WARM_UP, max_order=1, **forecast
    )
    with _enabled(subject, config):
        yield lambda: _account(subject, skipped, 1.0) | {"interval": interval}


def _account(subject: Subject, skipped: Collection[int], share: float) -> dict[str, Any]:
    """`share` is the block work that a skipped step leaves out."""
    kinds = ["skipped" if step in skipped else "compute" for step in range(subject.num_steps)]
    left_out = share * len(skipped) / subject.num_steps
    return {
        "steps": step_names(kinds),
        "choices": "".join("s" if step in skipped else "#" for step in range(subject.num_steps)),
        "ideal_speedup": 1 / (1 - left_out),
    }


@contextlib.contextmanager
def _enabled(subject: Subject, config: Any) -> Iterator[None]:
    """The cache of diffusers is on; its hooks stand inside of compiled blocks, which may then break their graphs."""
    transformer = subject.pipeline.transformer
    with contextlib.ExitStack() as stack:
        stack.callback(_sweep, transformer)
        transformer.enable_cache(config)
        stack.callback(transformer.disable_cache)
        stack.callback(transformer._reset_stateful_cache)
        if subject.is_compiled:
            stack.enter_context(compiled_blocks(subject.pipeline, fullgraph=False, backend=subject.backend))
        yield


def _sweep(transformer: torch.nn.Module) -> None:
    """Takes away what removed hooks leave on modules, since compiled code is compiled anew where it finds that."""
    for module in transformer.modules():
        registry = module.__dict__.get("_diffusers_hook")
        if registry is not None and not registry.hooks:
            del module._diffusers_hook
        if module.__dict__.get("forward") == type(module).forward.__get__(module):
            del module.__dict__["forward"]
