"""The caches of diffusers that reuse the outputs of attention layers.

Both keep one state for each layer, whatever the cache context, and count calls: where the conditional and the
unconditional branch are two calls, as on Wan, each is given what the other one left.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import diffusers

from mixcache.bench.methods import Case, Method
from mixcache.bench.peers.diffusers_caches import diffusers_method, words


def pyramid_attention_broadcast(
    num_steps: int, timesteps: Sequence[int], spatial: int | None = None, cross: int | None = None
) -> Method:
    """Attention is computed in every n-th call only (Pyramid Attention Broadcast, arXiv 2408.12588).

    On Wan an even range of self-attention hands the conditional branch's output to the unconditional one.
    """

    def make_config(case: Case) -> Any:
        return diffusers.PyramidAttentionBroadcastConfig(
            spatial_attention_block_skip_range=spatial,
            cross_attention_block_skip_range=cross,
            spatial_attention_timestep_skip_range=tuple(timesteps),
            cross_attention_timestep_skip_range=tuple(timesteps),
            current_timestep_callback=lambda: case.pipeline.current_timestep,
        )

    ranges = {f"{kind} range": number for kind, number in (("spatial", spatial), ("cross", cross)) if number}
    return diffusers_method("pyramid-attention-broadcast", words(**ranges, timesteps=tuple(timesteps)), make_config)


def faster_cache(
    num_steps: int,
    attention_only: bool = False,
    weight: float = 0.0,
    timesteps: Sequence[int] | None = None,
    **unconditional: int | Sequence[int],
) -> Method:
    """Attention outputs are extrapolated and the unconditional branch is rebuilt from the conditional one
    (FasterCache, arXiv 2410.19355).

    The second part takes both branches in one batch and fails on Wan, whose branches are two calls; with
    `attention_only` just the first is used. On Wan its extrapolation then runs from one branch to the other, so that a
    `weight` of 0 is best; 0.3 is that of the example in its documentation. What is not given is as it comes.
    """
    given = {"is_guidance_distilled": attention_only, "timesteps": timesteps, **unconditional}
    told = {name: tuple(v) if isinstance(v, Sequence) else v for name, v in given.items() if v}
    settings = {name.replace("timesteps", "spatial_attention_timestep_skip_range"): told[name] for name in told}

    def make_config(case: Case) -> Any:
        return diffusers.FasterCacheConfig(
            current_timestep_callback=lambda: case.pipeline.current_timestep,
            attention_weight_callback=(lambda module: weight) if attention_only else None,
            **settings,
        )

    setting = words(**told, **({"weight": weight} if weight else {}))
    return diffusers_method("faster-cache", setting or "default", make_config)
