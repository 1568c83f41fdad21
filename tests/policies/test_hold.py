from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest

from mixcache.decision import Granularity, Measurement, Step, Trial
from mixcache.policies import Hold
from mixcache.policies.budget import num_computed_for
from mixcache.policies.hold import QUALITIES, Held, weight
from mixcache.policies.way import PRIOR, Learnt, Way, log_snr
from mixcache.predictors import REUSE
from mixcache.report.frontier import foretold

STEP, COMPUTE = Granularity.STEP, Granularity.COMPUTE
SIGMAS = tuple(1 - index / 20 for index in range(21))


def observed(policy: Hold, state: Held, index: int, error: float | None) -> None:
    trials = {} if error is None else {(STEP, REUSE): Trial(missed=error**2)}
    policy.observe(Measurement(step=index, sigma=SIGMAS[index], deviation=error, trials=trials), state)


def seen(policy: Hold, errors: Sequence[float], first: int = 8) -> tuple[Held, int]:
    """The state after steps computed in a row, the first without an error; and the next step."""
    state = policy.init()
    for place, error in enumerate((None, *errors)):
        observed(policy, state, first + place, error)
    return state, first + len(errors) + 1


def step_at(index: int, num_cached: int = 0, sigmas: tuple[float, ...] = SIGMAS) -> Step:
    return Step(
        index=index,
        num_steps=20,
        sigma=sigmas[index],
        ages={STEP: num_cached + 1},
        history_lengths={STEP: 1},
        num_cached=num_cached,
        sigmas=sigmas,
    )


def run_length(policy: Hold, errors: Sequence[float], first: int = 8) -> tuple[int, str]:
    """Steps cached in a row from there on, and why the next one is computed."""
    state, index = seen(policy, errors, first)
    for num_cached in range(10):
        decision = policy.decide(step_at(index + num_cached, num_cached), state)
        if decision.granularity is COMPUTE:
            return num_cached, decision.reason
    return 10, ""


def test_needs_reuse_corrected_by_a_parabola() -> None:
    needs = Hold().needs
    assert (needs.granularities, needs.predictors, needs.trials) == ((STEP,), (REUSE,), True)
    assert (needs.correction, needs.correction_degree) == (True, 2)
    assert not Hold(corrector=False).needs.correction


def test_nothing_is_cached_before_an_error_was_seen() -> None:
    policy = Hold(error=9.0)
    state = policy.init()
    for index, error in enumerate([None, math.nan]):
        observed(policy, state, index, error)
        assert policy.decide(step_at(index + 1), state).reason == "nothing seen yet"
    observed(policy, state, 2, 0.1)
    assert policy.decide(step_at(3), state).granularity is STEP


@pytest.mark.parametrize(("seen_error", "length"), [(0.29, 1), (0.31, 0)])
def test_a_repeated_output_is_not_expected_to_err_by_more_than_the_setting(seen_error: float, length: int) -> None:
    found, reason = run_length(Hold(error=0.3), [seen_error])
    assert found == length
    assert reason.startswith("an error of 0.31" if not length else "an error of 0.58")


def test_an_error_that_grew_is_expected_to_grow_as_much_again() -> None:
    assert run_length(Hold(error=0.3), [0.1, 0.16])[0] == 1  # 0.256 is expected
    assert run_length(Hold(error=0.3), [0.08, 0.16]) == (0, "an error of 0.32 is expected")
    assert run_length(Hold(error=0.3), [0.3, 0.16])[0] == 1
    assert run_length(Hold(error=0.3), [0.01, 0.11]) == (0, "an error of 0.33 is expected")  # three times at most
    assert run_length(Hold(error=0.3), [0.0, 0.2])[0] == 1


def test_a_run_spans_little_of_the_log_of_signal_over_noise() -> None:
    """Two steps from 0.5 on span 0.405, three 0.619, four 0.847: 1.25 times the setting; nothing else is in the way."""
    assert log_snr(0.4) - log_snr(0.5) == pytest.approx(0.405, abs=1e-3)
    lengths = [run_length(Hold(error=error), [1e-4])[0] for error in (0.32, 0.33, 0.49, 0.50, 0.68)]
    assert lengths == [1, 2, 2, 3, 4]
    assert run_length(Hold(error=0.32), [1e-4])[1] == "the run would span 0.41"


def test_the_first_step_of_a_run_may_span_more() -> None:
    assert run_length(Hold(error=0.3), [1e-4], first=0) == (1, "the run would span 0.81")


def test_the_cost_of_a_run_is_bounded() -> None:
    """Errors of 0.09 and 0.18 count once and twice, an even share each: 0.45 twentieths, where nine times the square
    of the setting is 0.36 and 0.5625."""
    sigmas = (*(0.6 - 1e-3 * index for index in range(20)), 0.0)  # hardly any span
    for error, reason in ((0.2, "cost 0.023 is over the budget"), (0.25, "an error of 0.27 is expected")):
        policy = Hold(error=error)
        state = Held(sigma=sigmas[9], rates=(90.0,))
        decisions = [policy.decide(step_at(10 + k, k, sigmas), state) for k in range(3)]
        assert [d.granularity for d in decisions[:2]] == ([STEP, COMPUTE] if error == 0.2 else [STEP, STEP])
        assert reason in [d.reason for d in decisions]


def test_a_step_longer_than_an_even_share_weighs_by_its_square() -> None:
    sigmas = (1.0, 0.9, 0.89, *(0.05 * k for k in range(17, -1, -1)))
    assert weight(sigmas[0] - sigmas[1], 20) == pytest.approx(0.2)
    assert weight(sigmas[1] - sigmas[2], 20) == pytest.approx(0.05)


# ------------------------------------------------------------------------------------------------------- a speed-up


def shifted(num_steps: int, shift: float) -> tuple[float, ...]:
    levels = [1 - index / num_steps for index in range(num_steps + 1)]
    return tuple(shift * level / (1 + (shift - 1) * level) for level in levels)


@pytest.mark.parametrize("factor", [0.3, 1.0, 4.0])
@pytest.mark.parametrize("shift", [1.0, 5.0, 20.0])
@pytest.mark.parametrize("num_steps", [20, 30, 50])
@pytest.mark.parametrize("speedup", [1.25, 1.5, 2.0, 2.5, 3.0])
def test_as_many_steps_are_computed_as_the_wish_leaves(
    speedup: float, num_steps: int, shift: float, factor: float
) -> None:
    """However fast outputs change, and though nothing is known of the model but the prior."""
    way = Way(places=PRIOR.places, log_rates=tuple(rate + math.log(factor) for rate in PRIOR.log_rates))
    done = foretold(Hold(speedup=speedup), shifted(num_steps, shift), way)
    assert done.count("#") == num_computed_for(speedup, num_steps, None)
    assert (done[:2], done[-1]) == ("##", "#")
    mean = done.count("s") / done.count("#")
    assert max(map(len, done.split("#"))) <= math.ceil(3 * mean)


def test_a_model_unlike_the_prior_is_computed_as_often() -> None:
    """Its outputs change fastest in the middle."""
    way = Way(places=(-4.0, 0.0, 4.0), log_rates=(0.0, 3.0, 0.0))
    for speedup in (1.5, 2.0, 3.0):
        done = foretold(Hold(speedup=speedup), shifted(50, 5.0), way)
        assert done.count("#") == num_computed_for(speedup, 50, None)


def test_what_was_learnt_is_known_from_the_first_step_on() -> None:
    learnt = Learnt()
    before = foretold(Hold(speedup=2.0, learnt=learnt), shifted(30, 5.0), PRIOR)
    limits = []
    policy = Hold(speedup=2.0, learnt=learnt)
    for _ in range(3):
        state = policy.init()
        assert foretold(policy, shifted(30, 5.0), PRIOR).count("#") == before.count("#")
        limits.append(state.last_limit)
    assert learnt.log_rates


def test_a_wish_of_one_computes_everything() -> None:
    assert foretold(Hold(speedup=1.0), shifted(12, 1.0), PRIOR) == "#" * 12


def test_a_wish_that_cannot_be_reached_is_an_error_at_the_first_step() -> None:
    with pytest.raises(ValueError, match="speedup=6 cannot be reached with 20 steps; they allow 1 to 4"):
        Hold(speedup=6.0).decide(step_at(2), Held())


@pytest.mark.parametrize(("word", "error"), [("high", 0.25), ("balanced", 0.4), ("fast", 0.6)])
def test_a_word_is_an_error(word: str, error: float) -> None:
    sigmas = shifted(50, 5.0)
    assert foretold(Hold(quality=word), sigmas, PRIOR) == foretold(Hold(error=error), sigmas, PRIOR)
    assert QUALITIES[word] == error


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"speedup": 0.5}, "speedup=0.5 must be a finite number of at least 1, such as 2.0"),
        ({"speedup": "fast"}, "speedup='fast' must be a finite number"),
        ({"speedup": math.nan}, "speedup=nan must be a finite number"),
        ({"speedup": True}, "speedup=True must be a finite number"),
        ({"quality": "hihg"}, r"unknown quality 'hihg'; did you mean 'high'\? \(there are: high, balanced, fast\)"),
        ({"quality": math.inf}, "quality=inf must be high, balanced or fast, or a number of decibels"),
        ({"speedup": 2.0, "quality": "high"}, "speedup= and quality= are both given; give one of them"),
        ({"speedup": 2.0, "error": 0.1}, "speedup= and error= are both given; give one of them"),
    ],
)
def test_wrong_wishes(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Hold(**settings)


@pytest.mark.parametrize("error", [0, -1, math.inf, math.nan, True, "a"])
def test_wrong_settings(error: Any) -> None:
    with pytest.raises(ValueError, match=r"error=.* must be a finite number over 0, such as 0\.4; more is faster"):
        Hold(error=error)
