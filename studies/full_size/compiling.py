"""torch.compile for the blocks of a transformer, undone again, and how often it has compiled."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch

from mixcache.attachment import blocks_of
from mixcache.models import row_for

MAX_RECOMPILES = 64
"""Plain blocks and those under other caches are compiled from the same code, and one graph each is allowed 8."""


@contextlib.contextmanager
def compiled_blocks(pipeline: Any, *, fullgraph: bool, backend: str) -> Iterator[None]:
    """While it is open the blocks are compiled; afterwards they are what they were, compiled otherwise or not.

    `compile_repeated_blocks` where diffusers knows the model's blocks, and the same for every block where it does not.
    """
    transformer = pipeline.transformer
    before = {module: module._compiled_call_impl for module in transformer.modules()}
    limits = {"cache_size_limit": MAX_RECOMPILES} if fullgraph else {}
    with torch._dynamo.config.patch(limits) if limits else contextlib.nullcontext():
        try:
            if transformer._repeated_blocks:
                transformer.compile_repeated_blocks(fullgraph=fullgraph, backend=backend)
            else:
                for block in blocks_of(transformer, row_for(transformer, pipeline)):
                    block.compile(fullgraph=fullgraph, backend=backend)
            yield
        finally:
            for module, call in before.items():
                module._compiled_call_impl = call


def num_graphs() -> int:
    """Graphs that torch.compile has made in this process."""
    return int(torch._dynamo.utils.counters["stats"]["unique_graphs"])
