"""One denoising step: decide, compute or predict, measure, record. Knows calls, not where they come from.

    first call of a step -> finish the step before (measure, refresh histories, trace) -> policy.decide
    every call           -> the step's one granularity says what of it the host is asked to run
    solver's step        -> the corrector may have the cached steps before it taken again

A host (a pipeline's hooks, or a loop of one's own) makes an engine for each run and transformer, brings every call as
a `CallInfo` and a `Run`, and says when the trajectory is over (`end`). A step is finished when the next one begins, or
at the end.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import torch

from mixcache.core.agreement import Agreement, AloneError, decoded, encoded
from mixcache.core.calls import CONDITIONAL, UNCONDITIONAL, CallInfo, End, Span
from mixcache.core.corrector import Corrector
from mixcache.core.histories import Histories, StepRecord
from mixcache.core.measuring import SignalName, distances, is_of_shards, measurement_of, products
from mixcache.core.observer import Observer
from mixcache.core.run import Run, Solver, Streams, parts_of
from mixcache.core.signals import to_floats, total
from mixcache.core.velocity import v_from_velocity, velocity_from_v
from mixcache.decision import Decision, Granularity, Measurement, Step
from mixcache.policies.base import Policy
from mixcache.trace import Call, TraceEntry, TraceWriter

logger = logging.getLogger("mixcache")
IN_TURN = (
    "runs take turns on one transformer and cannot be told apart: they are computed in full; give each a pipeline and "
    "a scheduler of its own"
)


class Engine(Observer):
    """State and flow of one run of one transformer, which is cached."""

    def __init__(
        self,
        policy: Policy,
        span: Span,
        guidance: Callable[[], float | None],
        trace: TraceWriter,
        *,
        granularities: tuple[str, ...] = ("step", "cfg", "block"),
        max_traced_generations: int = 100,
    ) -> None:
        super().__init__(policy, span, guidance, trace, granularities=granularities)
        self._max_traced_generations = max_traced_generations
        self._costs = {
            Granularity.STEP: 0.0,
            Granularity.CFG: 0.5,
            Granularity.BLOCK: 1 - span.num_skipped / max(1, span.num_blocks),
        }
        self._needs = needs = policy.needs
        self._keeps_outputs = self.keeps(Granularity.STEP) or needs.distances
        self._histories = Histories(needs.num_values, self._kept)
        self._corrector = Corrector(needs.num_values, needs.correction_degree) if needs.correction else None
        self._signatures: dict[str, tuple[Any, ...]] = {}
        self._dtype: torch.dtype | None = None
        """Of the transformer's output; what is kept may have another."""
        self._state = policy.init()
        self._record: StepRecord | None = None
        self._num_calls = self._num_cached = 0
        """Calls of the last step that was finished; cached steps since the last computed one."""
        self._generation = self._told_non_finite = -1
        self._num_computed_before = 0
        """Steps that another denoiser has computed in this loop."""
        self._takes_turns = self._has_told_turns = False

    def begin(self) -> None:
        self._takes_turns = False

    # ---------------------------------------------------------------------------------------------------- calls

    def call(self, info: CallInfo, run: Run) -> torch.Tensor:
        record = self._record
        if self.agreement is not None:
            self._meet(self.agreement, info)
        if record is None or self._is_new_trajectory(record, info):
            self._takes_turns = info.step > 0 and (self._takes_turns or self._is_another_run(record, info))
            if self._takes_turns and not self._has_told_turns:
                self._has_told_turns = True
                logger.warning(IN_TURN)
            self.end(End.INTERRUPTED)
            self._num_computed_before = self._trace.num_computed_before(info.offset)
            self._generation = self._trace.number_of(info.offset)
            record = self._begin(info, run.latents.device)
        elif record.info.step != info.step:
            self._finish(agrees=True)
            record = self._begin(info, run.latents.device)
        self._signatures |= dict.fromkeys(info.branches, (info.signature, info.parts))
        granularity = record.decision.granularity
        if granularity is Granularity.STEP and self._histories.num_outputs(info.branches):
            return self._answer(record, info, run)
        try:
            if granularity is Granularity.CFG and UNCONDITIONAL in info.branches:
                if info.branches == (UNCONDITIONAL,) and CONDITIONAL in record.outputs:
                    return self._from_conditional(record, run.latents, info)
                if info.parts and CONDITIONAL in info.parts and (output := run.conditional()) is not None:
                    return self._joined_from_conditional(record, output, info, run)
            return self._computed(record, info, run)
        except BaseException:
            self._record = None  # what was computed of the step under way is not looked at
            self.end(End.FAILED)
            raise

    def _meet(self, agreement: Agreement, info: CallInfo) -> None:
        """The other ranks are at the same call, of the same trajectory; AloneError where one computes it in full."""
        record = self._record
        place = {
            "call": "+".join(info.branches),
            "step": f"{info.step} of {info.num_steps}",
            "steps taken again": 0 if record is None else record.num_corrected,
        }
        trajectory = None
        if record is None or self._is_new_trajectory(record, info):
            trajectory = {
                "shape": [str(part) for part in info.signature if not isinstance(part, torch.device)],
                "noise levels": info.sigmas or info.sigma,
                "guidance": self._guidance(),
                "span": self.span,
                "granularities in use": sorted(map(str, self._kept)),
            }
        try:
            agreement.meet(place, trajectory)
        except AloneError:
            self.end(End.INTERRUPTED)
            raise

    def _answer(self, record: StepRecord, info: CallInfo, run: Run) -> torch.Tensor:
        """The predicted output of a call that is not computed."""
        record.calls += [Call(branch=branch, computed=False, num_blocks=0) for branch in info.branches]
        predictor = record.decision.predictor
        outputs = [self._histories.output(branch, info.sigma, predictor) for branch in info.branches]
        kept = torch.cat(outputs) if info.parts else outputs[0]
        output = v_from_velocity(kept, run.latents, info.mix) if info.mix is not None else kept
        if output is kept and self._histories.is_last_output(info.branch, kept):
            output = kept.clone()  # the pipeline may write to it
        return output.to(self._dtype)

    def _from_conditional(self, record: StepRecord, latents: torch.Tensor, info: CallInfo) -> torch.Tensor:
        """The unconditional output of a `cfg` step, which is not computed."""
        record.calls.append(Call(branch=UNCONDITIONAL, computed=False, num_blocks=0))
        difference = self._histories.difference.predict(record.info.sigma, record.decision.predictor)
        kept = record.outputs[CONDITIONAL] + difference
        return v_from_velocity(kept, latents, info.mix).to(self._dtype)

    def _joined_from_conditional(
        self, record: StepRecord, conditional: torch.Tensor, info: CallInfo, run: Run
    ) -> torch.Tensor:
        """The output of a batched call of a `cfg` step, from that of its conditional part."""
        latents = parts_of(run.latents, info) if info.mix is not None else dict.fromkeys(info.parts, run.latents)
        alone = replace(info, branch=CONDITIONAL, parts=())
        self._take_in(record, conditional, latents[CONDITIONAL], (), alone)
        outputs = {CONDITIONAL: conditional}
        outputs[UNCONDITIONAL] = self._from_conditional(record, latents[UNCONDITIONAL], info)
        return torch.cat([outputs[branch] for branch in info.parts])

    def _computed(self, record: StepRecord, info: CallInfo, run: Run) -> torch.Tensor:
        """The output of a call that is computed, if not all of its blocks."""
        decision, residuals = record.decision, tuple[torch.Tensor, ...]()
        if decision.granularity is Granularity.BLOCK:
            residuals = self._histories.residuals(info.branch, info.sigma, decision.predictor)
        if residuals:
            output = run.without_span(residuals)
            record.totals[info.branch] = total(output)
            num_blocks = self.span.num_blocks - self.span.num_skipped
            record.calls += [Call(branch=branch, computed=True, num_blocks=num_blocks) for branch in info.branches]
            return output
        is_computed_step = decision.granularity is Granularity.COMPUTE
        records = is_computed_step and self.keeps(Granularity.BLOCK) and not record.info.is_last
        if records and not self._needs.measures:  # a measurement compares with what was kept
            self._histories.make_room(info.branch)
        output, computed = run.full(records=records)
        latents = run.latents if info.mix is not None else output
        self._take_in(record, output, latents, computed, info)
        return output

    def _take_in(
        self,
        record: StepRecord,
        output: torch.Tensor,
        latents: torch.Tensor,
        residuals: Streams,
        info: CallInfo,
    ) -> None:
        """Sets aside what a call computed in full."""
        self._dtype = output.dtype
        kept = velocity_from_v(output, latents, info.mix)
        record.calls += [Call(branch=b, computed=True, num_blocks=self.span.num_blocks) for b in info.branches]
        record.totals[info.branch] = total(kept)
        record.residuals |= {(info.branch, index): residual for index, residual in enumerate(residuals)}
        if self._keeps_outputs or self.keeps(Granularity.CFG):
            record.outputs |= parts_of(kept.detach().clone() if kept is output else kept.detach(), info)

    # --------------------------------------------------------------------------------------------------- solver

    def solve(
        self, solver: Solver, output: torch.Tensor, timestep: Any, sample: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        record = self._record
        if self._corrector is None or record is None:
            return output, sample
        record.guidance = self._guidance()
        decision, values = record.decision, dict[str, torch.Tensor]()
        if decision.granularity is Granularity.COMPUTE:
            values = record.outputs
        elif decision.granularity is Granularity.STEP and all(not call.computed for call in record.calls):
            sigma, branches = record.info.sigma, dict.fromkeys(call.branch for call in record.calls)
            values = {b: self._histories.output(b, sigma, decision.predictor) for b in branches}
        return self._corrector.before(record, values, solver, output, timestep, sample)

    def solved(self, sample: torch.Tensor) -> None:
        if self._corrector is not None and self._record is not None:
            self._corrector.after(sample)

    # ---------------------------------------------------------------------------------------------------- steps

    @property
    def is_over(self) -> bool:
        """True where the last step has had as many calls as the one before it, and the solver, where it is watched, its
        step: most likely nothing follows."""
        record = self._record
        if record is None or not record.info.is_last or len(record.calls) < self._num_calls:
            return False
        return self._corrector is None or not self._corrector.is_watching(record.info.step)

    def _is_alike(self, record: StepRecord, info: CallInfo) -> bool:
        """True where shapes, text and number of steps are those of the trajectory under way."""
        mine = (info.signature, info.parts)
        is_same = all(self._signatures.get(branch, mine) == mine for branch in info.branches)
        return is_same and info.num_steps == record.info.num_steps

    def _is_another_run(self, record: StepRecord | None, info: CallInfo) -> bool:
        """True where a call in mid-loop is like the trajectory under way and does not follow on it: of another run,
        whose next call may well look as if it did."""
        return record is not None and self._is_alike(record, info) and info.step != record.info.step + 1

    def _is_new_trajectory(self, record: StepRecord, info: CallInfo) -> bool:
        last = record.info
        if not self._is_alike(record, info):
            return True
        if info.step == last.step:
            return record.has(info.branches)
        return info.step != last.step + 1 or info.sigma > last.sigma

    def _begin(self, info: CallInfo, device: torch.device) -> StepRecord:
        ages, lengths = self._histories.usable(info.step)
        step = Step(
            index=info.step,
            num_steps=info.num_steps,
            sigma=info.sigma,
            offset=info.offset,
            num_computed_before=self._num_computed_before,
            ages=ages,
            history_lengths=lengths,
            num_cached=self._num_cached,
            sigmas=info.sigmas,
            guidance=self._guidance(),
            costs=self._costs,
            seconds=self.times.medians(),
            corrects=self._corrector is not None and self._corrector.is_at_work(info.step),
        )
        decision = self._decided(step, info)
        if decision.granularity is Granularity.COMPUTE and info.is_last:
            self._histories.forget_residuals()  # token-sized, and of no more use; some pipelines never reset
        self.times.begin(decision.granularity, device)
        self._record = StepRecord(info=info, decision=decision)
        return self._record

    def _decided(self, step: Step, info: CallInfo) -> Decision:
        """What the policy wants and the histories allow; of several ranks, on the first."""
        agreement, predictors = self.agreement, self._needs.predictors
        if agreement is not None and not agreement.leads:
            return decoded(agreement.decide((0, 0.0)), predictors)
        decision = self.policy.decide(step, self._state)
        if self._takes_turns:
            decision = Decision(granularity=Granularity.COMPUTE, reason="runs in turn")
        if decision.granularity is not Granularity.COMPUTE and decision.granularity not in step.ages:
            decision = Decision(granularity=Granularity.COMPUTE, reason="no history")
        if decision.granularity is Granularity.STEP and not self._histories.num_outputs(info.branches):
            # guidance would multiply the mismatch of one branch computed and the other predicted
            decision = Decision(granularity=Granularity.COMPUTE, reason="no history")
        if agreement is not None:
            agreement.decide(encoded(decision, predictors))
        return decision

    def _finish(self, *, measures: bool = True, agrees: bool = False) -> None:
        """Measures the step under way, refreshes the histories with what was computed, and traces it; where it `agrees`
        the other ranks do so now too, and are asked."""
        record, self._record = self._record, None
        if record is None:
            return
        self._num_calls = len(record.calls)
        is_computed = record.decision.granularity is Granularity.COMPUTE
        self._num_cached = 0 if is_computed else self._num_cached + 1
        if Granularity.CFG in self._histories.kept and {CONDITIONAL, UNCONDITIONAL} <= set(record.outputs):
            record.difference = record.outputs[UNCONDITIONAL] - record.outputs[CONDITIONAL]
        is_measured = self._needs.measures and is_computed and measures
        names: list[SignalName] = list(record.totals)
        scalars = list(record.totals.values())
        if is_measured:
            if record.guidance is None:
                record.guidance = self._guidance()
            if self._needs.trials:
                signals = products(record, self._histories, self._needs.predictors)
            else:
                predictor, shards = self._needs.predictors[-1], self.agreement is not None
                signals = distances(record, self._histories, predictor, of_shards=shards)
            names += signals
            scalars += signals.values()
        if record.misfit is not None:
            names.append("misfit")
            scalars.append(record.misfit)
        values = dict(zip(names, to_floats(scalars), strict=True))
        if self.agreement is not None and agrees and values:
            values = self.agreement.total(values, {name for name in names if is_of_shards(name)})
        if record.misfit is not None and self._corrector is not None:
            self._corrector.learn(values["misfit"])
        num_non_finite = sum(not math.isfinite(values[call]) for call in record.totals)
        measurement = None
        if is_measured and not num_non_finite:
            measurement = measurement_of(record, values, self._histories.kept)
            if self.agreement is None or self.agreement.leads:
                self.policy.observe(measurement, self._state)
        self.peak_bytes = max(self.peak_bytes, num_bytes([*self._held(), *record.tensors()]))
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
        self._trace.append(
            TraceEntry(
                generation=self._generation,
                step=record.info.offset + record.info.step,
                num_steps=record.info.offset + record.info.num_steps,
                sigma=record.info.sigma if record.info.scheduler_sigma is None else record.info.scheduler_sigma,
                granularity=record.decision.granularity,
                predictor=record.decision.predictor,
                reason=record.decision.reason,
                calls=tuple(record.calls),
                deviation=measurement.deviation if measurement else None,
                distances=dict(measurement.distances) if measurement else {},
                non_finite=num_non_finite,
                held_bytes=self.held_bytes,
                num_corrected=record.num_corrected,
                correction_degree=self._needs.correction_degree if record.num_corrected else None,
            )
        )

    # ---------------------------------------------------------------------------------------------------- state

    @property
    def held_bytes(self) -> int:
        """Bytes of all histories now, the corrector's too."""
        return num_bytes(self._held())

    def _held(self) -> list[torch.Tensor]:
        own = [] if self._corrector is None else self._corrector.tensors()
        return [*self._histories.tensors(), *own]

    def end(self, reason: End) -> None:
        """Ends the trajectory: the last step is traced, and measured unless it failed; every history and the policy's
        state are dropped."""
        self._finish(measures=reason is not End.FAILED)
        self._histories.clear()
        if self._corrector is not None:
            self._corrector.clear()
        self.times.end()
        self._signatures.clear()
        self._num_calls = self._num_cached = 0
        self._state = self.policy.init()
        self._trace.trace.keep_generations(self._max_traced_generations)


def num_bytes(tensors: Iterable[torch.Tensor]) -> int:
    """Bytes of these tensors; one that is named twice counts once."""
    return sum({id(tensor): tensor.nbytes for tensor in tensors}.values())
