"""The rivals: other caching methods for the same pipelines, run as their authors' packages run them.

Each setting is the best that a search over the method's documented options found on training captions of a built-in
model of the same kind (`mixcache.bench.search`, which writes settings.json); the settings of one family form a curve
from about 1.3x to 3.5x.
"""

from __future__ import annotations

from importlib import import_module

from mixcache.bench.peers.extras import MissingExtraError
from mixcache.bench.peers.peer import Peer

__all__ = ["PEERS", "MissingExtraError", "Peer"]

PEERS: dict[str, Peer] = {
    peer.family: peer
    for module, names in (
        ("diffusers_caches", ("first_block_cache",)),
        ("mag_cache", ("mag_cache",)),
        ("diffusers_caches", ("taylorseer", "sea_cache")),
        ("attention_caches", ("pyramid_attention_broadcast", "faster_cache")),
        ("cache_dit", ("db_cache", "db_cache_taylorseer", "db_cache_mask")),
        ("teacache", ("teacache",)),
        ("easycache", ("easycache",)),
    )
    for peer in (getattr(import_module(f"{__name__}.{module}"), name) for name in names)
}
"""By the name of the family; cache-dit is imported only when one of its methods is put on."""
