"""mixcache: when the measured deviation allows it, the granularity with the smallest distance times impact.

Source: arXiv 2508.12691, "Adaptive Hybrid Caching for Efficient Text-to-Video Diffusion Model Acceleration".
The paper's: three granularities, P = D * I with penalty 5 on the last choice, an interval between two thresholds of the
deviation. Ours, where the paper is silent: D as relative L1, the values of the thresholds and limits, the end of the
warm-up by measurement. docs/method.md says it in formulas.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from mixcache.decision import Decision, Granularity, Measurement, Step
from mixcache.policies.base import Needs, Policy, check_count, granularities_of, granularity_of, is_number, is_rising
from mixcache.predictors import Predictor, predictor_of


@dataclass
class Cycle:
    """What the computed steps have taught, and what was chosen last."""

    interval: int
    """N: cached steps that may follow a computed one."""
    is_warm: bool = False
    """True if the last deviation was under delta_2 and had not risen much, or once caching has begun."""
    last_deviation: float | None = None
    has_cached: bool = False
    last_choice: Granularity | None = None
    distances: dict[Granularity, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class MixCache(Policy):
    """The paper's policy."""

    name: ClassVar[str] = "mixcache"
    # its own measurement may make the warm-up longer
    default_bounds: ClassVar[dict[str, int]] = {"num_warmup_steps": 2, "num_cooldown_steps": 3}

    delta_1: float = 0.12
    """A deviation under it lengthens the interval by one step."""
    delta_2: float = 0.17
    """A deviation over it shortens the interval by one step, and keeps the warm-up going."""
    first_interval: int = 3
    """N at the end of the warm-up."""
    max_interval: int = 4
    """N never grows over it."""
    penalty: float = 5.0
    """Factor on the score of the granularity chosen last (paper: 5)."""
    granularities: str | Sequence[str] = ("step", "cfg", "block")
    """Granularities that may be chosen."""
    impacts: Mapping[str, float] | None = None
    """I of each granularity, 1 where it is not named. None stands for those of the model's profile, which `enable` puts
    in, and for 1 where there is no profile."""
    predictor: str | Predictor = "reuse"
    """A name of `mixcache.PREDICTORS`, or an object (paper: reuse)."""
    corrector: bool = False
    """Takes cached steps again with what the next computed one shows, where the scheduler allows it (paper: no)."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "granularities", tuple(map(str, granularities_of(self.granularities))))
        predictor_of(self.predictor)
        check_count("first_interval", self.first_interval, 0)
        check_count("max_interval", self.max_interval, 1)
        if not (is_number(self.delta_1) and is_number(self.delta_2) and 0 <= self.delta_1 <= self.delta_2):
            raise ValueError(
                f"delta_1={self.delta_1!r}, delta_2={self.delta_2!r}: thresholds must be finite with "
                "0 <= delta_1 <= delta_2"
            )
        if not is_number(self.penalty) or self.penalty < 1:
            raise ValueError(f"penalty={self.penalty!r} must be a finite number of at least 1 (1 switches it off)")
        if not isinstance(self.impacts, (Mapping, type(None))):
            raise ValueError(f"impacts={self.impacts!r} must map step, cfg or block to numbers")
        for name, impact in (self.impacts or {}).items():
            granularity_of(name)
            if not is_number(impact) or impact <= 0:
                raise ValueError(f"impacts[{name!r}]={impact!r} must be a finite number over 0")

    @property
    def needs(self) -> Needs:
        return Needs(
            granularities=granularities_of(self.granularities),
            predictors=(predictor_of(self.predictor),),
            distances=True,
            correction=self.corrector,
        )

    def init(self) -> Cycle:
        return Cycle(interval=min(self.first_interval, self.max_interval))

    def decide(self, step: Step, state: Cycle) -> Decision:
        if not state.is_warm:
            return Decision(granularity=Granularity.COMPUTE, reason="deviation not yet under delta_2, or rising")
        if step.num_cached >= state.interval:
            return Decision(granularity=Granularity.COMPUTE, reason=f"interval of {state.interval} used up")
        scores, impacts = {}, self.impacts or {}
        for granularity in granularities_of(self.granularities):
            if granularity in step.ages and granularity in state.distances:
                score = state.distances[granularity] * impacts.get(granularity.value, 1.0)
                scores[granularity] = score * (self.penalty if granularity is state.last_choice else 1.0)
        if not scores:
            return Decision(granularity=Granularity.COMPUTE, reason="no history")
        chosen = min(scores, key=scores.__getitem__)
        state.has_cached = True
        state.last_choice = chosen
        reason = "smallest of " + ", ".join(f"{g} {score:.3g}" for g, score in scores.items())
        predictor = predictor_of(self.predictor).for_length(step.history_lengths[chosen])
        return Decision(granularity=chosen, predictor=predictor, reason=reason)

    def observe(self, measurement: Measurement, state: Cycle) -> None:
        state.distances.update(measurement.distances)
        if measurement.deviation is None:
            return
        last, state.last_deviation = state.last_deviation, measurement.deviation
        if not state.has_cached:
            state.is_warm = measurement.deviation < self.delta_2 and not is_rising(measurement.deviation, last)
        elif measurement.deviation > self.delta_2:
            state.interval = max(0, state.interval - 1)
        elif measurement.deviation < self.delta_1:
            state.interval = min(self.max_interval, state.interval + 1)
