"""The caches that diffusers ships, put on by `transformer.enable_cache`; here those that skip the whole model."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from functools import partial
from importlib import metadata
from typing import Any

import diffusers
import torch

from mixcache.bench.methods import Account, Case, Method
from mixcache.bench.peers.leftovers import quiet, restored
from mixcache.bench.peers.peer import Peer, every
from mixcache.hosts.diffusers.denoisers import experts_of

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


def diffusers_method(
    family: str, setting: str, make_config: MakeConfig, *, is_calibrated: bool = False, when_idle: str = ""
) -> Method:
    return Method(
        family=family,
        setting=setting,
        attach=partial(enabled, make_config),
        origin=f"diffusers {metadata.version('diffusers')}",
        is_peer=True,
        is_calibrated=is_calibrated,
        when_idle=when_idle,
    )


def words(**options: Any) -> str:
    """A setting in the library's own words."""
    return ", ".join(f"{name} {value}" for name, value in options.items())


def _first_block_cache(num_steps: int, threshold: float) -> Method:
    return diffusers_method(
        "first-block-cache",
        words(threshold=threshold),
        lambda case: diffusers.FirstBlockCacheConfig(threshold=threshold),
    )


FIRST_BLOCK_CACHE = Peer(
    family="first-block-cache",
    make=_first_block_cache,
    grid=lambda: every(threshold=(0.015, 0.02, 0.025, 0.03, 0.035, 0.04, 0.05, 0.06, 0.08, 0.1, 0.12, 0.16, 0.2)),
)
"""The change of the first block's residual tells whether the other blocks may be skipped (FirstBlockCache, after
TeaCache, arXiv 2411.19108)."""


def _sea_cache(num_steps: int, **options: Any) -> Method:
    return diffusers_method(
        "sea-cache",
        words(**options),
        lambda case: diffusers.SeaCacheConfig(**options),
        when_idle="its hook needs the noise level, which this pipeline does not tell",
    )


SEA_CACHE = Peer(
    family="sea-cache",
    make=_sea_cache,
    grid=lambda: every(
        threshold=(0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.6, 0.8, 1.0),
        residual_order=(0, 1),
        max_consecutive_cached=(0, 2, 3),
        cache_end_steps=(1, 3),
    ),
)
"""Steps are skipped while the change of the filtered latents adds up to less than a threshold (SeaCache, arXiv
2602.18993). Where a pipeline does not tell the noise level it never fires."""


PARTS = {
    "WanTransformer3DModel": (r"blocks\.\d+\.(attn1|attn2|ffn)",),
    "HunyuanVideoTransformer3DModel": (
        r"transformer_blocks\.\d+\.(attn|ff|ff_context)",
        r"single_transformer_blocks\.\d+\.(attn|proj_mlp|proj_out)",
    ),
    "CogVideoXTransformer3DModel": (r"transformer_blocks\.\d+\.(attn1|ff)",),
}
"""By class of transformer the names, as regular expressions, of the parts of a block that TaylorSeer forecasts one by
one outside of its lite mode."""


def forecast_by_taylorseer(transformer: str, *, is_lite: bool) -> dict[str, Any]:
    """What TaylorSeer's config says of what it forecasts: the output alone (lite), or `PARTS`; ValueError where the
    class has none there."""
    if is_lite:
        return {"use_lite_mode": True}
    if transformer not in PARTS:
        raise ValueError(f"the parts of {transformer} to forecast are not known")
    return {"cache_identifiers": list(PARTS[transformer])}


def _taylorseer(
    num_steps: int,
    cache_interval: int,
    max_order: int,
    num_first_steps: int,
    num_last_steps: int,
    is_lite: bool = True,
) -> Method:
    before, after = num_first_steps, num_steps - num_last_steps
    options = {
        "cache_interval": cache_interval,
        "max_order": max_order,
        "disable_cache_before_step": before,
        "disable_cache_after_step": after,
    }

    def make_config(case: Case) -> Any:
        forecast = forecast_by_taylorseer(type(case.pipeline.transformer).__name__, is_lite=is_lite)
        return diffusers.TaylorSeerCacheConfig(**options, **forecast, taylor_factors_dtype=torch.float32)

    mode = "lite" if is_lite else "every part"
    setting = words(cache_interval=cache_interval, max_order=max_order, steps=f"{before}-{after}") + f", {mode}"
    return diffusers_method("taylorseer", setting, make_config)


TAYLORSEER = Peer(
    family="taylorseer",
    make=_taylorseer,
    grid=lambda: [
        *every(cache_interval=(2, 3, 4, 5, 6), max_order=(0, 1, 2), num_first_steps=(3, 4, 6), num_last_steps=(1, 3)),
        *every(cache_interval=(2,), max_order=(0, 1, 2), num_first_steps=(3, 12), num_last_steps=(5, 8, 16)),
        *every(cache_interval=(2,), max_order=(1, 2), num_first_steps=(12, 20), num_last_steps=(3,)),
        *every(cache_interval=(3, 5), max_order=(1, 2), num_first_steps=(4,), num_last_steps=(3,), is_lite=(False,)),
    ],
)
"""Between full steps at a fixed interval, outputs are forecast by their differences (TaylorSeer, arXiv 2503.06923).

Mostly in lite mode, which forecasts the model's output alone; a few settings forecast every attention and
feed-forward output, by names of ours, since the library's default patterns are not these models'. The last steps are
computed, since the end of a schedule decides much of the quality."""
