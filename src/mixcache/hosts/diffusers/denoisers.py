"""The transformers of a pipeline that denoise, their blocks in order, and the span of those that may be left out."""

from __future__ import annotations

from typing import Any

import torch

from mixcache.config import MixCacheConfig
from mixcache.core.calls import Span
from mixcache.decision import Granularity
from mixcache.hosts.diffusers.rows import ModelRow
from mixcache.policies import Policy

EXPERTS = ("transformer", "transformer_2")
"""Attributes under which pipelines keep their denoisers."""


def experts_of(pipeline: Any) -> dict[str, torch.nn.Module]:
    """The pipeline's denoisers by attribute; one module under two names is one."""
    found: dict[str, torch.nn.Module] = {}
    for name in EXPERTS:
        module = getattr(pipeline, name, None)
        if module is not None and not any(module is other for other in found.values()):
            found[name] = module
    return found


def unloaded_of(pipeline: Any) -> list[str]:
    """The denoisers that a modular pipeline knows of and has not loaded."""
    return [name for name in getattr(pipeline, "null_component_names", ()) if name in EXPERTS]


def blocks_of(transformer: torch.nn.Module, row: ModelRow) -> list[torch.nn.Module]:
    """All blocks in the order in which they run."""
    lists = [list(getattr(transformer, attribute)) for attribute in row.blocks]
    if row.interleaved:
        return [block for group in zip(*lists, strict=True) for block in group]
    return [block for blocks in lists for block in blocks]


def span_of(
    row: ModelRow, config: MixCacheConfig, policy: Policy, transformer: torch.nn.Module, num_blocks: int
) -> Span:
    """Blocks F to L-B; ValueError where nothing is left of them."""
    width = len(row.blocks) if row.interleaved else 1
    first = width * config.span.get("span_first", row.span_first)
    after = width * config.span.get("span_after", row.span_after)
    if row.num_tail_blocks:
        # what leaves the span goes in where the next block takes it in: still a block of the same kind
        after = max(after, 1) + int(transformer.config[row.num_tail_blocks] or 0)
    if Granularity.BLOCK in policy.needs.granularities and first + after >= num_blocks:
        raise ValueError(
            f"span_first={first} and span_after={after} leave none of the {num_blocks} blocks to skip; "
            "take smaller numbers"
        )
    start = min(first, num_blocks)
    return Span(start, max(start, num_blocks - after), num_blocks)
