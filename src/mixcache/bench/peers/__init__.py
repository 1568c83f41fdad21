"""The rivals: other caching methods for the same pipelines, run as their authors' packages run them.

Each setting is the best that a search over the method's documented options found on training captions of a built-in
model of the same class (`studies.search`, which writes settings.json; Wan's were searched by hand, on finer
grids, and so were those slower than about 1.5x at 50 steps); where none was made, or nothing worked, those of Wan stand
in. SeaCache has two where it never fires. The settings of one family form a curve from
about 1.3x to 3.5x, or as far as it goes. cache-dit is imported only when one of its methods is put on.
"""

from __future__ import annotations

from mixcache.bench.peers.attention_caches import FASTER_CACHE, PYRAMID_ATTENTION_BROADCAST
from mixcache.bench.peers.cache_dit import DB_CACHE, DB_CACHE_MASK, DB_CACHE_TAYLORSEER
from mixcache.bench.peers.diffusers_caches import FIRST_BLOCK_CACHE, SEA_CACHE, TAYLORSEER
from mixcache.bench.peers.easycache import EASYCACHE
from mixcache.bench.peers.extras import MissingExtraError
from mixcache.bench.peers.mag_cache import MAG_CACHE
from mixcache.bench.peers.peer import Peer
from mixcache.bench.peers.teacache import TEACACHE

__all__ = ["PEERS", "MissingExtraError", "Peer"]

PEERS: dict[str, Peer] = {
    peer.family: peer
    for peer in (
        FIRST_BLOCK_CACHE,
        MAG_CACHE,
        TAYLORSEER,
        SEA_CACHE,
        PYRAMID_ATTENTION_BROADCAST,
        FASTER_CACHE,
        DB_CACHE,
        DB_CACHE_TAYLORSEER,
        DB_CACHE_MASK,
        TEACACHE,
        EASYCACHE,
    )
}
"""By the name of the family."""
