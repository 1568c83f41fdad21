"""What the cache would have predicted of a step that was computed: tensors in, a `Measurement` out.

The tensors become device scalars first: `distances`, or `products` for a policy that wants trials. The engine brings
all scalars of a step to the host at once, and `measurement_of` makes of them what the policy is told.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

import torch

from mixcache.core.calls import CONDITIONAL, UNCONDITIONAL
from mixcache.core.histories import Histories, StepRecord, StreamKey
from mixcache.core.signals import inner, relative_l1, total
from mixcache.decision import Choice, Granularity, Measurement, Trial
from mixcache.predictors import REUSE, Predictor


@dataclass(frozen=True, slots=True)
class Part:
    """A sum over a residual, which a rank has a shard of: of the "change" of its elements, or of their "size"."""

    key: StreamKey
    of: str


SignalName = Granularity | str | tuple[Granularity, Predictor, str] | Part
"""What a scalar is of: a granularity's distance, a call or what else is named, an inner product of a granularity's
trial with a predictor, or a part of a distance."""
Signals = dict[SignalName, torch.Tensor]


def guided(outputs: Mapping[str, torch.Tensor], scale: float | None) -> torch.Tensor:
    """v = v_u + g (v_c - v_u) where both branches and a scale are known, else the branches side by side."""
    if scale is None or set(outputs) != {CONDITIONAL, UNCONDITIONAL}:
        return torch.cat([outputs[branch].float().flatten() for branch in sorted(outputs)])
    return torch.lerp(outputs[UNCONDITIONAL].float(), outputs[CONDITIONAL].float(), scale)


def distances(record: StepRecord, histories: Histories, predictor: Predictor, *, of_shards: bool = False) -> Signals:
    """Device scalars: the deviation of a `step` by the predictor from this computed one, and the distance of each
    granularity; of residuals that are shards what it takes to sum them over the ranks first."""
    signals: Signals = {}
    outputs, sigma = record.outputs, record.info.sigma
    if histories.num_outputs(outputs):
        true = guided(outputs, record.guidance)
        by: dict[SignalName, Predictor] = {Granularity.STEP: REUSE}
        if predictor != REUSE:
            by["deviation"] = predictor
        for name, of_name in by.items():
            predicted = {branch: histories.output(branch, sigma, of_name) for branch in outputs}
            signals[name] = relative_l1(guided(predicted, record.guidance), true)
    last = histories.difference.last
    if record.difference is not None and last is not None:
        signals[Granularity.CFG] = relative_l1(last, record.difference)
    if histories.num_residuals(record.residuals) and of_shards:
        for key, residual in record.residuals.items():
            change = residual.float() - histories.residual(key, sigma, REUSE).float()
            signals |= {Part(key, "change"): total(change.abs()), Part(key, "size"): total(residual.abs())}
    elif histories.num_residuals(record.residuals):
        of_streams = [relative_l1(histories.residual(key, sigma, REUSE), r) for key, r in record.residuals.items()]
        signals[Granularity.BLOCK] = torch.stack(of_streams).mean()
    return signals


def products(record: StepRecord, histories: Histories, predictors: Sequence[Predictor]) -> Signals:
    """Device scalars: the inner products of the trials of each granularity and predictor that the histories allow.

    For `block` it is the guided residual that is held against what was predicted of it: what is behind the span is
    not run again.
    """
    signals: Signals = {}
    outputs, sigma, guidance = record.outputs, record.info.sigma, record.guidance
    if outputs:
        true = guided(outputs, guidance)
        signals["guided"] = inner(true, true)
        if Granularity.STEP in histories.kept:

            def predicted_step(predictor: Predictor) -> torch.Tensor:
                return guided({branch: histories.output(branch, sigma, predictor) for branch in outputs}, guidance)

            allowed = _fitting(predictors, histories.num_outputs(outputs))
            signals |= _products_of(Granularity.STEP, allowed, predicted_step, true)
        if record.difference is not None and guidance is not None:
            history = histories.difference

            def predicted_difference(predictor: Predictor) -> torch.Tensor:
                return history.predict(sigma, predictor)

            allowed = _fitting(predictors, len(history))
            signals |= _products_of(Granularity.CFG, allowed, predicted_difference, record.difference)
    if allowed := _fitting(predictors, histories.num_residuals(record.residuals)):
        of_latents = {call: residual for (call, stream), residual in record.residuals.items() if stream == 0}
        true_residual = guided(of_latents, guidance)

        def predicted_residual(predictor: Predictor) -> torch.Tensor:
            return guided({call: histories.residual((call, 0), sigma, predictor) for call in of_latents}, guidance)

        signals["residual"] = inner(true_residual, true_residual)
        signals |= _products_of(Granularity.BLOCK, allowed, predicted_residual, true_residual)
    return signals


def is_of_shards(name: SignalName) -> bool:
    """True for what is measured on residuals: where tokens are spread over ranks, outputs are whole on each of them,
    and residuals are not."""
    return isinstance(name, Part) or name == "residual" or (isinstance(name, tuple) and name[0] is Granularity.BLOCK)


def _fitting(predictors: Sequence[Predictor], num_values: int) -> list[Predictor]:
    """Those that so long a history is enough for."""
    return [predictor for predictor in predictors if predictor.num_values <= num_values]


def _products_of(
    granularity: Granularity,
    predictors: Sequence[Predictor],
    predicted: Callable[[Predictor], torch.Tensor],
    true: torch.Tensor,
) -> Signals:
    """Inner products of a `Trial` of each predictor, not yet over that of the guided output with itself."""
    if not predictors:
        return {}
    last = predicted(REUSE).float()
    change = true.float() - last
    missed = inner(change, change)
    signals: Signals = {}
    for predictor in predictors:
        signals[granularity, predictor, "missed"] = missed
        if predictor != REUSE:
            step = predicted(predictor).float() - last
            signals[granularity, predictor, "overlap"] = inner(change, step)
            signals[granularity, predictor, "reach"] = inner(step, step)
    return signals


def measurement_of(
    record: StepRecord, values: Mapping[SignalName, float], kept: Collection[Granularity]
) -> Measurement:
    """What the policy is told of the step; `values` are the signals."""
    keys = [name.key for name in values if isinstance(name, Part) and name.of == "size"]
    of_streams = [values[Part(key, "change")] / max(values[Part(key, "size")], 1e-12) for key in keys]
    if of_streams:
        values = {**values, Granularity.BLOCK: sum(of_streams) / len(of_streams)}
    trials = _trials(record, values)
    of_step = [trial for (granularity, _), trial in trials.items() if granularity is Granularity.STEP]
    return Measurement(
        step=record.info.step,
        sigma=record.info.sigma,
        deviation=of_step[-1].error() if of_step else values.get("deviation", values.get(Granularity.STEP)),
        distances={g: values[g] for g in Granularity if g in values and g in kept},
        trials=trials,
    )


def _trials(record: StepRecord, values: Mapping[SignalName, float]) -> dict[Choice, Trial]:
    """The inner products as shares of the guided output's with itself, which a difference changes by (1 - g)."""
    fields: dict[Choice, dict[str, float]] = {}
    for name, value in values.items():
        if isinstance(name, tuple):
            granularity, predictor, product = name
            if granularity is Granularity.CFG and record.guidance is not None:
                value *= (record.guidance - 1) ** 2
            whole = values["residual" if granularity is Granularity.BLOCK else "guided"]
            fields.setdefault((granularity, predictor), {})[product] = value / max(whole, 1e-24)
    return {choice: Trial(**found) for choice, found in fields.items()}
