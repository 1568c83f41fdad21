"""A span of blocks that is left out, by ComfyUI's own way of replacing blocks (`patches_replace`).

    computed step   the first block of the span notes what goes in, the last one what came of it: their difference is
                    the residual
    block step      the blocks of the span hand on what they were given, and the last one adds the residual

One call of ComfyUI's may run the model several times, where prompts are of several lengths or memory is short: there is
a residual for each run, in their order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from mixcache.core import Span


@dataclass(frozen=True, kw_only=True, slots=True)
class Blocks:
    """Where the blocks of a diffusion model are, and what ComfyUI calls their kind."""

    attribute: str
    kind: str = "double_block"
    before: str = ""
    """Attribute of blocks of another kind, which come first and are never left out."""


BLOCKS: dict[str, Blocks] = {
    "WanModel": Blocks(attribute="blocks"),
    "CameraWanModel": Blocks(attribute="blocks"),
    "HunyuanVideo": Blocks(attribute="single_blocks", kind="single_block", before="double_blocks"),
    "LTXVModel": Blocks(attribute="transformer_blocks"),
}
"""By the very class of the diffusion model: what derives from it may add something of its own between the blocks."""
STREAM = "img"
"""ComfyUI's name for what runs through them."""


class OtherRunsError(Exception):
    """The model was run otherwise than when its residuals were kept."""


class Gate:
    """What the span of blocks does in the runs of one sampling: it runs, is recorded, or is left out."""

    def __init__(self, blocks: Blocks, span: Span) -> None:
        self._blocks, self.span = blocks, span
        self._recorded: list[torch.Tensor] | None = None
        self._given: list[torch.Tensor] | None = None
        """Residuals of the runs that follow."""
        self._begun: torch.Tensor | None = None

    @classmethod
    def of(cls, diffusion_model: Any) -> Gate | None:
        """None where the class is not in `BLOCKS`, or has too few: the first and the last one are never left out."""
        blocks = BLOCKS.get(type(diffusion_model).__name__)
        if blocks is None:
            return None
        num_before = len(getattr(diffusion_model, blocks.before)) if blocks.before else 0
        num_blocks = num_before + len(getattr(diffusion_model, blocks.attribute))
        span = Span(first=num_before + 1, end=num_blocks - 1, num_blocks=num_blocks)
        return cls(blocks, span) if span.num_skipped > 0 else None

    @property
    def kind(self) -> str:
        return self._blocks.kind

    @contextmanager
    def recording(self) -> Iterator[list[torch.Tensor]]:
        """The residual of each run of the model inside."""
        self._recorded = recorded = []
        try:
            yield recorded
        finally:
            self._recorded = self._begun = None

    @contextmanager
    def leaving_out(self, residuals: Sequence[torch.Tensor]) -> Iterator[None]:
        """The runs inside leave the span out; OtherRunsError where they are not those that the residuals are of."""
        self._given = list(residuals)
        try:
            yield
            if self._given:
                raise OtherRunsError("ComfyUI ran the model fewer times than before")
        finally:
            self._given = self._begun = None

    @contextmanager
    def on(self, options: dict[str, Any]) -> Iterator[None]:
        """Puts the blocks of the span in their places in a model's options."""
        transformer_options, num_before = options["transformer_options"], self.span.first - 1
        before = transformer_options.get("patches_replace")
        own = {
            (self.kind, place - num_before): self._replacing(place) for place in range(self.span.first, self.span.end)
        }
        replaced = before or {}
        transformer_options["patches_replace"] = {**replaced, "dit": {**replaced.get("dit", {}), **own}}
        try:
            yield
        finally:
            if before is None:
                del transformer_options["patches_replace"]
            else:
                transformer_options["patches_replace"] = before

    def _replacing(self, place: int) -> Callable[[dict[str, Any], dict[str, Any]], dict[str, Any]]:
        is_first, is_last = place == self.span.first, place == self.span.end - 1

        def block(args: dict[str, Any], extra: dict[str, Any]) -> dict[str, Any]:
            value: torch.Tensor = args[STREAM]
            if self._given is not None:
                if is_first:
                    self._check(value)
                return {STREAM: value + self._given.pop(0) if is_last else value}
            if is_first and self._recorded is not None:
                self._begun = value.clone()  # blocks may write to what they are given
            out: dict[str, Any] = extra["original_block"](args)
            if is_last and self._recorded is not None and self._begun is not None:
                self._recorded.append(out[STREAM] - self._begun)
            return out

        return block

    def _check(self, value: torch.Tensor) -> None:
        if not self._given or (self._given[0].shape, self._given[0].device) != (value.shape, value.device):
            raise OtherRunsError("ComfyUI runs the model otherwise than before")
