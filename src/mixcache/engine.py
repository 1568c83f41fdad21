"""One denoising step: decide, compute or predict, measure, record. Knows calls and blocks, not diffusers.

    first call of a step -> finish the step before (measure, refresh histories, trace) -> policy.decide
    every call           -> the step's one granularity says whether the transformer, or its span of blocks, runs

A step is finished when the next one begins, or at `reset`, since nothing says which call of a step is its last.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from mixcache.calls import CONDITIONAL, UNCONDITIONAL, CallInfo, Span, SpanMode
from mixcache.decision import Choice, Decision, Granularity, Measurement, Step, Trial
from mixcache.history import History
from mixcache.policies.base import Policy
from mixcache.signals import inner, relative_l1, to_floats, total
from mixcache.trace import Call, Trace, TraceEntry

logger = logging.getLogger("mixcache")
Compute = Callable[[], torch.Tensor]
Streams = tuple[torch.Tensor, ...]
"""What runs through the blocks: the hidden state, and in some models that of the text or of the sound beside it."""


StreamKey = tuple[str, int]
"""Name of a call within its step, and index of a stream."""
SignalName = Granularity | str | tuple[Granularity, int, str]
"""What a measured scalar is of: a granularity's distance, a call or what else is named, or an inner product of a
granularity's trial with an order."""


@dataclass(slots=True)
class StepRecord:
    """The step under way."""

    info: CallInfo
    decision: Decision
    calls: list[Call] = field(default_factory=list)
    outputs: dict[str, torch.Tensor] = field(default_factory=dict)
    """Outputs computed in full, by branch."""
    difference: torch.Tensor | None = None
    """Unconditional less conditional output, where both were computed and a history of it is kept."""
    guidance: float | None = None
    """Scale that the pipeline guided with, for a step that is measured: some set it between the calls and their use."""
    residuals: dict[StreamKey, torch.Tensor] = field(default_factory=dict)
    """Span residuals computed, by call and stream."""
    totals: dict[str, torch.Tensor] = field(default_factory=dict)
    """Sum of every output that the transformer gave, by call, still on the device: to see whether it is finite."""

    @property
    def latents_residuals(self) -> dict[str, torch.Tensor]:
        """Span residuals of the latents' stream, by call."""
        return {call: value for (call, stream), value in self.residuals.items() if stream == 0}

    @property
    def num_bytes(self) -> int:
        """Bytes of what is set aside until the step is finished."""
        values = [*self.outputs.values(), *self.residuals.values()]
        return sum(value.nbytes for value in (values if self.difference is None else [*values, self.difference]))

    def has(self, branches: tuple[str, ...]) -> bool:
        return any(call.branch in branches for call in self.calls)


def parts_of(output: torch.Tensor, info: CallInfo) -> dict[str, torch.Tensor]:
    """The outputs of the branches that a call is of, which a joined one has stacked along dimension 0."""
    parts = output.chunk(len(info.parts)) if info.parts else (output,)
    return dict(zip(info.branches, parts, strict=True))


def _guided(outputs: dict[str, torch.Tensor], scale: float | None) -> torch.Tensor:
    """v = v_u + g (v_c - v_u) where both branches and a scale are known, else the branches side by side."""
    if scale is None or set(outputs) != {CONDITIONAL, UNCONDITIONAL}:
        return torch.cat([outputs[branch].float().flatten() for branch in sorted(outputs)])
    return torch.lerp(outputs[UNCONDITIONAL].float(), outputs[CONDITIONAL].float(), scale)


def _products_of(
    granularity: Granularity, num_orders: int, predicted: Callable[[int], torch.Tensor], true: torch.Tensor
) -> dict[SignalName, torch.Tensor]:
    """Inner products of a `Trial` of each order, not yet over that of the guided output with itself."""
    if not num_orders:
        return {}
    last = predicted(0).float()
    change = true.float() - last
    missed = inner(change, change)
    signals: dict[SignalName, torch.Tensor] = {(granularity, 0, "missed"): missed}
    for order in range(1, num_orders):
        step = predicted(order).float() - last
        signals[granularity, order, "missed"] = missed
        signals[granularity, order, "overlap"] = inner(change, step)
        signals[granularity, order, "reach"] = inner(step, step)
    return signals


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
        self._length = policy.max_order + 1
        self._costs = {
            Granularity.STEP: 0.0,
            Granularity.CFG: 0.5,
            Granularity.BLOCK: 1 - span.num_skipped / max(1, span.num_blocks),
        }
        self._kept = {granularity for granularity in policy.granularities if granularity.value in granularities}
        self._keeps_outputs = Granularity.STEP in self._kept or (policy.measures and not policy.looks_back)
        self._outputs: dict[str, History] = {}
        self._residuals: dict[StreamKey, History] = {}
        self._signatures: dict[str, tuple[Any, ...]] = {}
        self._difference = History(self._length)
        self._state = self._seen_state = policy.init()
        self._record: StepRecord | None = None
        self._call = ""
        self._span_input: Streams = ()
        self._generation = self._told_non_finite = -1
        self.span_mode = SpanMode.RUN
        self.peak_bytes = 0
        """Most that histories and the values set aside for them ever took."""

    @property
    def policy_state(self) -> Any:
        """What the policy itself remembers of the trajectory under way, or of the last one."""
        return getattr(self._seen_state, "inner", self._seen_state)

    def keeps(self, granularity: Granularity) -> bool:
        """True where policy and model both allow it, so that there are histories for it."""
        return granularity in self._kept

    def leave_out(self, granularity: Granularity) -> None:
        """From now on computes what the policy would cache by this granularity."""
        self._kept.discard(granularity)

    # ---------------------------------------------------------------------------------------------------- calls

    def call(self, info: CallInfo, compute: Compute, compute_conditional: Compute | None = None) -> torch.Tensor:
        """The output of one call: `compute()` runs the transformer, and is not called where the cache answers.

        `compute_conditional()` runs the conditional part of a joined call alone, where the host can. Whatever they
        raise drops every history and goes on to the caller.
        """
        record = self._record
        if record is None or self._is_new_trajectory(record, info):
            self.reset()
            self._generation += 1
            record = self._begin(info)
        elif record.info.step != info.step:
            self._finish()
            record = self._begin(info)
        self._signatures |= dict.fromkeys(info.branches, (info.signature, info.parts))
        granularity = record.decision.granularity
        if granularity is Granularity.STEP and all(len(self._outputs.get(b, ())) for b in info.branches):
            order, trust = record.decision.order, record.decision.trust
            return self._answer(record, info, {b: self._predict(b, info.sigma, order, trust) for b in info.branches})
        if granularity is Granularity.CFG and UNCONDITIONAL in info.branches:
            if info.branches == (UNCONDITIONAL,) and CONDITIONAL in record.outputs:
                return self._answer(record, info, {UNCONDITIONAL: self._from_conditional(record)})
            if info.parts and CONDITIONAL in info.parts and compute_conditional is not None:
                conditional = replace(info, branch=CONDITIONAL, parts=())
                outputs = {CONDITIONAL: self._computed_output(record, conditional, compute_conditional)}
                outputs[UNCONDITIONAL] = self._from_conditional(record)
                record.calls.append(Call(branch=UNCONDITIONAL, computed=False, num_blocks=0))
                return torch.cat([outputs[branch] for branch in info.parts])
        return self._computed_output(record, info, compute)

    def _answer(self, record: StepRecord, info: CallInfo, outputs: dict[str, torch.Tensor]) -> torch.Tensor:
        """The predicted output of a call that is not computed."""
        record.calls += [Call(branch=branch, computed=False, num_blocks=0) for branch in info.branches]
        if info.parts:
            return torch.cat([outputs[branch] for branch in info.branches])
        output, history = outputs[info.branch], self._outputs.get(info.branch)
        is_kept = history is not None and output is history.last
        return output.clone() if is_kept else output  # the pipeline may write to it

    def _from_conditional(self, record: StepRecord) -> torch.Tensor:
        """The unconditional output of a `cfg` step."""
        decision = record.decision
        difference = self._difference.predict(record.info.sigma, decision.order, decision.trust)
        return record.outputs[CONDITIONAL] + difference

    def _computed_output(self, record: StepRecord, info: CallInfo, compute: Compute) -> torch.Tensor:
        granularity = record.decision.granularity
        self._call = info.branch
        if granularity is Granularity.BLOCK and len(self._residuals.get((info.branch, 0), ())):
            self.span_mode = SpanMode.SKIP
        elif granularity is Granularity.COMPUTE and Granularity.BLOCK in self._kept and not record.info.is_last:
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
        if is_full and (self._keeps_outputs or Granularity.CFG in self._kept):
            record.outputs |= parts_of(output.detach().clone(), info)
        return output

    def _predict(self, branch: str, sigma: float, order: int, trust: float = 1.0) -> torch.Tensor:
        """The output that a branch's history predicts, not to be written to.

        After a `cfg` step cond is younger than uncond. Guidance would multiply the mismatch of the two, so uncond is
        then predicted as cond plus the predicted difference, as it was in the `cfg` step.
        """
        history, conditional = self._outputs[branch], self._outputs.get(CONDITIONAL)
        is_behind = branch == UNCONDITIONAL and conditional is not None and conditional.is_younger_than(history)
        if is_behind and conditional is not None and len(self._difference):
            return conditional.predict(sigma, order, trust) + self._difference.predict(sigma, order, trust)
        return history.predict(sigma, order, trust)

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
                record.residuals[self._call, index] = (end - begin).detach()
        if self.span_mode is SpanMode.SKIP:
            sigma, order, trust = record.info.sigma, record.decision.order, record.decision.trust
            histories = [self._residuals[self._call, index] for index in range(len(before))]
            predicted = (history.predict(sigma, order, trust) for history in histories)
            streams = tuple(begin + residual for begin, residual in zip(before, predicted, strict=True))
        self._span_input = ()
        return streams

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
        ages, lengths = self._usable(info.step)
        step = Step(
            index=info.step,
            num_steps=info.num_steps,
            sigma=info.sigma,
            offset=info.offset,
            ages=ages,
            history_lengths=lengths,
            sigmas=info.sigmas,
            guidance=self._guidance() if self.policy.looks_back else None,
            costs=self._costs,
        )
        self._seen_state = self._state
        decision = self.policy.decide(step, self._state)
        if decision.granularity is not Granularity.COMPUTE and decision.granularity not in ages:
            decision = Decision(granularity=Granularity.COMPUTE, reason="no history")
        if decision.granularity is Granularity.STEP and not all(len(self._outputs.get(b, ())) for b in info.branches):
            # guidance would multiply the mismatch of one branch computed and the other predicted
            decision = Decision(granularity=Granularity.COMPUTE, reason="no history")
        if decision.granularity is Granularity.COMPUTE and info.is_last:
            self._residuals.clear()  # token-sized, and of no more use; some pipelines never reset
        self._record = StepRecord(info=info, decision=decision)
        return self._record

    def _usable(self, step: int) -> tuple[dict[Granularity, int], dict[Granularity, int]]:
        """Ages and lengths of the histories behind each granularity; a granularity with an empty one is left out."""
        histories = {
            Granularity.STEP: list(self._outputs.values()),
            Granularity.CFG: [self._difference],
            Granularity.BLOCK: list(self._residuals.values()),
        }
        ages, lengths = {}, {}
        for granularity, behind in histories.items():
            if granularity in self._kept and behind and all(len(history) for history in behind):
                ages[granularity] = max(history.age(step) for history in behind)
                lengths[granularity] = min(len(history) for history in behind)
        return ages, lengths

    def _finish(self) -> None:
        """Measures the step under way, refreshes the histories with what was computed, and traces it."""
        record, self._record = self._record, None
        if record is None:
            return
        if Granularity.CFG in self._kept and {CONDITIONAL, UNCONDITIONAL} <= set(record.outputs):
            record.difference = record.outputs[UNCONDITIONAL] - record.outputs[CONDITIONAL]
        is_measured = self.policy.measures and record.decision.granularity is Granularity.COMPUTE
        names: list[SignalName] = list(record.totals)
        scalars = list(record.totals.values())
        if is_measured:
            record.guidance = self._guidance()
            signals = self._products(record) if self.policy.looks_back else self._distances(record)
            names += signals
            scalars += signals.values()
        values = dict(zip(names, to_floats(scalars), strict=True))
        num_non_finite = sum(not math.isfinite(values[call]) for call in record.totals)
        measurement = None
        if is_measured:
            measurement = self._measurement(record, {} if num_non_finite else values)
            self.policy.observe(measurement, self._state)
        self.peak_bytes = max(self.peak_bytes, self.held_bytes + record.num_bytes)
        if num_non_finite:
            # a branch refreshed alone would be younger than the other
            self._report_non_finite(record)
        else:
            self._refresh(record)
        self._append(record, measurement, num_non_finite)

    def _report_non_finite(self, record: StepRecord) -> None:
        """Says once in a trajectory that the model gave a NaN or an infinity."""
        if self._told_non_finite != self._generation:
            self._told_non_finite = self._generation
            logger.warning("the model's output has a NaN or an infinity at step %d; it is not cached", record.info.step)

    def _distances(self, record: StepRecord) -> dict[SignalName, torch.Tensor]:
        """Device scalars: the deviation of the cache from this computed step, and the distance of each granularity."""
        signals: dict[SignalName, torch.Tensor] = {}
        outputs, sigma = record.outputs, record.info.sigma
        if outputs and all(len(self._outputs.get(branch, ())) for branch in outputs):
            guided = _guided(outputs, record.guidance)
            orders: dict[SignalName, int] = {Granularity.STEP: 0}
            if self.policy.max_order:
                orders["deviation"] = self.policy.max_order
            for name, order in orders.items():
                predicted = {branch: self._predict(branch, sigma, order) for branch in outputs}
                signals[name] = relative_l1(_guided(predicted, record.guidance), guided)
        if record.difference is not None and self._difference.last is not None:
            signals[Granularity.CFG] = relative_l1(self._difference.last, record.difference)
        residuals = [
            (self._residuals[key].last, r) for key, r in record.residuals.items() if len(self._residuals.get(key, ()))
        ]
        if residuals and len(residuals) == len(record.residuals):
            signals[Granularity.BLOCK] = sum(relative_l1(last, r) for last, r in residuals) / len(residuals)
        return signals

    def _products(self, record: StepRecord) -> dict[SignalName, torch.Tensor]:
        """Device scalars: the inner products of the trials of each granularity and order that the histories allow.

        For `block` it is the guided residual that is held against what was predicted of it: what is behind the span is
        not run again.
        """
        signals: dict[SignalName, torch.Tensor] = {}
        outputs, sigma, guidance = record.outputs, record.info.sigma, record.guidance
        if outputs:
            guided = _guided(outputs, guidance)
            signals["guided"] = inner(guided, guided)
            if Granularity.STEP in self._kept:
                num_orders = min(len(self._outputs.get(branch, ())) for branch in outputs)

                def predicted_step(order: int) -> torch.Tensor:
                    return _guided({branch: self._predict(branch, sigma, order) for branch in outputs}, guidance)

                signals |= _products_of(Granularity.STEP, num_orders, predicted_step, guided)
            if record.difference is not None and guidance is not None:
                history = self._difference

                def predicted_difference(order: int) -> torch.Tensor:
                    return history.predict(sigma, order)

                signals |= _products_of(Granularity.CFG, len(history), predicted_difference, record.difference)
        if record.residuals and all(len(self._residuals.get(key, ())) for key in record.residuals):
            num_orders = min(len(self._residuals[key]) for key in record.residuals)
            residuals = record.latents_residuals
            residual = _guided(residuals, guidance)

            def predicted_residual(order: int) -> torch.Tensor:
                predicted = {call: self._residuals[call, 0].predict(sigma, order) for call in residuals}
                return _guided(predicted, guidance)

            signals["residual"] = inner(residual, residual)
            signals |= _products_of(Granularity.BLOCK, num_orders, predicted_residual, residual)
        return signals

    def _measurement(self, record: StepRecord, values: dict[SignalName, float]) -> Measurement:
        trials = self._trials(record, values)
        of_step = [trial for (granularity, _), trial in trials.items() if granularity is Granularity.STEP]
        return Measurement(
            step=record.info.step,
            sigma=record.info.sigma,
            deviation=of_step[-1].error() if of_step else values.get("deviation", values.get(Granularity.STEP)),
            distances={g: values[g] for g in Granularity if g in values and g in self._kept},
            trials=trials,
        )

    @staticmethod
    def _trials(record: StepRecord, values: dict[SignalName, float]) -> dict[Choice, Trial]:
        """The inner products as shares of the guided output's with itself, which a difference changes by (1 - g)."""
        fields: dict[Choice, dict[str, float]] = {}
        for name, value in values.items():
            if isinstance(name, tuple):
                granularity, order, product = name
                if granularity is Granularity.CFG and record.guidance is not None:
                    value *= (record.guidance - 1) ** 2
                whole = values["residual" if granularity is Granularity.BLOCK else "guided"]
                fields.setdefault((granularity, order), {})[product] = value / max(whole, 1e-24)
        return {choice: Trial(**products) for choice, products in fields.items()}

    def _refresh(self, record: StepRecord) -> None:
        """Pushes what was computed; all of it is finite. A branch that a full step did not call is forgotten."""
        step, sigma = record.info.step, record.info.sigma
        if record.decision.granularity is Granularity.COMPUTE:
            called = {call.branch for call in record.calls}
            self._outputs = {branch: history for branch, history in self._outputs.items() if branch in called}
            self._residuals = {key: h for key, h in self._residuals.items() if key in record.residuals}
            if UNCONDITIONAL not in called:
                self._difference.clear()
        if self._keeps_outputs:
            for branch, output in record.outputs.items():
                self._outputs.setdefault(branch, History(self._length)).push(step, sigma, output)
        for key, residual in record.residuals.items():
            self._residuals.setdefault(key, History(self._length)).push(step, sigma, residual)
        if record.difference is not None:
            self._difference.push(step, sigma, record.difference)

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
            )
        )

    # ---------------------------------------------------------------------------------------------------- state

    @property
    def held_bytes(self) -> int:
        """Bytes of all histories now."""
        histories = [*self._outputs.values(), *self._residuals.values(), self._difference]
        return sum(history.num_bytes for history in histories)

    def reset(self) -> None:
        """Ends the trajectory: the last step is measured and traced, every history and the policy's state are
        dropped."""
        self._finish()
        self._drop()

    def settle(self) -> None:
        """Ends the step under way, where another denoiser takes over; the histories stay."""
        self._finish()

    def abandon(self) -> None:
        """Ends the trajectory after an error: the step under way is not looked at."""
        self._record = None
        self._drop()

    def _drop(self) -> None:
        self._outputs.clear()
        self._residuals.clear()
        self._difference.clear()
        self._signatures.clear()
        self._state = self.policy.init()
        self.span_mode, self._span_input = SpanMode.RUN, ()
        self.trace.keep_generations(self._max_traced_generations)
