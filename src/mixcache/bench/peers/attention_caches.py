"""The caches of diffusers that reuse the outputs of attention layers.

Both keep one state for each layer, whatever the cache context, and count calls: where the conditional and the
unconditional branch are two calls, as on Wan, each is given what the other one left.
"""

from __future__ import annotations

from typing import Any

import diffusers

from mixcache.bench.methods import Case, Method
from mixcache.bench.peers.diffusers_caches import diffusers_method, words

NEARLY_ALL = (-1, 950)
"""Timesteps of nearly half of the steps of a schedule shifted by 20, whose first steps should be left alone."""
LAST = (100, 800)
"""The range that diffusers comes with."""


def pyramid_attention_broadcasts(num_steps: int) -> list[Method]:
    """Attention is computed in every n-th call only (Pyramid Attention Broadcast, arXiv 2408.12588).

    An even range of self-attention hands the conditional branch's output to the unconditional one.
    """
    return [
        _broadcast(LAST, spatial=2),
        _broadcast(NEARLY_ALL, cross=3),
        _broadcast((-1, 990), spatial=2),
    ]


def _broadcast(timesteps: tuple[int, int], spatial: int | None = None, cross: int | None = None) -> Method:
    def make_config(case: Case) -> Any:
        return diffusers.PyramidAttentionBroadcastConfig(
            spatial_attention_block_skip_range=spatial,
            cross_attention_block_skip_range=cross,
            spatial_attention_timestep_skip_range=timesteps,
            cross_attention_timestep_skip_range=timesteps,
            current_timestep_callback=lambda: case.pipeline.current_timestep,
        )

    ranges = {f"{kind} range": number for kind, number in (("spatial", spatial), ("cross", cross)) if number}
    return diffusers_method("pyramid-attention-broadcast", words(**ranges, timesteps=timesteps), make_config)


def faster_caches(num_steps: int) -> list[Method]:
    """Attention outputs are extrapolated and the unconditional branch is rebuilt from the conditional one
    (FasterCache, arXiv 2410.19355).

    The second part takes both branches in one batch and fails on Wan, whose branches are two calls; with
    `is_guidance_distilled` only the first part is used. Its extrapolation then runs from one branch to the other, so a
    weight of 0 is best.
    """
    return [
        diffusers_method("faster-cache", "default", lambda case: _faster_config(case)),
        _attention_only((-1, 681)),
        _attention_only((-1, 990)),
    ]


def _attention_only(timesteps: tuple[int, int]) -> Method:
    def make_config(case: Case) -> Any:
        return _faster_config(
            case,
            is_guidance_distilled=True,
            spatial_attention_timestep_skip_range=timesteps,
            attention_weight_callback=lambda module: 0.0,
        )

    return diffusers_method("faster-cache", words(is_guidance_distilled=True, timesteps=timesteps), make_config)


def _faster_config(case: Case, **options: Any) -> Any:
    return diffusers.FasterCacheConfig(current_timestep_callback=lambda: case.pipeline.current_timestep, **options)
