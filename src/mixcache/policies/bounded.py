"""bounded: a policy inside limits: warm-up, cool-down, age and run; it can only turn a choice into `compute`.

Source: ours; the paper names the boundary problem. docs/method.md, interference and boundaries, rules 3 and 4.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

from mixcache.decision import Decision, Granularity, Measurement, Step
from mixcache.policies.always_compute import AlwaysCompute
from mixcache.policies.base import Needs, Policy, check_count


@dataclass(frozen=True, kw_only=True)
class Bounded(Policy):
    """Wraps `policy`; its `decide` is asked only between the boundaries. The state is that of `policy`."""

    name: ClassVar[str] = "bounded"

    policy: Policy = field(default_factory=AlwaysCompute)
    num_warmup_steps: int = 4
    """Steps computed at the start, whatever is measured."""
    num_cooldown_steps: int = 1
    """Steps computed at the end."""
    max_age: int = 6
    """A quantity last computed more than this many steps ago is not used."""
    max_cached_run: int = 6
    """Cached steps in a row."""

    def __post_init__(self) -> None:
        if not isinstance(self.policy, Policy):
            raise TypeError(f"policy={self.policy!r} is no policy object, such as EveryNth(period=3)")
        if isinstance(self.policy, Bounded):
            raise TypeError(
                "policy= is Bounded already; change its own bounds: dataclasses.replace(bounded, max_age=2)"
            )
        check_count("num_warmup_steps", self.num_warmup_steps, 1)
        check_count("num_cooldown_steps", self.num_cooldown_steps, 0)
        check_count("max_age", self.max_age, 1)
        check_count("max_cached_run", self.max_cached_run, 1)

    @property
    def needs(self) -> Needs:
        return self.policy.needs

    def leaves_nothing(self, num_steps: int) -> bool:
        """True if warm-up and cool-down cover all steps, so that everything is computed."""
        return bool(self.needs.granularities) and num_steps <= self.num_warmup_steps + self.num_cooldown_steps

    def init(self) -> Any:
        return self.policy.init()

    def decide(self, step: Step, state: Any) -> Decision:
        if step.index < self.num_warmup_steps:
            return Decision(granularity=Granularity.COMPUTE, reason="warm-up")
        if step.index >= step.num_steps - self.num_cooldown_steps:
            return Decision(granularity=Granularity.COMPUTE, reason="cool-down")
        if step.num_cached >= self.max_cached_run:
            return Decision(granularity=Granularity.COMPUTE, reason=f"{step.num_cached} cached steps in a row")
        young = {granularity: age for granularity, age in step.ages.items() if age <= self.max_age}
        decision = self.policy.decide(step if len(young) == len(step.ages) else replace(step, ages=young), state)
        if decision.granularity is not Granularity.COMPUTE and decision.granularity not in young:
            return Decision(
                granularity=Granularity.COMPUTE, reason=f"no history young enough for {decision.granularity}"
            )
        return decision

    def observe(self, measurement: Measurement, state: Any) -> None:
        self.policy.observe(measurement, state)
