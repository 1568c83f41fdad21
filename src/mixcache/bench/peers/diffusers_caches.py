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


def first_block_cache(num_steps: int, threshold: float) -> Method:
    """The change of the first block's residual tells whether the other blocks may be skipped (FirstBlockCache, after
    TeaCache, arXiv 2411.19108)."""
    return diffusers_method(
        "first-block-cache",
        words(threshold=threshold),
        lambda case: diffusers.FirstBlockCacheConfig(threshold=threshold),
    )


def sea_cache(num_steps: int, **options: Any) -> Method:
    """Steps are skipped while the change of the filtered latents adds up to less than a threshold (SeaCache, arXiv
    2602.18993). Where a pipeline does not tell the noise level it never fires."""
    return diffusers_method(
        "sea-cache",
        words(**options),
        lambda case: diffusers.SeaCacheConfig(**options),
        when_idle="its hook needs the noise level, which this pipeline does not tell",
    )


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


def taylorseer(
    num_steps: int,
    cache_interval: int,
    max_order: int,
    num_first_steps: int,
    num_last_steps: int,
    is_lite: bool = True,
) -> Method:
    """Between full steps at a fixed interval, outputs are forecast by their differences (TaylorSeer, arXiv 2503.06923).

    Mostly in lite mode, which forecasts the model's output alone; a few settings forecast every attention and
    feed-forward output, by names of ours, since the library's default patterns are not these models'. The last steps
    are computed, since the end of a schedule decides much of the quality.
    """
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
