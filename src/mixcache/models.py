"""MODELS: one row per transformer class. Class names are strings, so that nothing is imported.

A row says where the blocks are, which block argument is the hidden state, and which branches the pipelines call.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelRow:
    """What the engine must know of a transformer and the pipelines that call it."""

    transformer: str
    """Class name in diffusers."""
    pipelines: tuple[str, ...]
    """Pipelines that name branch, step and sigma in their cache context."""
    blocks: str
    """Attribute of the list of transformer blocks."""
    hidden_argument: str = "hidden_states"
    """Name of the blocks' first argument, the hidden state; a block returns the new hidden state alone."""
    granularities: tuple[str, ...] = ("step", "cfg", "block")
    """What can be cached here."""
    span_first: int = 1
    """F: blocks before the span, always run."""
    span_after: int = 1
    """B: blocks after the span, always run."""


MODELS: tuple[ModelRow, ...] = (
    ModelRow(transformer="WanTransformer3DModel", pipelines=("WanPipeline",), blocks="blocks"),
)


def row_for(transformer: Any, pipeline: Any) -> ModelRow:
    """The row of a transformer under its pipeline; TypeError prints the row to write where there is none."""
    name, pipeline_name = type(transformer).__name__, type(pipeline).__name__
    for row in MODELS:
        if row.transformer == name and pipeline_name in row.pipelines:
            return row
    supported = ", ".join(f"{pipeline} with {row.transformer}" for row in MODELS for pipeline in row.pipelines)
    raise TypeError(
        f"{pipeline_name} with {name} is not supported (supported: {supported}). If its blocks take and return one "
        "hidden state and its pipeline passes step_index, num_inference_steps and sigma to "
        "cache_context, add to MODELS in mixcache/models.py: "
        f'ModelRow(transformer="{name}", pipelines=("{pipeline_name}",), blocks="{_blocks_guess(transformer)}")'
    )


def _blocks_guess(transformer: Any) -> str:
    """Name of the longest list of modules, most likely the blocks."""
    children: Mapping[str, Any] = dict(transformer.named_children()) if hasattr(transformer, "named_children") else {}
    lists = {name: len(child) for name, child in children.items() if type(child).__name__ == "ModuleList"}
    return max(lists, key=lists.__getitem__) if lists else "blocks"


def rows_as_table() -> list[dict[str, str]]:
    """The rows as plain cells, for `mixcache models`."""
    shown = [f.name for f in fields(ModelRow) if f.name not in {"hidden_argument"}]
    table = []
    for row in MODELS:
        values = {name: getattr(row, name) for name in shown}
        table.append({name: ", ".join(v) if isinstance(v, tuple) else str(v) for name, v in values.items()})
    return table
