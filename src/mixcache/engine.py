"""One denoising step: decide, compute or predict, measure, record. Knows calls and blocks, not diffusers.

    first call of a step -> finish the step before (measure, refresh histories, trace) -> policy.decide
    every call           -> the step's one granularity says whether the transformer, or its span of blocks, runs

A step is finished when the next one begins, or at `reset`, since nothing says which call of a step is its last.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from mixcache.calls import CONDITIONAL, UNCONDITIONAL, CallInfo, Span, SpanMode
from mixcache.corrector import Corrector, Solver
from mixcache.decision import Decision, Granularity, Measurement, Step
from mixcache.histories import Histories, StepRecord
from mixcache.measuring import SignalName, distances, measurement_of, products
from mixcache.policies.base import Policy
from mixcache.signals import to_floats, total
from mixcache.trace import Call, Trace, TraceEntry

logger = logging.getLogger("mixcache")
Compute = Callable[[], torch.Tensor]
Streams = tuple[torch.Tensor, ...]
"""What runs through the blocks: the hidden state, and in some models that of the text or of the sound beside it."""


def parts_of(output: torch.Tensor, info: CallInfo) -> dict[str, torch.Tensor]:
    """The outputs of the branches that a call is of, which a joined one has stacked along dimension 0."""
    parts = output.chunk(len(info.parts)) if info.parts else (output,)
    return dict(zip(info.branches, parts, strict=True))


class Engine:
    """State and flow of one transformer.

    `guidance` gives the scale in force now, or None where there is none; `granularities` are those that the model
    allows.
    """

    def __init__(
        self,
        policy: Policy,
        span: Span,
        guidance: Callable[[], float | None],
        trace: Trace,
        *,
        granularities: tuple[str, ...] = ("step", "cfg", "block"),
        max_traced_generations: int = 100,
    ) -> None:
        self.policy, self.span, self.trace = policy, span, trace
        self._guidance = guidance
        self._max_traced_generations = max_traced_generations
        self._costs = {
            Granularity.STEP: 0.0,
            Granularity.CFG: 0.5,
            Granularity.BLOCK: 1 - span.num_skipped / max(1, span.num_blocks),
        }
        kept = {granularity for granularity in policy.granularities if granularity.value in granularities}
        self._keeps_outputs = Granularity.STEP in kept or (policy.measures and not policy.looks_back)
        self._histories = Histories(policy.max_order + 1, kept)
        self._corrector = Corrector(policy.max_order) if policy.corrects else None
        self._signatures: dict[str, tuple[Any, ...]] = {}
        self._state = self._seen_state = policy.init()
        self._record: StepRecord | None = None
        self._call = ""
        self._span_input: Streams = ()
        self._num_cached = 0
        self._generation = self._told_non_finite = -1
        self.span_mode = SpanMode.RUN
        self.peak_bytes = 0
        """Most that histories and the values set aside for them ever took."""

    @property
    def policy_state(self) -> Any:
        """What the policy itself remembers of the trajectory under way, or of the last one."""
        return self._seen_state

    def keeps(self, granularity: Granularity) -> bool:
        """True where policy and model both allow it, so that there are histories for it."""
        return granularity in self._histories.kept

    def leave_out(self, granularity: Granularity) -> None:
        """From now on computes what the policy would cache by this granularity."""
        self._histories.kept.discard(granularity)

    # ---------------------------------------------------------------------------------------------------- calls

    def call(self, info: CallInfo, compute: Compute, compute_conditional: Compute | None = None) -> torch.Tensor:
        """The output of one call: `compute()` runs the transformer, and is not called where the cache answers.

        `compute_conditional()` runs the conditional part of a joined call alone, where the host can. Whatever they
        raise drops every history and goes on to the caller.
        """
        record = self._record
        if record is None or self._is_new_trajectory(record, info):
            self.reset()
            self._generation = self.trace.number_of(info.offset)
            record = self._begin(info)
        elif record.info.step != info.step:
            self._finish()
            record = self._begin(info)
        self._signatures |= dict.fromkeys(info.branches, (info.signature, info.parts))
        granularity = record.decision.granularity
        if granularity is Granularity.STEP and self._histories.num_outputs(info.branches):
            return self._answer(record, info)
        if granularity is Granularity.CFG and UNCONDITIONAL in info.branches:
            if info.branches == (UNCONDITIONAL,) and CONDITIONAL in record.outputs:
                return self._from_conditional(record)
            if info.parts and CONDITIONAL in info.parts and compute_conditional is not None:
                conditional = replace(info, branch=CONDITIONAL, parts=())
                outputs = {CONDITIONAL: self._computed_output(record, conditional, compute_conditional)}
                outputs[UNCONDITIONAL] = self._from_conditional(record)
                return torch.cat([outputs[branch] for branch in info.parts])
        return self._computed_output(record, info, compute)

    def _answer(self, record: StepRecord, info: CallInfo) -> torch.Tensor:
        """The predicted output of a call that is not computed."""
        record.calls += [Call(branch=branch, computed=False, num_blocks=0) for branch in info.branches]
        order, trust = record.decision.order, record.decision.trust
        outputs = [self._histories.output(branch, info.sigma, order, trust) for branch in info.branches]
        if info.parts:
            return torch.cat(outputs)
        output = outputs[0]
        # the pipeline may write to it
        return output.clone() if self._histories.is_last_output(info.branch, output) else output

    def _from_conditional(self, record: StepRecord) -> torch.Tensor:
        """The unconditional output of a `cfg` step, which is not computed."""
        record.calls.append(Call(branch=UNCONDITIONAL, computed=False, num_blocks=0))
        decision = record.decision
        difference = self._histories.difference.predict(record.info.sigma, decision.order, decision.trust)
        return record.outputs[CONDITIONAL] + difference

    def _computed_output(self, record: StepRecord, info: CallInfo, compute: Compute) -> torch.Tensor:
        granularity = record.decision.granularity
        self._call = info.branch
        if granularity is Granularity.BLOCK and self._histories.num_residuals([(info.branch, 0)]):
            self.span_mode = SpanMode.SKIP
        elif (
            granularity is Granularity.COMPUTE and Granularity.BLOCK in self._histories.kept and not record.info.is_last
        ):
            self.span_mode = SpanMode.RECORD
        num_blocks = self.span.num_blocks - (self.span.num_skipped if self.span_mode is SpanMode.SKIP else 0)
        is_full = self.span_mode is not SpanMode.SKIP
        try:
            output = compute()
        except BaseException:
            self.abandon()
            raise
        finally:
            self.span_mode, self._span_input = SpanMode.RUN, ()
        record.calls += [Call(branch=branch, computed=True, num_blocks=num_blocks) for branch in info.branches]
        record.totals[info.branch] = total(output)
        if is_full and (self._keeps_outputs or Granularity.CFG in self._histories.kept):
            record.outputs |= parts_of(output.detach().clone(), info)
        return output

    # --------------------------------------------------------------------------------------------------- blocks

    def span_begins(self, streams: Streams) -> None:
        """Told what goes into the span's first block."""
        if self.span_mode is not SpanMode.RUN:
            self._span_input = streams

    def span_ends(self, streams: Streams) -> Streams:
        """Told what comes out of the span; returns what goes on to the next block.

        A span left out is replaced by what went into it plus its predicted residual, whatever the model added on the
        way: that is in the residual.
        """
        record, before = self._record, self._span_input
        if record is None or not before:
            return streams
        if self.span_mode is SpanMode.RECORD:
            for index, (begin, end) in enumerate(zip(before, streams, strict=True)):
                key = self._call, index
                if not self.policy.measures:  # a measurement compares with what was kept
                    self._histories.make_room(key)
                record.residuals[key] = (end - begin).detach()
        if self.span_mode is SpanMode.SKIP:
            sigma, order, trust = record.info.sigma, record.decision.order, record.decision.trust
            streams = tuple(
                begin + self._histories.residual((self._call, index), sigma, order, trust)
                for index, begin in enumerate(before)
            )
        self._span_input = ()
        return streams

    # --------------------------------------------------------------------------------------------------- solver

    def before_solver(
        self, solver: Solver, output: torch.Tensor, timestep: Any, sample: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Told of the pipeline's step of the solver; gives the output and the sample to take it with."""
        if self._corrector is None or self._record is None:
            return output, sample
        return self._corrector.before(self._record, solver, output, timestep, sample)

    def after_solver(self, sample: torch.Tensor) -> None:
        """Told where that step arrived."""
        if self._corrector is not None:
            self._corrector.after(sample)

    # ---------------------------------------------------------------------------------------------------- steps

    def _is_new_trajectory(self, record: StepRecord, info: CallInfo) -> bool:
        last = record.info
        mine = (info.signature, info.parts)
        is_same = all(self._signatures.get(branch, mine) == mine for branch in info.branches)
        if not is_same or info.num_steps != last.num_steps:
            return True
        if info.step == last.step:
            return record.has(info.branches)
        return info.step != last.step + 1 or info.sigma > last.sigma

    def _begin(self, info: CallInfo) -> StepRecord:
        ages, lengths = self._histories.usable(info.step)
        step = Step(
            index=info.step,
            num_steps=info.num_steps,
            sigma=info.sigma,
            offset=info.offset,
            ages=ages,
            history_lengths=lengths,
            num_cached=self._num_cached,
            sigmas=info.sigmas,
            guidance=self._guidance() if self.policy.looks_back else None,
            costs=self._costs,
            corrects=self._corrector is not None and self._corrector.is_at_work(info.step),
        )
        self._seen_state = self._state
        decision = self.policy.decide(step, self._state)
        if decision.granularity is not Granularity.COMPUTE and decision.granularity not in ages:
            decision = Decision(granularity=Granularity.COMPUTE, reason="no history")
        if decision.granularity is Granularity.STEP and not self._histories.num_outputs(info.branches):
            # guidance would multiply the mismatch of one branch computed and the other predicted
            decision = Decision(granularity=Granularity.COMPUTE, reason="no history")
        if decision.granularity is Granularity.COMPUTE and info.is_last:
            self._histories.forget_residuals()  # token-sized, and of no more use; some pipelines never reset
        self._record = StepRecord(info=info, decision=decision)
        return self._record

    def _finish(self) -> None:
        """Measures the step under way, refreshes the histories with what was computed, and traces it."""
        record, self._record = self._record, None
        if record is None:
            return
        self._num_cached = 0 if record.decision.granularity is Granularity.COMPUTE else self._num_cached + 1
        if Granularity.CFG in self._histories.kept and {CONDITIONAL, UNCONDITIONAL} <= set(record.outputs):
            record.difference = record.outputs[UNCONDITIONAL] - record.outputs[CONDITIONAL]
        is_measured = self.policy.measures and record.decision.granularity is Granularity.COMPUTE
        names: list[SignalName] = list(record.totals)
        scalars = list(record.totals.values())
        if is_measured:
            record.guidance = self._guidance()
            if self.policy.looks_back:
                signals = products(record, self._histories)
            else:
                signals = distances(record, self._histories, self.policy.max_order)
            names += signals
            scalars += signals.values()
        values = dict(zip(names, to_floats(scalars), strict=True))
        num_non_finite = sum(not math.isfinite(values[call]) for call in record.totals)
        measurement = None
        if is_measured and not num_non_finite:
            measurement = measurement_of(record, values, self._histories.kept)
            self.policy.observe(measurement, self._state)
        self.peak_bytes = max(self.peak_bytes, self.held_bytes + record.num_bytes)
        if num_non_finite:
            # a branch refreshed alone would be younger than the other
            self._report_non_finite(record)
        else:
            self._histories.refresh(record, keeps_outputs=self._keeps_outputs)
        self._append(record, measurement, num_non_finite)

    def _report_non_finite(self, record: StepRecord) -> None:
        """Says once in a trajectory that the model gave a NaN or an infinity."""
        if self._told_non_finite != self._generation:
            self._told_non_finite = self._generation
            logger.warning("the model's output has a NaN or an infinity at step %d; it is not cached", record.info.step)

    def _append(self, record: StepRecord, measurement: Measurement | None, num_non_finite: int) -> None:
        self.trace.append(
            TraceEntry(
                generation=self._generation,
                step=record.info.offset + record.info.step,
                num_steps=record.info.offset + record.info.num_steps,
                sigma=record.info.sigma,
                granularity=record.decision.granularity,
                order=record.decision.order,
                trust=record.decision.trust,
                reason=record.decision.reason,
                calls=tuple(record.calls),
                deviation=measurement.deviation if measurement else None,
                distances=dict(measurement.distances) if measurement else {},
                non_finite=num_non_finite,
                held_bytes=self.held_bytes,
                num_corrected=record.num_corrected,
            )
        )

    # ---------------------------------------------------------------------------------------------------- state

    @property
    def held_bytes(self) -> int:
        """Bytes of all histories now, the corrector's too."""
        return self._histories.num_bytes + (self._corrector.num_bytes if self._corrector is not None else 0)

    def reset(self) -> None:
        """Ends the trajectory: the last step is measured and traced, every history and the policy's state are
        dropped."""
        self._finish()
        self._drop()

    def abandon(self) -> None:
        """Ends the trajectory after an error: the step under way is not looked at."""
        self._record = None
        self._drop()

    def _drop(self) -> None:
        self._histories.clear()
        if self._corrector is not None:
            self._corrector.clear()
        self._signatures.clear()
        self._num_cached = 0
        self._state = self.policy.init()
        self.span_mode, self._span_input = SpanMode.RUN, ()
        self.trace.keep_generations(self._max_traced_generations)
