"""The rivals: other caching methods for the same pipelines, run as their authors' packages run them.

Each setting is the best that a search over the method's documented options found on training captions of a built-in
model of the same class (`studies.search`, which writes settings.json; Wan's were searched by hand, on finer
grids, and so were those slower than about 1.5x at 50 steps); where none was made, or nothing worked, those of Wan stand
in. SeaCache has two where it never fires. The settings of one family form a curve from
about 1.3x to 3.5x, or as far as it goes. cache-dit is imported only when one of its methods is put on.
"""

from __future__ import annotations

from collections.abc import Callable

from mixcache.bench.methods import Method
from mixcache.bench.peers import attention_caches, cache_dit, diffusers_caches, easycache, mag_cache, spectrum, teacache
from mixcache.bench.peers.cache_dit import MissingExtraError
from mixcache.bench.peers.peer import Peer

__all__ = ["PEERS", "MissingExtraError", "Peer"]

MAKE: dict[str, Callable[..., Method]] = {
    "first-block-cache": diffusers_caches.first_block_cache,
    "mag-cache": mag_cache.mag_cache,
    "taylorseer": diffusers_caches.taylorseer,
    "sea-cache": diffusers_caches.sea_cache,
    "pyramid-attention-broadcast": attention_caches.pyramid_attention_broadcast,
    "faster-cache": attention_caches.faster_cache,
    "db-cache": cache_dit.db_cache,
    "db-cache-taylorseer": cache_dit.db_cache,
    "db-cache-mask": cache_dit.db_cache_mask,
    "teacache": teacache.teacache,
    "easycache": easycache.easycache,
    "spectrum": spectrum.spectrum,
}
PEERS = {family: Peer(family=family, make=make) for family, make in MAKE.items()}
"""By the name of the family."""
