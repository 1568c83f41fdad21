"""One sampling: what ComfyUI calls is told to an engine, and cached steps are taken again by taking the sampler again.

A sampler of ComfyUI is a loop with its own local state, which nothing can be put back into. But it is a function of
what the model gave: so these are kept, and where cached steps are to be taken again, the sampler begins anew, is given
the kept ones up to the cached steps, then better ones for these, for none of which the model is run, and goes on:

    call       0    1    2    3         1 and 2 are predicted; at 3 it is seen what they should have been
    given      d_0  d_1  d_2  d_3
    anew       d_0  d_1' d_2' d_3'      d_0 as kept; the others from the velocities v_1', v_2' and v_3

Kept are denoised latents, in the host's memory where the model is on a device.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any

import torch

from mixcache.core import CallInfo, End, Engine, Span
from mixcache.core.calls import CONDITIONAL, UNCONDITIONAL
from mixcache.decision import Granularity
from mixcache.policies import Bounded
from mixcache.trace import Trace, TraceWriter

from .blocks import Gate, OtherRuns
from .levels import Levels

logger = logging.getLogger("mixcache")
WHOLE = Span(first=0, end=0, num_blocks=1)
"""A model whose blocks are not looked at: a call counts as one block."""
MOST_OTHER_RUNS = 2
"""From which on no blocks are left out: memory is too short for what that keeps."""
OFF_BY = 1e-3
"""Share by which a sampler's noise level may differ from that of its step: some begin a little below the first."""


class Again(BaseException):
    """The sampler is to begin anew. No error, so that nobody on its way takes it for one."""


class DoubtError(Exception):
    """A call came in a step that was predicted, and nothing is known to predict it from."""


class Sampling:
    """One run of a sampler over one model; a `mixcache.core.Solver` too."""

    def __init__(
        self,
        policy: Bounded,
        levels: Levels,
        sigmas: list[float],
        guidance: Callable[[], float | None],
        granularities: tuple[str, ...],
        *,
        is_guided_alike: bool,
        gate: Gate | None = None,
    ) -> None:
        span = WHOLE if gate is None else gate.span
        self.trace = Trace(num_blocks=span.num_blocks)
        self.in_full: dict[int, str] = {}
        """Why steps were computed past the engine, by the step."""
        self.num_corrected = 0
        self.num_steps = len(sigmas) - 1
        self._engine = Engine(policy, span, guidance, TraceWriter(self.trace), granularities=granularities)
        self._corrects = policy.needs.correction
        self._levels, self._sigmas = levels, sigmas
        self._noise_levels = tuple(levels.level(sigma) for sigma in sigmas)
        self._is_guided_alike, self._gate = is_guided_alike, gate
        self._place = 0
        """Of the model's next call by the sampler."""
        self._kept: list[torch.Tensor] = []
        """What the sampler is given at its calls, the denoised latents; empty where nothing is taken again."""
        self._better: list[torch.Tensor] = []
        """Velocities for the calls that follow on these, of which the sampler begins anew."""
        self._step: int | None = None
        """That is under way; None outside of one, and where a step is not cached."""
        self._num_calls = 0
        self._num_other_runs = 0
        """Times that the model was run otherwise than when its residuals were kept."""
        self._is_predicted = False
        """Whether the first call of the step was."""

    # ------------------------------------------------------------------------------------------------- sampler

    def begin(self) -> None:
        """The sampler begins, for the first time or anew."""
        self._place = 0

    def end(self, reason: End) -> None:
        """Nothing is held after it."""
        self._engine.end(reason)
        self._kept.clear()
        self._better.clear()

    @property
    def held_bytes(self) -> int:
        return self._engine.held_bytes + sum(value.nbytes for value in (*self._kept, *self._better))

    @property
    def peak_bytes(self) -> int:
        """The most that the engine ever held."""
        return self._engine.peak_bytes

    def predict(self, compute: Callable[[], torch.Tensor], x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        """The guided denoised latents at one call of the sampler's; `compute` asks the model, through `call`."""
        place, self._place = self._place, self._place + 1
        if place < len(self._kept):
            return self._kept[place].to(x.device, non_blocking=True)
        if self._better:
            denoised = self._levels.denoised(self._better.pop(0), x, sigma)
            self._keep(denoised)
            return denoised
        self._step, self._num_calls = self._step_at(place, sigma), 0
        try:
            denoised = compute()
        except (DoubtError, OtherRuns) as doubt:
            self._num_other_runs += isinstance(doubt, OtherRuns)
            if self._num_other_runs >= MOST_OTHER_RUNS:
                self._engine.leave_out(Granularity.BLOCK)
            self._pass(place, str(doubt))
            denoised = compute()
        if self._corrects:
            if self._step is not None:
                output = self._levels.velocity(denoised, x, sigma)
                output, sample = self._engine.solve(self, output, sigma, x)
                if sample is not x:
                    self._better.append(output)
                    self._step = None
                    raise Again
            self._keep(denoised)
        self._step = None
        return denoised

    def _keep(self, denoised: torch.Tensor) -> None:
        kept = denoised
        if denoised.is_cuda:
            kept = torch.empty(denoised.shape, dtype=denoised.dtype, pin_memory=True).copy_(denoised)
        self._kept.append(kept.clone() if kept is denoised else kept)

    def _step_at(self, place: int, sigma: torch.Tensor) -> int | None:
        """The step that the sampler's call is of; None where that is in doubt."""
        values = {float(value) for value in sigma.flatten()}
        if place >= self.num_steps:
            self._pass(place, "the sampler calls more than once in a step")
        elif len(values) > 1:
            self._pass(place, "the samples of a batch have noise levels of their own")
        elif abs(values.pop() - self._sigmas[place]) > OFF_BY * max(self._sigmas[place], 1e-3):
            self._pass(place, "the sampler calls at a noise level that is not that of its step")
        else:
            return place
        return None

    def _pass(self, place: int, reason: str) -> None:
        """The step under way is computed past the engine, which begins anew at the next."""
        self._step = None
        self.in_full[place] = reason
        self._engine.end(End.INTERRUPTED)

    # -------------------------------------------------------------------------------------------------- solver

    def state(self) -> int:
        return len(self._kept)

    def restore(self, state: int) -> None:
        self._better.clear()
        self.num_corrected += len(self._kept) - state
        del self._kept[state:]

    def advance(self, output: torch.Tensor, timestep: Any, sample: torch.Tensor) -> torch.Tensor:
        """Where the sampler arrives is seen when it gets there: what is kept are velocities, which do not ask."""
        self._better.append(output)
        return torch.empty_like(sample)

    # --------------------------------------------------------------------------------------------------- calls

    def call(
        self,
        compute: Callable[[list[Any]], list[torch.Tensor]],
        conds: list[Any],
        x: torch.Tensor,
        sigma: torch.Tensor,
        active: tuple[Any, ...],
    ) -> list[torch.Tensor]:
        """Denoised latents for each of the conditions, zeros for None. `active` says which of what they are made of is
        in force."""
        present = [index for index, cond in enumerate(conds) if cond is not None]
        if self._step is None or not present:
            return compute(conds)
        place, self._num_calls = self._num_calls, self._num_calls + 1
        names = tuple(branch_name(place, index) for index in present)
        run = Call(compute, conds, present, x, sigma, self._levels, names, self._gate)
        info = CallInfo(
            branch="+".join(names),
            parts=names if len(names) > 1 else (),
            step=self._step,
            num_steps=self.num_steps,
            sigma=self._noise_levels[self._step],
            sigmas=self._noise_levels,
            scheduler_sigma=self._sigmas[self._step],
            signature=(x.shape, x.dtype, x.device, active),
            is_guided_alike=self._is_guided_alike,
        )
        output = self._engine.call(info, run)
        if place == 0:
            self._is_predicted = not run.has_run
        elif self._is_predicted and run.has_run:
            raise DoubtError("a node calls the model once more from this step on")
        if run.outputs is not None:
            return run.outputs
        outputs = [torch.zeros_like(x) for _ in conds]
        for index, part in zip(present, output.chunk(len(present)), strict=True):
            outputs[index] = self._levels.denoised(part, x, sigma)
        return outputs


def branch_name(place: int, index: int) -> str:
    """Of a condition, by its index in one of the calls of a step: the first has cond and uncond, and what comes after
    is asked by a node."""
    if place == 0 and index < 2:
        return (CONDITIONAL, UNCONDITIONAL)[index]
    return f"{place}.{index}"


class Call:
    """How one call is carried out: a `mixcache.core.Run`."""

    def __init__(
        self,
        compute: Callable[[list[Any]], list[torch.Tensor]],
        conds: list[Any],
        present: list[int],
        x: torch.Tensor,
        sigma: torch.Tensor,
        levels: Levels,
        names: tuple[str, ...],
        gate: Gate | None,
    ) -> None:
        self._gate = gate
        self._compute, self._conds, self._present, self._names = compute, conds, present, names
        self.latents, self._sigma, self._levels = x, sigma, levels
        self.outputs: list[torch.Tensor] | None = None
        """What ComfyUI gave, where all of it ran."""
        self.has_run = False

    def full(self, *, records: bool) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
        if not records or self._gate is None:
            return self._run(), ()
        return self._gate.recorded(self._names, self._run)

    def conditional(self) -> torch.Tensor | None:
        if self._names != (CONDITIONAL, UNCONDITIONAL):
            return None
        self.has_run = True
        return self._velocity(self._compute([self._conds[0], *[None] * (len(self._conds) - 1)])[0])

    def without_span(self, residuals: tuple[torch.Tensor, ...]) -> torch.Tensor:
        if self._gate is None:
            raise AssertionError("residuals are kept of a span alone")
        return self._gate.without_span(self._names, self._run, residuals)

    def _run(self) -> torch.Tensor:
        self.has_run = True
        self.outputs = self._compute(self._conds)
        return torch.cat([self._velocity(self.outputs[index]) for index in self._present])

    def _velocity(self, denoised: torch.Tensor) -> torch.Tensor:
        return self._levels.velocity(denoised, self.latents, self._sigma)


def in_force(conds: list[list[Mapping[str, Any]] | None], sigma: torch.Tensor) -> tuple[Any, ...]:
    """What the conditions are made of at a noise level, by their names: prompts and controls may have a time of their
    own, and where one begins or ends, what was computed before is of no use. The level is a tensor, with the precision
    of which ComfyUI compares."""
    return tuple(
        None if cond is None else tuple(_parts(part, sigma) for part in cond if _is_on(part, sigma)) for cond in conds
    )


def _is_on(part: Mapping[str, Any], sigma: torch.Tensor) -> bool:
    start, end = part.get("timestep_start"), part.get("timestep_end")
    return (start is None or bool(sigma <= start)) and (end is None or bool(sigma >= end))


def _parts(part: Mapping[str, Any], sigma: torch.Tensor) -> tuple[Any, ...]:
    """The name of a part, and which of its controls are on."""
    controls, control = [], part.get("control")
    while control is not None:
        first, last = control.timestep_range or (float("inf"), 0.0)
        controls.append(bool(last <= sigma) and bool(sigma <= first))
        control = control.previous_controlnet
    return (part.get("uuid"), *controls)
