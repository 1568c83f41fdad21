"""hindsight: the cheapest granularity whose predicted error still fits an error budget, learnt from the run itself.

Source: ours. At every computed step each granularity and predictor is tried on the histories as they stood and
compared with the truth. The remainder of a polynomial through values at sigma_1 .. sigma_n grows with the product of
the distances to them, so an error once seen tells the next one:

    e(sigma) = rate * product |sigma - sigma_k|,    rate = seen error / product |sigma_seen - sigma_k|

A cached step moves the latents by its error times its way in sigma. That counts for at least an even share of the
whole way: early steps go a short way, but what they settle is carried on. Where it is not corrected afterwards, it
counts as often as there are steps since the last computed one, for a run of cached steps strays further than the error
of each of them tells; where it is, it counts once. A cycle of one computed step and the cached ones after it may move
the latents by `error`. docs/experiments says what was tried.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from mixcache.decision import Choice, Decision, Granularity, Measurement, Step
from mixcache.policies.base import Needs, Policy, check_count, granularities_of, is_number, is_rising
from mixcache.predictors import REUSE, Predictor, predictors_of

COST = 0.25
"""What a cycle may do by default, times the number of steps: fewer steps are each a longer way."""
WARM_UP = 0.1
"""Share of the denoiser's steps after which caching begins, even where the errors still rise."""


@dataclass
class Lessons:
    """What a trajectory has taught so far."""

    sigmas: list[float] = field(default_factory=list)
    """Of the computed steps, the newest last."""
    rates: dict[Choice, list[float]] = field(default_factory=dict)
    """Seen errors over the products of their distances, the newest last."""
    spent: float = 0.0
    """Predicted cost of the cached steps of this cycle."""
    num_computed: int = 0
    """Steps."""
    is_warm: bool = False
    """True from the first error on that had not risen much; caching may begin before (`WARM_UP`)."""
    last_error: float | None = None
    """The largest of reuse at the last computed step, during the warm-up."""


@dataclass(frozen=True, kw_only=True)
class Hindsight(Policy):
    """Learns from every computed step what caching would have done there."""

    name: ClassVar[str] = "hindsight"
    # the budget bounds age, run and both ends
    default_bounds: ClassVar[dict[str, int]] = {
        "num_warmup_steps": 2,
        "num_cooldown_steps": 1,
        "max_age": 8,
        "max_cached_run": 8,
    }

    error: float | None = None
    """Cost allowed between two computed steps: relative error of the guided output times the way in sigma, and, where
    cached steps are not corrected, times the steps since the last computed one. More is faster; None is COST over the
    number of steps."""
    granularities: str | Sequence[str] = ("step",)
    """Granularities that may be chosen. "cfg" and "block" may be added; "block" keeps token-sized tensors."""
    predictors: str | Predictor | Sequence[str | Predictor] = ("reuse", "line")
    """Those tried, beside reuse; at each step the one of the least cost is taken."""
    memory: int = 1
    """Computed steps whose errors are remembered; the worst of them counts."""
    corrector: bool = True
    """Takes cached steps again with what the next computed one shows, where the scheduler allows it."""

    def __post_init__(self) -> None:
        predictors_of(self.predictors)
        if self.error is not None and (not is_number(self.error) or self.error <= 0):
            raise ValueError(f"error={self.error!r} must be a finite number over 0, such as 0.002; more is faster")
        object.__setattr__(self, "granularities", tuple(map(str, granularities_of(self.granularities))))
        check_count("memory", self.memory, 1)

    @property
    def needs(self) -> Needs:
        return Needs(
            granularities=granularities_of(self.granularities),
            predictors=predictors_of(self.predictors, REUSE),
            trials=True,
            correction=self.corrector,
        )

    def init(self) -> Lessons:
        return Lessons()

    def decide(self, step: Step, state: Lessons) -> Decision:
        if not state.is_warm and state.num_computed < WARM_UP * step.num_steps:
            return Decision(granularity=Granularity.COMPUTE, reason="too little seen, or the error rises")
        if step.num_cached == 0:
            state.spent = 0.0
        step_size = max(step.distance, 1 / step.num_steps)
        error = COST / step.num_steps if self.error is None else self.error
        best: dict[Granularity, tuple[float, Predictor]] = {}
        for (granularity, predictor), rates in state.rates.items():
            if granularity not in step.ages or predictor.num_values > step.history_lengths[granularity]:
                continue
            is_corrected = step.corrects and granularity is Granularity.STEP
            age = 1 if is_corrected else step.ages[granularity]
            cost = age * step_size * max(rates) * _node_product(step.sigma, state.sigmas, predictor)
            if granularity not in best or cost < best[granularity][0]:
                best[granularity] = (cost, predictor)
        fitting = [g for g, (cost, _) in best.items() if state.spent + cost <= error]
        if not fitting:
            if not best:
                return Decision(granularity=Granularity.COMPUTE, reason="nothing seen yet")
            least = min(cost for cost, _ in best.values())
            return Decision(
                granularity=Granularity.COMPUTE, reason=f"cost {state.spent:.2g} + {least:.2g} is over the budget"
            )
        chosen = min(fitting, key=lambda g: (step.costs.get(g, 0.0), best[g][0]))
        cost, predictor = best[chosen]
        state.spent += cost
        return Decision(granularity=chosen, predictor=predictor, reason=f"cost {cost:.2g}, {state.spent:.2g} spent")

    def observe(self, measurement: Measurement, state: Lessons) -> None:
        for choice, trial in measurement.trials.items():
            error = trial.error()
            nodes = _node_product(measurement.sigma, state.sigmas, choice[1])
            if math.isfinite(error) and nodes > 0:
                seen = state.rates.setdefault(choice, [])
                seen.append(error / nodes)
                del seen[: -self.memory]
        errors = [trial.error() for (_, predictor), trial in measurement.trials.items() if predictor == REUSE]
        if errors and all(map(math.isfinite, errors)) and not state.is_warm:
            state.is_warm = not is_rising(max(errors), state.last_error)
            state.last_error = max(errors)
        state.num_computed += 1
        state.sigmas.append(measurement.sigma)
        del state.sigmas[: -self.needs.num_values]


def _node_product(sigma: float, computed: Sequence[float], predictor: Predictor) -> float:
    """Product of the distances from `sigma` to those computed that the predictor stands on."""
    return math.prod(abs(sigma - node) for node in computed[-predictor.num_values :])
