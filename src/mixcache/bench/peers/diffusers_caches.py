"""The caches that diffusers ships, put on by `transformer.enable_cache`; here those that skip the whole model."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from functools import partial
from importlib import metadata
from typing import Any

import diffusers
import torch

from mixcache.attachment import experts_of
from mixcache.bench.methods import MANY_STEPS, Account, Case, Method
from mixcache.bench.peers.leftovers import quiet, restored

MakeConfig = Callable[[Case], Any]


@contextlib.contextmanager
def enabled(make_config: MakeConfig, case: Case) -> Iterator[Account]:
    """The pipeline's transformers use the cache of that configuration."""
    config = make_config(case)
    with quiet("diffusers"), contextlib.ExitStack() as stack:
        for transformer in experts_of(case.pipeline).values():
            stack.enter_context(restored(transformer))
            transformer.enable_cache(config)
            stack.callback(transformer.disable_cache)
        yield dict


def diffusers_method(family: str, setting: str, make_config: MakeConfig, *, is_calibrated: bool = False) -> Method:
    return Method(
        family=family,
        setting=setting,
        attach=partial(enabled, make_config),
        origin=f"diffusers {metadata.version('diffusers')}",
        is_peer=True,
        is_calibrated=is_calibrated,
    )


def words(**options: Any) -> str:
    """A setting in the library's own words."""
    return ", ".join(f"{name} {value}" for name, value in options.items())


def first_block_caches(num_steps: int) -> list[Method]:
    """The change of the first block's residual tells whether the other blocks may be skipped (FirstBlockCache, after
    TeaCache, arXiv 2411.19108)."""
    thresholds = (0.02, 0.03, 0.04, 0.06, 0.08) if num_steps > MANY_STEPS else (0.03, 0.04, 0.06, 0.08, 0.12, 0.2)
    return [_first_block_cache(threshold) for threshold in thresholds]


def _first_block_cache(threshold: float) -> Method:
    return diffusers_method(
        "first-block-cache",
        words(threshold=threshold),
        lambda case: diffusers.FirstBlockCacheConfig(threshold=threshold),
    )


def sea_caches(num_steps: int) -> list[Method]:
    """Steps are skipped while the change of the filtered latents adds up to less than a threshold (SeaCache,
    arXiv 2602.18993).

    Few steps lie too far apart for its linear extrapolation of the residual: there they reuse it as it is. Three last
    steps in full pay for themselves where much is skipped.
    """
    if num_steps > MANY_STEPS:
        many = ((0.1, 2, 3), (0.15, 2, 3), (0.2, 2, 3), (0.25, 0, 3), (0.3, 0, 3), (0.4, 0, 3))
        return [_sea_cache(threshold, 1, *options) for threshold, *options in many]
    few = ((0.25, 2, 3), (0.4, 2, 3), (0.5, 2, 3), (0.6, 2, 3), (0.8, 0, 3), (1.0, 0, 3))
    return [_sea_cache(threshold, 0, *options) for threshold, *options in few]


def _sea_cache(threshold: float, residual_order: int, max_consecutive_cached: int, cache_end_steps: int) -> Method:
    options = {
        "threshold": threshold,
        "residual_order": residual_order,
        "max_consecutive_cached": max_consecutive_cached,
        "cache_end_steps": cache_end_steps,
    }
    return diffusers_method("sea-cache", words(**options), lambda case: diffusers.SeaCacheConfig(**options))


def taylorseers(num_steps: int) -> list[Method]:
    """Between full steps at a fixed interval, outputs are forecast by their differences (TaylorSeer, arXiv 2503.06923).

    In lite mode, which forecasts the model's output alone: as good here as the forecast of every attention and
    feed-forward output, and far quicker. The library's default patterns match no module of a Wan transformer. The last
    steps are computed, since the end of a schedule decides much of the quality; few steps lie too far apart for a
    forecast, so that most settings for them reuse the output as it is (order 0).
    """
    many = ((2, 2, 3, 3), (3, 2, 4, 3), (4, 2, 3, 3), (5, 2, 4, 3), (6, 1, 4, 3))
    few = ((2, 1, 3, 3), (2, 0, 3, 1), (3, 0, 3, 3), (4, 0, 3, 3), (4, 0, 2, 3), (6, 0, 4, 1))
    return [
        _taylorseer(interval, max_order, num_first_steps, num_steps - num_last_steps)
        for interval, max_order, num_first_steps, num_last_steps in (many if num_steps > MANY_STEPS else few)
    ]


def _taylorseer(cache_interval: int, max_order: int, before: int, after: int) -> Method:
    options = {
        "cache_interval": cache_interval,
        "max_order": max_order,
        "disable_cache_before_step": before,
        "disable_cache_after_step": after,
        "use_lite_mode": True,
    }

    def make_config(case: Case) -> Any:
        return diffusers.TaylorSeerCacheConfig(**options, taylor_factors_dtype=torch.float32)

    setting = words(cache_interval=cache_interval, max_order=max_order, steps=f"{before}-{after}") + ", lite"
    return diffusers_method("taylorseer", setting, make_config)
