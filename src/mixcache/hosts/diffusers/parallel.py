"""Which ranks a pipeline's transformers are spread over, and what of that is refused."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from mixcache.core.calls import Span

FSDP = "FullyShardedDataParallel"
FSDP_SHARDED = "FSDPModule"


def group_of(transformers: Sequence[torch.nn.Module], given: Any = None) -> Any:
    """The torch.distributed group of more than one rank that runs one clip: that of diffusers' context parallelism,
    or the one `given`; None where there is none.

    TypeError where weights are spread over ranks, ValueError where the groups are not one.
    """
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        if given is not None:
            raise ValueError("group= is given and torch.distributed is not initialised; call init_process_group first")
        return None
    found = given
    for transformer in transformers:
        if reason := spread_weights(transformer):
            raise TypeError(f"{type(transformer).__name__} cannot be cached: {reason}")
        config = getattr(getattr(transformer, "_parallel_config", None), "context_parallel_config", None)
        if config is None:
            continue
        own = config._flattened_mesh.get_group()
        if found is not None and _ranks(own) != _ranks(found):
            raise ValueError(
                f"the transformers are run by ranks {_ranks(own)} and {_ranks(found)} (by group= or another expert); "
                "one clip is run by one group: leave group= out, or spread both experts alike"
            )
        found = own if given is None else given
    return found if found is not None and len(_ranks(found)) > 1 else None


def _ranks(group: Any) -> list[int]:
    return torch.distributed.get_process_group_ranks(group)


def spread_weights(transformer: torch.nn.Module) -> str:
    """Why a transformer with weights spread over ranks is not cached; "" where each rank has all of them."""
    config = getattr(transformer, "_parallel_config", None)
    way_out = "spread its tokens instead: transformer.enable_parallelism(config=ContextParallelConfig(...))"
    if getattr(config, "tensor_parallel_config", None) is not None:
        return f"it is tensor parallel, which was never tried with the cache; {way_out}"
    names = {kind.__name__ for module in transformer.modules() for kind in type(module).__mro__}
    if names & {FSDP, FSDP_SHARDED}:
        return (
            "its weights are spread by FSDP: ranks wait for each other in every block, also those that run clips of "
            f"their own; {way_out}"
        )
    if any(type(value).__name__ == "DTensor" for value in transformer.parameters()):
        return f"its weights are DTensors, spread over ranks, which was never tried with the cache; {way_out}"
    return ""


def check_span(transformer: torch.nn.Module, span: Span) -> None:
    """ValueError where the span of blocks holds the one before which tokens are spread over the ranks."""
    if span.first == 0 and getattr(transformer, "_parallel_config", None) is not None:
        raise ValueError(
            "span_first=0 leaves out the block before which tokens are spread over the ranks; take 1 or more, or "
            "leave the granularity block out"
        )
