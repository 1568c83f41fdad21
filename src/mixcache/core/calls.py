"""What a host and the engine say to each other about a call of the transformer. Plain Python."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Any

CONDITIONAL, UNCONDITIONAL = "cond", "uncond"


@dataclass(frozen=True, slots=True)
class Span:
    """Blocks `first` to `end - 1` of `num_blocks`: what the block granularity leaves out."""

    first: int
    end: int
    num_blocks: int

    @property
    def num_skipped(self) -> int:
        return self.end - self.first


@dataclass(frozen=True, slots=True)
class Mix:
    """Shares of signal and noise in the latents of one step, their squares' sum being 1."""

    signal: float
    noise: float

    @property
    def level(self) -> float:
        """Noise level on the straight path, 0 to 1."""
        return self.noise / (self.signal + self.noise)


@dataclass(frozen=True, slots=True)
class CallInfo:
    """What the host says about one call of the transformer."""

    branch: str
    """Name of the call within its step."""
    step: int
    num_steps: int
    sigma: float
    """Noise level, falling from step to step: 0 where the latents are the clip, 1 where they are noise alone, and in
    between of one meaning for every scheduler (`mixcache.hosts.diffusers.levels`)."""
    signature: tuple[Any, ...]
    """Shape, dtype and device of the input: histories of another signature are of no use."""
    offset: int = 0
    """Steps of the loop that another denoiser does before: two experts count their own. Their engines write to one
    `TraceWriter`, and the first is ended before the second begins."""
    parts: tuple[str, ...] = ()
    """Branches that a batched call returns, in the order in which they are stacked along dimension 0; empty where the
    call is one branch."""

    sigmas: tuple[float, ...] = ()
    """Noise levels of all steps of this denoiser, and the one at which its last step arrives."""
    scheduler_sigma: float | None = None
    """The scheduler's own number for this step, for the trace; None where it is the noise level."""
    mix: Mix | None = None
    """Where the output is a v: what its latents are made of."""
    is_guided_alike: bool = True
    """False where outputs may be guided otherwise from step to step, and no scale tells how: a guider with a memory."""

    @property
    def is_last(self) -> bool:
        return self.step == self.num_steps - 1

    @property
    def branches(self) -> tuple[str, ...]:
        return self.parts or (self.branch,)


class End(str, Enum):
    """Why a trajectory is over."""

    DONE = "done"
    """Its last step was taken, or the pipeline has returned."""
    INTERRUPTED = "interrupted"
    """Another one begins, or calls follow that cannot be told."""
    FAILED = "failed"
    """An exception, Ctrl-C too."""
