"""What a host brings: a call, and how it can be carried out; a solver that can go back."""

from __future__ import annotations

from typing import Any, Protocol

import torch

from mixcache.core.calls import CallInfo

Streams = tuple[torch.Tensor, ...]
"""What runs through the blocks: the hidden state, and in some models that of the text or of the sound beside it."""


class Run(Protocol):
    """One call of the transformer, as its host can carry it out. Whatever it raises drops every history."""

    @property
    def latents(self) -> torch.Tensor:
        """What the transformer is called with; looked at where the call has a `mix`."""

    def full(self, *, records: bool) -> tuple[torch.Tensor, Streams]:
        """Runs all of it. The output, one tensor, and where it `records` the residual of each stream over the span of
        blocks, tensors that nobody else writes to; none where the call did not pass through the span."""

    def without_span(self, residuals: Streams) -> torch.Tensor:
        """The output where the span is left out, and the residuals are added in its place."""

    def conditional(self) -> torch.Tensor | None:
        """The output of the conditional part of a batched call alone; None where that cannot be run."""


class Solver(Protocol):
    """A scheduler that can go back to where it was."""

    def state(self) -> Any:
        """What `restore` wants, once; no tensor in it is written to by anybody else."""

    def restore(self, state: Any) -> None: ...

    def advance(self, output: torch.Tensor, timestep: Any, sample: torch.Tensor) -> torch.Tensor:
        """The sample after a step."""


def parts_of(output: torch.Tensor, info: CallInfo) -> dict[str, torch.Tensor]:
    """The outputs of the branches that a call is of, which a joined one has stacked along dimension 0."""
    parts = output.chunk(len(info.parts)) if info.parts else (output,)
    return dict(zip(info.branches, parts, strict=True))
