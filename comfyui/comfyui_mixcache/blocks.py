"""A span of blocks that is left out, by ComfyUI's own way of replacing blocks (`patches_replace`).

    computed step   the first block of the span notes what goes in, the last one what came of it: their difference is
                    the residual
    block step      the blocks of the span hand on what they were given, and the last one adds the residual

One call of ComfyUI's may run the model several times, where prompts are of several lengths or memory is short: there is
a residual for each run, in their order. They are kept as one tensor, so that what is measured is of all prompts.
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


class OtherRuns(BaseException):
    """The model is run otherwise than when residuals were kept. No error, so that nobody within takes it for one."""


@dataclass(slots=True)
class Residual:
    """What the span added in one run of the model."""

    value: torch.Tensor
    prompts: tuple[Any, ...]
    """Whose it is, by ComfyUI's names for the parts of a batch."""

    def is_of(self, value: torch.Tensor, prompts: tuple[Any, ...]) -> bool:
        """True for the same prompts, in a batch like theirs."""
        return (self.value.shape, self.value.device, self.prompts) == (value.shape, value.device, prompts)


class Gate:
    """What the span of blocks does in the runs of one sampling: it runs, is recorded, or is left out."""

    def __init__(self, blocks: Blocks, span: Span) -> None:
        self._blocks, self.span = blocks, span
        self._layouts: dict[tuple[str, ...], list[tuple[torch.Size, tuple[Any, ...]]]] = {}
        """Of the residuals that were found last, in the order of the runs, by the branches of a call."""
        self._recorded: list[Residual] | None = None
        self._given: list[Residual] | None = None
        """Of the runs that follow."""
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

    def anew(self) -> Gate:
        """One for another sampling."""
        return Gate(self._blocks, self.span)

    @property
    def kind(self) -> str:
        return self._blocks.kind

    def recorded(
        self, call: tuple[str, ...], run: Callable[[], torch.Tensor]
    ) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
        """What a function gives that runs the model, and the residuals as one tensor: none where the runs are others
        than those that the residuals before are of, which are then of no use, nor is a change from them."""
        self._recorded = found = []
        try:
            output = run()
        finally:
            self._recorded = self._begun = None
        layout = [(residual.value.shape, residual.prompts) for residual in found]
        before, self._layouts[call] = self._layouts.get(call, layout), layout
        if not found or before != layout:
            return output, ()
        values = [residual.value.flatten() for residual in found]
        return output, (values[0] if len(values) == 1 else torch.cat(values),)

    def without_span(
        self, call: tuple[str, ...], run: Callable[[], torch.Tensor], residuals: Sequence[torch.Tensor]
    ) -> torch.Tensor:
        """The same where the span is left out; OtherRuns where the runs are not those that the residuals are of."""
        layout = self._layouts[call]
        shapes = [shape for shape, _ in layout]
        parts = residuals[0].split([shape.numel() for shape in shapes])
        self._given = [
            Residual(part.view(shape), prompts) for part, (shape, prompts) in zip(parts, layout, strict=True)
        ]
        try:
            output = run()
            if self._given:
                raise OtherRuns("ComfyUI ran the model fewer times than before")
            return output
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
            prompts = tuple(args["transformer_options"].get("uuids", ()))
            if self._given is not None:
                if is_first and not (self._given and self._given[0].is_of(value, prompts)):
                    raise OtherRuns("ComfyUI runs the model otherwise than before")
                return {STREAM: value + self._given.pop(0).value if is_last else value}
            if is_first and self._recorded is not None:
                self._begun = value.clone()  # blocks may write to what they are given
            out: dict[str, Any] = extra["original_block"](args)
            if is_last and self._recorded is not None and self._begun is not None:
                self._recorded.append(Residual(out[STREAM] - self._begun, prompts))
                self._begun = None
            return out

        return block
