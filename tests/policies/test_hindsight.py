from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import pytest

from mixcache.decision import Choice, Decision, Granularity, Measurement, Step, Trial
from mixcache.policies import Hindsight
from mixcache.policies.hindsight import Lessons
from mixcache.predictors import LINE, REUSE

STEP, CFG, BLOCK, COMPUTE = Granularity.STEP, Granularity.CFG, Granularity.BLOCK, Granularity.COMPUTE
COSTS = {STEP: 0.0, CFG: 0.5, BLOCK: 0.3}
SIGMAS = tuple(1 - index / 10 for index in range(11))


def seen(policy: Hindsight, *errors: Mapping[Choice, float], stride: int = 1) -> Lessons:
    """The state after computed steps `stride` apart, the first without errors, of a run that is warm."""
    state = policy.init()
    state.is_warm = True
    for place, of_step in enumerate(({}, *errors)):
        index = place * stride
        policy.observe(measured(index, SIGMAS[index], of_step), state)
    return state


def measured(index: int, sigma: float, errors: Mapping[Choice, float]) -> Measurement:
    """A computed step and the errors that were seen there."""
    trials = {choice: Trial(missed=error**2) for choice, error in errors.items()}
    return Measurement(step=index, sigma=sigma, deviation=None, trials=trials)


def ask(
    policy: Hindsight,
    state: Lessons,
    index: int,
    usable: tuple[Granularity, ...] = (STEP, CFG, BLOCK),
    num_steps: int = 10,
    corrects: bool = False,
) -> Decision:
    lengths = dict.fromkeys(usable, 3)
    age = max(1, index - SIGMAS.index(state.sigmas[-1])) if state.sigmas else 1
    step = Step(
        index=index,
        num_steps=num_steps,
        sigma=SIGMAS[index],
        ages=dict.fromkeys(usable, age),
        history_lengths=lengths,
        num_cached=age - 1,
        sigmas=SIGMAS,
        costs=COSTS,
        corrects=corrects,
    )
    return policy.decide(step, state)


def test_computes_until_two_errors_were_seen() -> None:
    policy = Hindsight(error=1e9)
    state = policy.init()
    assert ask(policy, state, 0, num_steps=50).granularity is COMPUTE
    policy.observe(Measurement(step=0, sigma=1.0, deviation=None), state)
    expected = Decision(granularity=COMPUTE, reason="too little seen, or the error rises")
    assert ask(policy, state, 1, num_steps=50) == expected
    policy.observe(measured(1, 0.9, {(STEP, REUSE): 0.1}), state)
    assert ask(policy, state, 2, num_steps=50) == expected
    policy.observe(measured(2, 0.8, {(STEP, REUSE): 0.1}), state)
    assert ask(policy, state, 3, num_steps=50).granularity is STEP
    assert ask(policy, state, 3, usable=()) == Decision(granularity=COMPUTE, reason="nothing seen yet")


@pytest.mark.parametrize("broken", [math.nan, math.inf])
def test_what_is_not_finite_ends_no_warm_up(broken: float) -> None:
    policy = Hindsight(error=1e9)
    state = policy.init()
    for index, error in enumerate([broken, 0.1, broken]):
        policy.observe(measured(index, SIGMAS[index], {(STEP, REUSE): error}), state)
        assert ask(policy, state, index + 1, num_steps=50).granularity is COMPUTE
    policy.observe(measured(3, SIGMAS[3], {(STEP, REUSE): 0.1}), state)
    assert ask(policy, state, 4, num_steps=50).granularity is STEP


def test_computes_while_the_error_rises_by_more_than_a_third() -> None:
    policy = Hindsight(error=1e9)
    state = policy.init()
    chosen = []
    for index, error in enumerate([0.1, 0.15, 0.25, 0.32, 0.9]):
        policy.observe(
            measured(index, SIGMAS[index], {(STEP, REUSE): error, (STEP, LINE): 9.0, (CFG, REUSE): error / 2}), state
        )
        chosen.append(ask(policy, state, index + 1, num_steps=50).granularity)
    assert chosen == [
        COMPUTE,
        COMPUTE,
        COMPUTE,
        STEP,
        STEP,
    ]  # 0.32 is less than 4 / 3 of 0.25; what comes then may rise


@pytest.mark.parametrize(("num_steps", "num_computed"), [(10, 2), (20, 2), (30, 3), (50, 5)])
def test_a_rising_error_is_waited_for_during_a_tenth_of_the_steps(num_steps: int, num_computed: int) -> None:
    """With 10 steps the tenth is one, which has seen no error yet."""
    policy = Hindsight(error=1e9)
    state = policy.init()
    chosen = []
    for index in range(6):
        policy.observe(measured(index, SIGMAS[index], {(STEP, REUSE): 2.0**index} if index else {}), state)
        chosen.append(ask(policy, state, index + 1, num_steps=num_steps).granularity)
    assert chosen == [COMPUTE] * (num_computed - 1) + [STEP] * (7 - num_computed)


@pytest.mark.parametrize(("error", "num_cached"), [(0.0199, 0), (0.0201, 1), (0.0999, 1), (0.1001, 2), (0.2801, 3)])
def test_the_cached_steps_of_a_cycle_share_the_budget(error: float, num_cached: int) -> None:
    """Reuse was wrong by 0.2 one step of 0.1 away: by 0.2, 0.4, 0.6 the next times, each moving by a tenth of that, and
    counted once, twice and three times."""
    policy = Hindsight(error=error)
    state = seen(policy, {(STEP, REUSE): 0.2})
    decisions = [ask(policy, state, 2 + k).granularity for k in range(num_cached + 1)]
    assert decisions == [STEP] * num_cached + [COMPUTE]


@pytest.mark.parametrize(
    ("num_steps", "seen_error", "expected"),
    [(10, 0.249, STEP), (10, 0.251, COMPUTE), (20, 0.124, STEP), (20, 0.126, COMPUTE)],
)
def test_the_budget_is_a_quarter_over_the_number_of_steps_unless_told(
    num_steps: int, seen_error: float, expected: Granularity
) -> None:
    """The next step moves the latents by a tenth of the error."""
    policy = Hindsight()
    assert ask(policy, seen(policy, {(STEP, REUSE): seen_error}), 2, num_steps=num_steps).granularity is expected


def test_an_error_of_order_1_grows_with_the_product_of_the_distances() -> None:
    """Seen 0.2 and 0.1 away from its two values: 0.03. Now 0.1 and 0.2 away the same; one further 0.2 x 0.3, twice."""
    for error, expected in ((0.0029, [COMPUTE]), (0.0031, [STEP, COMPUTE]), (0.0211, [STEP, STEP])):
        policy = Hindsight(error=error)
        state = seen(policy, {(STEP, REUSE): 0.9}, {(STEP, REUSE): 0.9, (STEP, LINE): 0.03})
        decisions = [ask(policy, state, 3 + k) for k in range(len(expected))]
        assert [d.granularity for d in decisions] == expected
        assert all(d.predictor == LINE for d in decisions if d.granularity is STEP)


def test_a_computed_step_that_taught_nothing_begins_a_new_cycle() -> None:
    """Its output was not finite, or the engine computed what was to be cached: nothing is observed. The error of 0.2 is
    0.4 two steps on, moves by 0.04 and counts twice: 0.08, which fits once into a budget of 0.1."""
    policy = Hindsight(error=0.1)
    state = seen(policy, {(STEP, REUSE): 0.2})
    told = {"num_steps": 10, "ages": {STEP: 2}, "history_lengths": {STEP: 2}, "sigmas": SIGMAS}
    chosen = [
        policy.decide(Step(index=3, sigma=SIGMAS[3], num_cached=num_cached, **told), state).granularity  # type: ignore[arg-type]
        for num_cached in (0, 1, 0)
    ]
    assert chosen == [STEP, COMPUTE, STEP]
    assert state.spent == pytest.approx(0.08)


def test_the_predictor_that_was_wrong_by_less_is_taken() -> None:
    policy = Hindsight(error=1.0)
    straight = seen(policy, {(STEP, REUSE): 0.2}, {(STEP, REUSE): 0.2, (STEP, LINE): 0.01})
    bent = seen(policy, {(STEP, REUSE): 0.2}, {(STEP, REUSE): 0.2, (STEP, LINE): 0.5})
    assert (ask(policy, straight, 3).predictor, ask(policy, bent, 3).predictor) == (LINE, REUSE)


def test_one_good_guess_is_not_trusted() -> None:
    errors = ({(STEP, REUSE): 0.5}, {(STEP, REUSE): 0.001})
    careful, hasty = Hindsight(error=0.01, memory=2), Hindsight(error=0.01, memory=1)
    assert ask(careful, seen(careful, *errors), 3).granularity is COMPUTE
    assert ask(hasty, seen(hasty, *errors), 3).granularity is STEP


def test_the_cheapest_granularity_that_fits() -> None:
    errors = {(STEP, REUSE): 0.5, (CFG, REUSE): 0.1, (BLOCK, REUSE): 0.2}
    chosen = {}
    for error in (0.005, 0.015, 0.025, 0.06):
        policy = Hindsight(error=error)
        chosen[error] = ask(policy, seen(policy, errors), 2).granularity
    assert chosen == {0.005: COMPUTE, 0.015: CFG, 0.025: BLOCK, 0.06: STEP}
    assert ask(policy, seen(policy, errors), 2, usable=(CFG, BLOCK)).granularity is BLOCK


def test_an_early_step_counts_for_an_even_share_of_the_way() -> None:
    """At a shifted schedule the first steps go next to nowhere; a tenth of the way is counted all the same."""
    policy = Hindsight(error=0.0199)
    state = policy.init()
    for place, (sigma, errors) in enumerate(((1.0, {}), (0.999, {(STEP, REUSE): 0.2}))):
        policy.observe(measured(place, sigma, errors), state)
    step = Step(
        index=2, num_steps=10, sigma=0.998, ages={STEP: 1}, history_lengths={STEP: 1}, sigmas=(1.0, 0.999, 0.998, 0.997)
    )
    assert policy.decide(step, state).granularity is COMPUTE


@pytest.mark.parametrize(("choice", "cost"), [((STEP, REUSE), 0.2), ((CFG, REUSE), 0.4)])
def test_reuse_counts_once_where_it_is_corrected(choice: Choice, cost: float) -> None:
    """An error of 1 at a distance of 0.1 is 2 at 0.2, times a way of 0.1; `cfg` steps are not corrected and count
    twice."""
    policy = Hindsight(error=10.0, granularities=("step", "cfg"))
    state = seen(policy, {choice: 1.0})
    assert ask(policy, state, 3, usable=(choice[0],), corrects=True).reason.startswith(f"cost {cost:.2g},")
    assert state.spent == pytest.approx(cost)
    state.spent = 0.0
    ask(policy, state, 3, usable=(choice[0],))
    assert state.spent == pytest.approx(0.4)


@pytest.mark.parametrize(("corrects", "cost"), [(True, 0.03), (False, 0.06)])
def test_an_extrapolation_counts_once_where_it_is_corrected(corrects: bool, cost: float) -> None:
    """An error of 0.1 where the distances are 0.1 and 0.2 is 0.3 where they are 0.2 and 0.3, times a way of 0.1."""
    policy = Hindsight(error=10.0)
    state = seen(policy, {(STEP, REUSE): 9.0}, {(STEP, REUSE): 9.0, (STEP, LINE): 0.1})
    assert ask(policy, state, 4, usable=(STEP,), corrects=corrects).predictor == LINE
    assert state.spent == pytest.approx(cost)


def test_what_is_not_finite_teaches_nothing() -> None:
    policy = Hindsight(error=1.0)
    assert ask(policy, seen(policy, {(STEP, REUSE): math.nan, (CFG, REUSE): math.inf}), 2).reason == "nothing seen yet"


def test_an_order_that_the_history_is_too_short_for_is_not_chosen() -> None:
    policy = Hindsight(error=1.0)
    state = seen(policy, {(STEP, REUSE): 0.2}, {(STEP, REUSE): 0.2, (STEP, LINE): 0.01})
    step = Step(index=3, num_steps=10, sigma=0.7, ages={STEP: 1}, history_lengths={STEP: 1}, sigmas=SIGMAS)
    assert policy.decide(step, state).predictor == REUSE


def test_granularities_may_be_a_list() -> None:
    policy = Hindsight(granularities=["step", CFG])  # type: ignore[arg-type]
    assert policy == Hindsight(granularities=("step", "cfg"))
    assert policy.needs.granularities == (STEP, CFG)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"error": 0}, "error=0 must be a finite number over 0"),
        ({"error": math.nan}, "error=nan"),
        ({"error": "small"}, "error='small'"),
        ({"granularities": ()}, "must be one or a list of step, cfg and block"),
        ({"granularities": 3}, "granularities=3 must be one or a list"),
        ({"granularities": ["steps"]}, "unknown granularity 'steps'; did you mean 'step'"),
        ({"predictors": "cubic"}, "unknown predictor 'cubic'"),
        ({"predictors": ()}, r"predictors=\(\) names none"),
        ({"memory": 0}, "memory=0"),
    ],
)
def test_wrong_settings(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Hindsight(**settings)
