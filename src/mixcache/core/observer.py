"""An engine that leaves nothing out: the base of those that only look, and of calibration's.

It has what a host asks of an engine, so that whoever wants to record or to disturb a run needs no cache for it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from mixcache.core.agreement import Agreement
from mixcache.core.calls import CallInfo, End, Span
from mixcache.core.run import Run, Solver
from mixcache.core.step_times import StepTimes
from mixcache.decision import Granularity
from mixcache.policies.base import Policy
from mixcache.trace import TraceWriter


class Observer:
    """State and flow of one run of one transformer, of which everything is computed.

    `guidance` gives the scale in force now, or None where there is none; `granularities` are those that the model
    allows.
    """

    def __init__(
        self,
        policy: Policy,
        span: Span,
        guidance: Callable[[], float | None],
        trace: TraceWriter,
        *,
        granularities: tuple[str, ...] = ("step", "cfg", "block"),
    ) -> None:
        self.policy, self.span = policy, span
        self._guidance, self._trace = guidance, trace
        self._kept = {g for g in policy.needs.granularities if g.value in granularities}
        self.agreement: Agreement | None = None
        """With the other ranks that run the same clip; None where there are none."""
        self.times = StepTimes()
        self.peak_bytes = 0
        """Most that what is kept ever took."""

    def keeps(self, granularity: Granularity) -> bool:
        """True where policy and model both allow it."""
        return granularity in self._kept

    def leave_out(self, granularity: Granularity) -> None:
        """From now on this granularity is not used."""
        self._kept.discard(granularity)

    @property
    def held_bytes(self) -> int:
        """Bytes of all that is kept now."""
        return 0

    @property
    def is_over(self) -> bool:
        """True where most likely nothing follows in this trajectory."""
        return False

    def begin(self) -> None:
        """A run begins of which nothing is known yet."""

    def call(self, info: CallInfo, run: Run) -> torch.Tensor:
        """The output of one call, of which `run` carries out what is not answered.

        The very tensor that `run.full` gave where it ran in full; else one that the caller may write to. AloneError,
        before anything is run, where the host is to compute the call in full since another rank does.
        """
        return run.full(records=False)[0]

    def solve(
        self, solver: Solver, output: torch.Tensor, timestep: Any, sample: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Told of the pipeline's step of the solver; gives the output and the sample to take it with."""
        return output, sample

    def solved(self, sample: torch.Tensor) -> None:
        """Told where that step arrived."""

    def end(self, reason: End) -> None:
        """Ends the trajectory."""
