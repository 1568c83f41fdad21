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
from mixcache.bench.peers.peer import Peer, every

TIMESTEPS = ([100, 800], [-1, 681], [-1, 950], [-1, 990])
"""First and last one in which a search lets attention be skipped; the last range is nearly all of a shifted
schedule."""


def _broadcast(
    num_steps: int, timesteps: Sequence[int], spatial: int | None = None, cross: int | None = None
) -> Method:
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


PYRAMID_ATTENTION_BROADCAST = Peer(
    family="pyramid-attention-broadcast",
    make=_broadcast,
    grid=lambda: [*every(spatial=(2, 3, 4, 6), timesteps=TIMESTEPS), *every(cross=(2, 3, 6), timesteps=TIMESTEPS)],
)
"""Attention is computed in every n-th call only (Pyramid Attention Broadcast, arXiv 2408.12588).

On Wan an even range of self-attention hands the conditional branch's output to the unconditional one."""


def _faster_cache(
    num_steps: int,
    attention_only: bool = False,
    weight: float = 0.0,
    timesteps: Sequence[int] | None = None,
    unconditional_batch_skip_range: int | None = None,
    unconditional_batch_timestep_skip_range: Sequence[int] | None = None,
) -> Method:
    """What is None is as it comes; `attention_only` leaves the unconditional branch alone, and extrapolates attention
    by `weight`."""
    asked = {
        "is_guidance_distilled": attention_only or None,
        "spatial_attention_timestep_skip_range": timesteps and tuple(timesteps),
        "unconditional_batch_skip_range": unconditional_batch_skip_range,
        "unconditional_batch_timestep_skip_range": unconditional_batch_timestep_skip_range
        and tuple(unconditional_batch_timestep_skip_range),
    }
    settings: dict[str, Any] = {name: value for name, value in asked.items() if value is not None}

    def make_config(case: Case) -> Any:
        return diffusers.FasterCacheConfig(
            current_timestep_callback=lambda: case.pipeline.current_timestep,
            attention_weight_callback=(lambda module: weight) if attention_only else None,
            **settings,
        )

    told = {name.replace("spatial_attention_timestep_skip_range", "timesteps"): settings[name] for name in settings}
    if weight:
        told["weight"] = weight
    return diffusers_method("faster-cache", words(**told) or "default", make_config)


FASTER_CACHE = Peer(
    family="faster-cache",
    make=_faster_cache,
    grid=lambda: [
        {},
        *every(attention_only=(True,), weight=(0.0, 0.3), timesteps=TIMESTEPS),
        *every(
            timesteps=([-1, 1], [-1, 681]),
            unconditional_batch_skip_range=(2, 3, 5, 8),
            unconditional_batch_timestep_skip_range=([-1, 641], [-1, 900]),
        ),
    ],
)
"""Attention outputs are extrapolated and the unconditional branch is rebuilt from the conditional one
(FasterCache, arXiv 2410.19355).

The second part takes both branches in one batch and fails on Wan, whose branches are two calls; with
`is_guidance_distilled` only the first part is used. On Wan its extrapolation then runs from one branch to the other,
so that a weight of 0 is best; 0.3 is that of the example in its documentation."""
