"""The rivals: other caching methods for the same pipelines, run as their authors' packages run them.

Each setting is the best that a search over the method's documented options found on training captions of the built-in
model; the settings of one family form a curve from about 1.3x to 3.5x.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module

from mixcache.bench.methods import Family, Method
from mixcache.bench.peers.extras import MissingExtraError

__all__ = ["PEERS", "MissingExtraError"]


def _family(module: str, name: str) -> Family:
    def methods(num_steps: int) -> Sequence[Method]:
        found: Family = getattr(import_module(f"{__name__}.{module}"), name)
        return found(num_steps)

    return methods


PEERS: dict[str, Family] = {
    "first-block-cache": _family("diffusers_caches", "first_block_caches"),
    "mag-cache": _family("mag_cache", "mag_caches"),
    "taylorseer": _family("diffusers_caches", "taylorseers"),
    "sea-cache": _family("diffusers_caches", "sea_caches"),
    "pyramid-attention-broadcast": _family("attention_caches", "pyramid_attention_broadcasts"),
    "faster-cache": _family("attention_caches", "faster_caches"),
    "db-cache": _family("cache_dit", "db_caches"),
    "db-cache-taylorseer": _family("cache_dit", "db_caches_taylorseer"),
    "db-cache-mask": _family("cache_dit", "db_caches_mask"),
    "teacache": _family("teacache", "teacaches"),
    "easycache": _family("easycache", "easycaches"),
}
"""What each name stands for at a number of steps; nothing is imported before it is asked."""
