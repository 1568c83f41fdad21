"""Drives a policy on lists of floats, as the engine would: only a computed step refreshes, and it refreshes all."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import pytest

from mixcache.decision import CACHED, Decision, Granularity, Measurement, Step
from mixcache.policies import Policy


def drive(
    policy: Policy,
    num_steps: int,
    deviations: Sequence[float] = (),
    distances: Sequence[Mapping[Granularity, float]] = (),
    absent: Sequence[Granularity] = (),
) -> list[Decision]:
    """Decisions for one trajectory.

    `deviations` and `distances` belong to the computed steps after the first, in turn; the last ones are repeated.
    Granularities in `absent` never have a history.
    """
    state, decisions = policy.init(), []
    last_computed: int | None = None
    num_computed = 0
    for index in range(num_steps):
        usable = [g for g in CACHED if g in policy.needs.granularities and g not in absent] if num_computed else []
        ages = dict.fromkeys(usable, index - (last_computed or 0))
        lengths = {g: min(num_computed, policy.needs.num_values) for g in usable}
        sigma = 1 - index / num_steps
        step = Step(
            index=index,
            num_steps=num_steps,
            sigma=sigma,
            ages=ages,
            history_lengths=lengths,
            num_cached=0 if last_computed is None else index - last_computed - 1,
        )
        decision = policy.decide(step, state)
        decisions.append(decision)
        if decision.granularity is Granularity.COMPUTE:
            place = num_computed - 1
            measured = num_computed > 0
            measurement = Measurement(
                step=index,
                sigma=sigma,
                deviation=deviations[min(place, len(deviations) - 1)] if measured and deviations else None,
                distances=distances[min(place, len(distances) - 1)] if measured and distances else {},
            )
            if policy.needs.measures:
                policy.observe(measurement, state)
            last_computed, num_computed = index, num_computed + 1
    return decisions


def letters(decisions: Sequence[Decision]) -> str:
    """`.` computed, `s` step, `c` cfg, `b` block."""
    return "".join("." if d.granularity is Granularity.COMPUTE else d.granularity.value[0] for d in decisions)


@pytest.fixture(scope="session")
def driven() -> Callable[..., list[Decision]]:
    return drive


@pytest.fixture(scope="session")
def pattern() -> Callable[..., str]:
    def pattern_of(policy: Policy, num_steps: int, *arguments: object, **named: object) -> str:
        return letters(drive(policy, num_steps, *arguments, **named))  # type: ignore[arg-type]

    return pattern_of
