"""Puts cached steps right as soon as the next computed one shows what they should have been.

A cached step takes an extrapolated output, and the latents go a little astray. The next computed output lies on the
other side of it: with that as one more value, the polynomial interpolates, and errs far less. So before the scheduler
takes the computed step, it goes back to where the cached ones began, takes them again with interpolated outputs, for
which nothing is run, and arrives at better latents. The polynomial is of one degree more than the one that predicted,
or of the degree that the policy names: what was repeated may be corrected through a parabola.

    step       computed   cached   cached   computed
    predicted    v_0        v_1      v_2                 through v_0 and those before it
    corrected    v_0        v_1'     v_2'      v_3       through v_3 as well

What is interpolated are the outputs of each branch, which are values of one function; they are then combined as the
pipeline combined the predicted ones at that very step (`guidance.py`), whatever its scale was. Where what the scheduler
is given is no such combination, its own values are interpolated, as long as one scale guides them all.

The computed output stays what the model gave for the latents it was called with. A step of which a branch or some
blocks ran knows more than an interpolation, and keeps its output.

All that is remembered is a copy: pipelines write to their latents and outputs.

Source: ours. Multistep solvers correct their last step so, UniPC (arXiv 2302.04867) among them. What it
brings is in docs/experiments/2026-11-corrector.md.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from mixcache.core.calls import CallInfo
from mixcache.core.guidance import Combination, combination, tolerance
from mixcache.core.histories import StepRecord
from mixcache.core.history import Computed, predicted
from mixcache.core.run import Solver
from mixcache.core.seen import Seen
from mixcache.core.velocity import v_from_velocity, velocity_from_v
from mixcache.decision import Granularity
from mixcache.predictors import Lagrange, Predictor

Values = Mapping[str, torch.Tensor]
"""Outputs by branch, as they are kept (`mixcache.core.velocity`)."""


@dataclass(frozen=True, slots=True)
class Node:
    """A computed step, which later ones are interpolated from."""

    step: int
    sigma: float
    outputs: Values
    """Of the branches; empty where what the solver is given is no combination of them."""
    given: torch.Tensor | None
    """What the solver was given, as kept; None where it is a combination."""
    scale: float | None
    """Of the guidance."""


@dataclass(frozen=True, slots=True)
class CachedStep:
    """What it takes to take it again."""

    info: CallInfo
    predictor: Predictor
    timestep: Any
    output: torch.Tensor | None
    """None where nothing of it was computed."""
    combination: Combination | None
    """How its branches were combined; None where they were not, or it is not known how."""
    scale: float | None


@dataclass(slots=True)
class CachedRun:
    """The cached steps since the last computed one."""

    state: Any
    """Of the solver, before the first of them."""
    sample: torch.Tensor
    """Latents that the first of them began with."""
    steps: list[CachedStep] = field(default_factory=list)


class Corrector:
    """Watches the scheduler's steps in one trajectory."""

    def __init__(self, num_values: int, degree: int | None = None) -> None:
        self._degree = degree
        """Of the polynomial, as far as there are nodes for it; None for one over that of each step's predictor."""
        self._nodes: deque[Node] = deque(maxlen=degree or num_values)
        self._branches: frozenset[str] = frozenset()
        """That these were guided from."""
        self._run: CachedRun | None = None
        self._record: StepRecord | None = None
        """Of the last step that was seen."""
        self._arrived: Seen | None = None
        """The latents after it."""
        self._is_disturbed = False
        """True if the last step did not begin where the one before it had arrived."""
        self._combines: bool | None = None
        """Whether the solver is given a combination of the branches; None while that is not known."""
        self._tolerance = 0.0

    def tensors(self) -> Iterator[torch.Tensor]:
        """All that is held here; the solver's own state is left out."""
        for node in self._nodes:
            yield from node.outputs.values()
            if node.given is not None:
                yield node.given
        if self._run is not None:
            yield self._run.sample
            yield from (step.output for step in self._run.steps if step.output is not None)

    def is_watching(self, step: int) -> bool:
        """True if the solver's step before this one was seen here, so that this one's is likely to be."""
        return self._record is not None and self._record.info.step == step - 1

    def is_at_work(self, step: int) -> bool:
        """True if a cached step, this one, is likely to be taken again: the solver's last step was seen here, nobody
        had changed the latents before it, and it is known how outputs are guided."""
        return self.is_watching(step) and not self._is_disturbed and self._knows_guidance

    @property
    def _knows_guidance(self) -> bool:
        if self._record is None:
            return False
        return self._combines is True or self._record.info.is_guided_alike

    def learn(self, misfit: float) -> None:
        """Told, once it is known on the host, how far a computed step's answer was from a combination."""
        combines = misfit <= self._tolerance
        if combines is not self._combines:
            if self._combines is not None:  # guidance has become another function
                self._nodes.clear()
                self._run = None
            self._combines = combines
            kept = [
                Node(n.step, n.sigma, n.outputs if combines else {}, None if combines else n.given, n.scale)
                for n in self._nodes
            ]
            self._nodes.clear()
            self._nodes.extend(kept)

    def before(
        self,
        record: StepRecord,
        values: Values,
        solver: Solver,
        output: torch.Tensor,
        timestep: Any,
        sample: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Output and sample that the pipeline's next step of the solver is to be taken with, in place of these.

        `values` are the outputs of the step's branches, computed or predicted, from which `output` was made; empty for
        a step of which a part was computed.
        """
        if record is self._record:  # a solver with several stages in a step
            self.clear()
            self._record = record
            return output, sample
        self._record = record
        self._is_disturbed = self._arrived is not None and not is_same(sample, self._arrived)
        if self._is_disturbed:
            self._run = None
        if record.decision.granularity is not Granularity.COMPUTE:
            self._remember(record, values, solver, output, timestep, sample)
            return output, sample
        branches = frozenset(call.branch for call in record.calls)
        if branches != self._branches:  # guidance has begun or ended: the outputs before are of another kind
            self._run = self._combines = None
            self._nodes.clear()
            self._branches = branches
        combined = combination(output, in_form_of(values, sample, record)) if self._combines is not False else None
        if combined is None:
            self._combines = False
        else:
            record.misfit, self._tolerance = combined.misfit, tolerance(output.dtype)
        run, self._run = self._run, None
        node = self._node(record, values, output, sample)
        if run is not None and self._may_interpolate(run, node):
            record.num_corrected = len(run.steps)
            begun, sample = sample, self._taken_again(run, node, solver, output.dtype).to(sample.dtype)
            output = self._at(sample, begun, output, values, combined, record)
        self._nodes.append(node)
        return output, sample

    def after(self, sample: torch.Tensor) -> None:
        """Told where the step arrived."""
        if self._record is None or self._record.info.is_last:
            self.clear()
        else:
            # what is written to a tensor of inference mode leaves no mark but the values
            self._arrived = Seen.of(sample.clone() if sample.is_inference() else sample)

    def _node(self, record: StepRecord, values: Values, output: torch.Tensor, sample: torch.Tensor) -> Node:
        given = None
        if self._combines is not True:
            kept = velocity_from_v(output, sample, record.info.mix)
            given = kept.detach().clone() if kept is output else kept
        outputs = {} if self._combines is False else dict(values)
        return Node(record.info.step, record.info.sigma, outputs, given, record.guidance)

    def _remember(
        self,
        record: StepRecord,
        values: Values,
        solver: Solver,
        output: torch.Tensor,
        timestep: Any,
        sample: torch.Tensor,
    ) -> None:
        if not self._nodes or not self._knows_guidance:
            return
        if self._run is None:
            self._run = CachedRun(solver.state(), sample.detach().clone())
        known, combined = None, None
        if record.decision.granularity is not Granularity.STEP:
            known = output.detach().clone()
        elif self._combines:
            combined = combination(output, in_form_of(values, sample, record))
        timestep = timestep.clone() if isinstance(timestep, torch.Tensor) else timestep
        self._run.steps.append(
            CachedStep(record.info, record.decision.predictor, timestep, known, combined, record.guidance)
        )

    def _may_interpolate(self, run: CachedRun, node: Node) -> bool:
        """True where something is to be taken again, and it is known how each step's outputs were guided."""
        steps = [step for step in run.steps if step.output is None]
        if not steps or not self._nodes:
            return False
        if self._combines:
            return all(step.combination is not None for step in steps)
        scales = {step.scale for step in steps} | {other.scale for other in (*self._nodes, node)}
        return len(scales) == 1 and all(other.given is not None for other in (*self._nodes, node))

    def _taken_again(self, run: CachedRun, node: Node, solver: Solver, dtype: torch.dtype) -> torch.Tensor:
        """The sample behind the run, with what is known of its outputs by now."""
        solver.restore(run.state)
        sample = run.sample
        for step in run.steps:
            output = step.output
            if output is None:
                degree = self._degree or step.predictor.num_values
                nodes = [*list(self._nodes)[-degree:], node]
                mix, sigma = step.info.mix, step.info.sigma
                if step.combination is not None:
                    branches = {b: interpolated(nodes, sigma, b) for b in step.combination.shares}
                    values = {b: v_from_velocity(value, sample, mix) for b, value in branches.items()}
                    output = step.combination.of(values).to(dtype)
                else:
                    output = v_from_velocity(interpolated(nodes, sigma), sample, mix).to(dtype)
            sample = solver.advance(output, step.timestep, sample)
        return sample

    def _at(
        self,
        sample: torch.Tensor,
        begun: torch.Tensor,
        output: torch.Tensor,
        values: Values,
        combined: Combination | None,
        record: StepRecord,
    ) -> torch.Tensor:
        """A computed output that was given for the latents `begun`, for the corrected ones: it changes where it is a v,
        and what stays is the velocity."""
        if record.info.mix is None:
            return output
        if self._combines and combined is not None:
            before, now = in_form_of(values, begun, record), in_form_of(values, sample, record)
            moved = {branch: now[branch].float() - before[branch].float() for branch in values}
            return (output + combined.of(moved)).to(output.dtype)
        kept = velocity_from_v(output, begun, record.info.mix)
        return v_from_velocity(kept, sample, record.info.mix).to(output.dtype)

    def clear(self) -> None:
        """Ends the trajectory."""
        self._run = self._record = self._arrived = self._combines = None
        self._branches = frozenset()
        self._is_disturbed = False
        self._nodes.clear()


def in_form_of(values: Values, sample: torch.Tensor, record: StepRecord) -> dict[str, torch.Tensor]:
    """The branches' outputs as the model gives them for these latents."""
    return {branch: v_from_velocity(value, sample, record.info.mix) for branch, value in values.items()}


def interpolated(nodes: list[Node], sigma: float, branch: str | None = None) -> torch.Tensor:
    """The value at a noise level of a branch's output, or of what the solver was given."""
    values = [
        Computed(node.step, node.sigma, value)
        for node in nodes
        if (value := node.given if branch is None else node.outputs.get(branch)) is not None
    ]
    return predicted(values, sigma, Lagrange(degree=3))


def is_same(sample: torch.Tensor, arrived: Seen) -> bool:
    """True if a step begins where the one before it arrived, but for the rounding of a pipeline that keeps its latents
    in low precision."""
    if arrived.is_same(sample):
        return True
    value = arrived.value
    if value.shape != sample.shape or value.device != sample.device or not arrived.is_same(value):
        return False
    roundings = {sample.dtype, torch.bfloat16, torch.float16} - {value.dtype}
    return any(torch.equal(value.to(dtype).to(sample.dtype), sample) for dtype in roundings)
