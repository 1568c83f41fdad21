from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest

from mixcache.decision import CACHED, Decision, Granularity, Measurement, Step, Trial
from mixcache.policies import Bounded, Planned
from mixcache.policies.planned import Progress
from mixcache.predictors import LINE, PARABOLA, REUSE, Predictor, damped

STEP, CFG, BLOCK, COMPUTE = Granularity.STEP, Granularity.CFG, Granularity.BLOCK, Granularity.COMPUTE
NAMES = {".": COMPUTE, "s": STEP, "c": CFG, "b": BLOCK}
LETTERS = {granularity: letter for letter, granularity in NAMES.items()}


POLYNOMIALS = (REUSE, LINE, PARABOLA)


@dataclass
class FakePlanner:
    """Plans what it is told, whatever the noise levels; reuse is expected to be wrong by the distance in sigma."""

    text: str
    order: int = 0
    damping: float = 1.0
    band: float = 2.0
    expects: bool = True
    asked: list[tuple[tuple[float, ...], float | None]] = field(default_factory=list)

    @property
    def profile(self) -> Any:
        return SimpleNamespace(band=self.band)

    def plan(self, sigmas: tuple[float, ...], guidance: float | None) -> tuple[Any, Any]:
        self.asked.append((sigmas, guidance))
        return self, self

    def decision(self, index: int) -> Decision:
        return Decision(
            granularity=NAMES[self.text[index]],
            predictor=damped(POLYNOMIALS[self.order], self.damping),
            reason="planned",
        )

    def relative_error(self, predictor: Predictor, sigma: float, nodes: list[float]) -> float | None:
        assert predictor == REUSE
        return nodes[-1] - sigma if self.expects else None


def sigmas_of(num_steps: int) -> tuple[float, ...]:
    return tuple(1 - index / num_steps for index in range(num_steps + 1))


def step_of(
    index: int, num_steps: int, usable: Sequence[Granularity] = CACHED, length: int = 3, **changed: Any
) -> Step:
    sigmas = sigmas_of(num_steps)
    values: dict[str, Any] = {
        "index": index,
        "num_steps": num_steps,
        "sigma": sigmas[index],
        "ages": dict.fromkeys(usable, 1),
        "history_lengths": dict.fromkeys(usable, length),
        "sigmas": sigmas,
        "guidance": 5.0,
    }
    return Step(**values | changed)


def followed(policy: Planned, num_steps: int, excesses: dict[int, float] | None = None) -> tuple[str, list[str]]:
    """What is done at each step, and why; at a computed step reuse was wrong by `excesses` times the distance from the
    last computed one, once unless given."""
    state, decisions, last = policy.init(), [], None
    for index in range(num_steps):
        decision = policy.decide(step_of(index, num_steps, CACHED if index else ()), state)
        decisions.append(decision)
        if decision.granularity is COMPUTE:
            sigma = sigmas_of(num_steps)[index]
            excess = (excesses or {}).get(index, 1.0)
            trials = {} if last is None else {(STEP, REUSE): Trial(missed=(excess * (last - sigma)) ** 2)}
            policy.observe(Measurement(step=index, sigma=sigma, deviation=None, trials=trials), state)
            last = sigma
    return "".join(LETTERS[d.granularity] for d in decisions), [d.reason for d in decisions]


def test_the_plan_is_followed() -> None:
    planner = FakePlanner("..s.cb.sscc.")
    text, reasons = followed(Planned(speedup=2.0, planner=planner), 12)
    assert text == "..s.cb.sscc."
    assert set(reasons) == {"planned"}


def test_one_plan_is_made_for_the_noise_levels_and_the_guidance_of_a_trajectory() -> None:
    planner = FakePlanner("..ss")
    policy = Planned(speedup=2.0, planner=planner)
    followed(policy, 4)
    assert planner.asked == [(sigmas_of(4), 5.0)]
    followed(policy, 4)
    assert len(planner.asked) == 2


def test_the_predictor_of_the_plan_is_taken() -> None:
    policy = Planned(speedup=2.0, planner=FakePlanner("..s", order=1))
    assert policy.decide(step_of(2, 3), policy.init()).predictor == LINE


@pytest.mark.parametrize(
    ("overlap", "reach", "damping", "reason"),
    [
        (1.0, 3.0, 1.0, "planned"),  # sqrt(2) times the error of reuse
        (1.0, 4.0, 0.25, "planned, damped"),  # sqrt(3) times
        (-1.0, 1.0, 0.0, "planned, damped"),  # twice, the wrong way
    ],
)
def test_an_extrapolation_that_was_much_worse_than_reuse_is_damped(
    overlap: float, reach: float, damping: float, reason: str
) -> None:
    policy = Planned(speedup=2.0, planner=FakePlanner("...s", order=1))
    state = policy.init()
    policy.decide(step_of(2, 4), state)
    trials = {(STEP, LINE): Trial(missed=1.0, overlap=overlap, reach=reach)}
    policy.observe(Measurement(step=2, sigma=sigmas_of(4)[2], deviation=None, trials=trials), state)
    assert policy.decide(step_of(3, 4), state) == Decision(
        granularity=STEP, predictor=damped(LINE, damping), reason=reason
    )


def test_everything_is_computed_without_a_planner() -> None:
    decision = Planned(speedup=2.0).decide(step_of(2, 3), Progress())
    assert decision == Decision(granularity=COMPUTE, reason="no plan: no planner")


def test_everything_is_computed_without_noise_levels() -> None:
    policy = Planned(speedup=2.0, planner=FakePlanner("..s"))
    decision = policy.decide(step_of(2, 3, sigmas=()), policy.init())
    assert decision == Decision(granularity=COMPUTE, reason="no plan: the scheduler tells no noise levels")


@pytest.mark.parametrize(("usable", "length", "order"), [((CFG, BLOCK), 3, 0), (CACHED, 1, 1), (CACHED, 2, 2)])
def test_a_step_without_the_planned_history_is_computed(
    usable: tuple[Granularity, ...], length: int, order: int
) -> None:
    policy = Planned(speedup=2.0, planner=FakePlanner("..s", order=order))
    decision = policy.decide(step_of(2, 3, usable, length), policy.init())
    assert decision == Decision(granularity=COMPUTE, reason="no history for what was planned")
    assert policy.decide(step_of(2, 3, CACHED, order + 1), policy.init()).granularity is STEP


def test_the_guard_computes_while_the_error_is_over_what_was_expected() -> None:
    """Over 2 x 1.5 = 3 times the expected error, as the mean of two: roots of 1 x 9.6, 9.6 x 1.5, 1.5 x 1.5."""
    planner = FakePlanner("..s.ssss.s", band=2.0)
    text, reasons = followed(Planned(speedup=2.0, planner=planner, guard=1.5), 10, {3: 9.6, 4: 1.5, 5: 1.5})
    assert text == "..s...ss.s"
    assert reasons[4] == "guard: an error 3.1 times the expected one"
    assert reasons[5] == "guard: an error 3.8 times the expected one"
    assert set(reasons[:4] + reasons[6:]) == {"planned"}


@pytest.mark.parametrize(
    ("excess", "band", "guard", "text"),
    [
        (8.9, 2.0, 1.5, "..s.s"),
        (9.1, 2.0, 1.5, "..s.."),
        (9.1, 2.5, 1.5, "..s.s"),
        (9.1, 2.0, 2.0, "..s.s"),
    ],
)
def test_the_guard_acts_over_band_times_guard(excess: float, band: float, guard: float, text: str) -> None:
    """The error before was the expected one, so the mean is the root of this one."""
    policy = Planned(speedup=2.0, planner=FakePlanner("..s.s", band=band), guard=guard)
    assert followed(policy, 5, {3: excess})[0] == text


def test_the_guard_keeps_still_where_nothing_is_expected_or_seen() -> None:
    assert followed(Planned(speedup=2.0, planner=FakePlanner("..s.s", expects=False)), 5, {3: 99.0})[0] == "..s.s"
    policy = Planned(speedup=2.0, planner=FakePlanner("..s.s"))
    state = policy.init()
    policy.decide(step_of(0, 5, ()), state)
    policy.observe(Measurement(step=0, sigma=1.0, deviation=None), state)
    policy.observe(Measurement(step=1, sigma=0.8, deviation=None, trials={(CFG, REUSE): Trial(missed=99.0**2)}), state)
    assert policy.decide(step_of(2, 5), state).granularity is STEP


def test_a_new_trajectory_forgets_the_guard() -> None:
    policy = Planned(speedup=2.0, planner=FakePlanner("..ss"))
    assert followed(policy, 4, {1: 99.0})[0] == "...."
    assert followed(policy, 4)[0] == "..ss"


def test_its_own_bounds_leave_a_plan_alone() -> None:
    policy = Planned(speedup=2.0, planner=FakePlanner(".sssssssssss"))
    bounded = Bounded(policy=policy, **policy.default_bounds)
    state = bounded.init()
    ages = [dict.fromkeys(CACHED if index else (), index) for index in range(12)]
    decisions = [bounded.decide(step_of(index, 12, ages=ages[index]), state) for index in range(12)]
    assert "".join(LETTERS[d.granularity] for d in decisions) == ".sssssssssss"


def test_keeps_histories_for_its_choices_alone() -> None:
    policy = Planned(quality=40, granularities=("block", "step"), predictors=("line", "parabola"))
    assert (set(policy.needs.granularities), policy.needs.num_values) == ({STEP, BLOCK}, 3)
    assert policy.needs.measures
    assert policy.needs.trials


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "speedup= and quality= are missing; give one of them"),
        ({"speedup": 2.0, "quality": 40}, "speedup= and quality= are both given; give one of them"),
        ({"speedup": 0.9}, "speedup=0.9 must be a finite number of at least 1"),
        ({"speedup": math.inf}, "speedup=inf must be a finite number of at least 1"),
        ({"speedup": True}, "speedup=True must be a finite number of at least 1"),
        ({"speedup": "fast"}, "speedup='fast' must be a finite number of at least 1"),
        ({"quality": math.nan}, "quality=nan must be a finite number of decibels"),
        ({"quality": "high"}, "quality='high' must be a finite number of decibels"),
        ({"speedup": 2.0, "guard": 0}, "guard=0 must be a finite number over 0"),
        ({"speedup": 2.0, "guard": math.inf}, "guard=inf must be a finite number over 0"),
        ({"speedup": 2.0, "predictors": ["cubic"]}, "unknown predictor 'cubic'"),
        ({"speedup": 2.0, "granularities": ()}, "must be one or a list of step, cfg and block"),
        ({"speedup": 2.0, "granularities": 3}, "granularities=3 must be one or a list"),
        ({"speedup": 2.0, "granularities": ["steps"]}, "unknown granularity 'steps'; did you mean 'step'"),
    ],
)
def test_wrong_settings(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Planned(**settings)
