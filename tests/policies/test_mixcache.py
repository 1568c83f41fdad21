from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mixcache.decision import CACHED, Granularity, Measurement, Step
from mixcache.policies import MixCache
from mixcache.policies.mixcache import Cycle
from mixcache.predictors import LINE, PARABOLA, REUSE

Pattern = Callable[..., str]
STEP, CFG, BLOCK = Granularity.STEP, Granularity.CFG, Granularity.BLOCK
ONE = [{STEP: 1.0, CFG: 1.0, BLOCK: 1.0}]


def step_only(**settings: object) -> MixCache:
    return MixCache(delta_1=0.1, delta_2=0.2, granularities="step", impacts={"step": 1.0}, **settings)  # type: ignore[arg-type]


def warm(policy: MixCache, distances: dict[Granularity, float]) -> Cycle:
    """The state after two calm computed steps, the last of which had these distances."""
    state = policy.init()
    for step in (1, 2):
        policy.observe(Measurement(step=step, sigma=1 - 0.1 * step, deviation=0.01, distances=distances), state)
    return state


def test_warm_up_ends_when_the_deviation_is_under_delta_2(pattern: Pattern) -> None:
    #          computed steps 1, 2, 3 deviate by 0.5, 0.2 (not under), 0.15 (under)
    assert pattern(step_only(), 5, [0.5, 0.2, 0.15], ONE) == "....s"
    assert pattern(step_only(), 8, [0.5], ONE) == "........"


def test_warm_up_goes_on_while_the_deviation_rises(pattern: Pattern) -> None:
    assert pattern(step_only(), 9, [0.02, 0.05, 0.09, 0.15, 0.25, 0.1], ONE) == ".......ss"
    assert pattern(step_only(), 4, [0.02, 0.02], ONE) == "...s"  # one alone does not tell
    assert pattern(step_only(), 4, [0.06, 0.079], ONE) == "...s"  # and less than a third more is no rise
    # later on it may
    assert pattern(step_only(), 8, [0.05, 0.05, 0.15], ONE) == "...sss.s"


def test_interval_grows_and_shrinks_between_0_and_its_maximum(pattern: Pattern) -> None:
    policy = step_only(first_interval=1, max_interval=2)
    # N after each measurement: 1 (warm), 2, 2 (its maximum), 1, 0, 0 (its minimum), 0, 1
    deviations = [0.15, 0.15, 0.05, 0.05, 0.3, 0.3, 0.3, 0.15, 0.05]
    assert pattern(policy, 17, deviations, ONE) == "...s.ss.ss.s....s"


def test_deviation_between_the_thresholds_keeps_the_interval(pattern: Pattern) -> None:
    assert pattern(step_only(first_interval=2), 12, [0.15], ONE) == "...ss.ss.ss."
    # exactly on a threshold is between them
    assert pattern(step_only(first_interval=2), 12, [0.15, 0.15, 0.1, 0.2], ONE) == "...ss.ss.ss."


def test_first_interval_is_cut_to_the_maximum(pattern: Pattern) -> None:
    assert pattern(step_only(first_interval=5, max_interval=2), 7, [0.15], ONE) == "...ss.s"


def test_smallest_product_of_distance_and_impact_wins(pattern: Pattern) -> None:
    def winner(distances: dict[Granularity, float], impacts: dict[str, float]) -> str:
        return pattern(MixCache(impacts=impacts), 4, [0.01], [distances])[-1]

    # 0.1 * 2 = 0.2; 0.3 * 0.5 = 0.15; 0.25 * 1 = 0.25
    assert winner({STEP: 0.1, CFG: 0.3, BLOCK: 0.25}, {"step": 2.0, "cfg": 0.5, "block": 1.0}) == "c"
    # 0.1 * 1 = 0.1; 0.3 * 0.5 = 0.15; 0.25 * 0.5 = 0.125
    assert winner({STEP: 0.1, CFG: 0.3, BLOCK: 0.25}, {"step": 1.0, "cfg": 0.5, "block": 0.5}) == "s"
    # 0.1 * 9 = 0.9; 0.3 * 3 = 0.9; 0.25 * 3 = 0.75
    assert winner({STEP: 0.1, CFG: 0.3, BLOCK: 0.25}, {"step": 9.0, "cfg": 3.0, "block": 3.0}) == "b"


def test_penalty_of_5_makes_the_choice_alternate(pattern: Pattern) -> None:
    # P: cfg 0.15, step 0.2, block 0.25; the last one counts 5 times: cfg 0.75 or step 1.0
    distances = [{STEP: 0.2, CFG: 0.15, BLOCK: 0.25}]
    policy = MixCache(first_interval=3, max_interval=3)
    assert pattern(policy, 15, [0.05], distances) == "...csc.scs.csc."
    # without the penalty the smallest is taken again and again
    assert pattern(MixCache(first_interval=3, max_interval=3, penalty=1.0), 7, [0.05], distances) == "...ccc."
    # a choice more than 5 times cheaper is repeated all the same: 5 * 0.03 = 0.15 < 0.2
    assert pattern(policy, 7, [0.05], [{STEP: 0.2, CFG: 0.03}]) == "...ccc."


def test_penalty_reaches_over_a_computed_step(pattern: Pattern) -> None:
    distances = [{STEP: 0.2, CFG: 0.15}]
    assert pattern(MixCache(first_interval=1, max_interval=1), 9, [0.05], distances) == "...c.s.c."


def test_granularity_without_history_distance_or_impact_is_never_chosen(pattern: Pattern) -> None:
    cheap_cfg = [{STEP: 1.0, CFG: 0.001, BLOCK: 1.0}]
    assert "c" in pattern(MixCache(), 20, [0.05], cheap_cfg)
    assert "c" not in pattern(MixCache(), 20, [0.05], cheap_cfg, absent=[CFG])
    assert "c" not in pattern(
        MixCache(granularities=["step", "block"], impacts={"step": 1.0, "block": 1.0}), 20, [0.05], cheap_cfg
    )
    assert "c" not in pattern(MixCache(), 20, [0.05], [{STEP: 1.0, BLOCK: 1.0}])
    assert pattern(MixCache(), 6, [0.05], [{}]) == "......"


def test_deviation_of_an_unmeasured_step_changes_nothing() -> None:
    policy = step_only(first_interval=1)
    state = warm(policy, {STEP: 0.5})
    before = (state.interval, state.is_warm, dict(state.distances))
    policy.observe(Measurement(step=3, sigma=0.7, deviation=None), state)
    assert (state.interval, state.is_warm, state.distances) == before == (1, True, {STEP: 0.5})


def test_the_interval_counts_the_steps_that_were_cached() -> None:
    """The engine computes what has no history: that uses nothing up, nor does a step that was not measured."""
    policy = step_only(first_interval=1)
    state = warm(policy, {STEP: 0.5})
    told = {"num_steps": 9, "sigma": 0.8, "ages": {STEP: 1}, "history_lengths": {STEP: 1}}
    chosen = [
        policy.decide(Step(index=2 + place, num_cached=num_cached, **told), state)  # type: ignore[arg-type]
        for place, num_cached in enumerate((0, 0, 1, 0))
    ]
    assert [decision.granularity for decision in chosen] == [STEP, STEP, Granularity.COMPUTE, STEP]
    assert chosen[2].reason == "interval of 1 used up"


@pytest.mark.parametrize("impacts", [None, {"step": 1.0, "cfg": 1.0, "block": 1.0}])
def test_without_a_profile_no_granularity_is_preferred(pattern: Pattern, impacts: dict[str, float] | None) -> None:
    policy = MixCache(impacts=impacts, first_interval=3, max_interval=3)
    assert policy.needs.granularities == (STEP, CFG, BLOCK)
    assert pattern(policy, 11, [0.05], [{STEP: 0.2, CFG: 0.15, BLOCK: 0.25}]) == "...csc.scs."


def test_reason_shows_the_scores() -> None:
    policy = MixCache(granularities=["step", "cfg"], impacts={"step": 2.0, "cfg": 0.5})
    state = warm(policy, {STEP: 0.1, CFG: 0.3})
    ages, lengths = {STEP: 1, CFG: 1}, {STEP: 1, CFG: 1}
    decision = policy.decide(Step(index=2, num_steps=9, sigma=0.8, ages=ages, history_lengths=lengths), state)
    assert (decision.granularity, decision.reason) == (CFG, "smallest of step 0.2, cfg 0.15")


def test_order_is_what_the_history_allows() -> None:
    policy = MixCache(predictor="parabola", granularities="step", impacts={"step": 1.0})
    for length, predictor in ((1, REUSE), (2, LINE), (3, PARABOLA)):
        state = warm(policy, {STEP: 0.1})
        step = Step(index=2, num_steps=9, sigma=0.8, ages={STEP: 1}, history_lengths={STEP: length})
        assert policy.decide(step, state).predictor == predictor


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"delta_1": 0.3, "delta_2": 0.2}, "delta_1=0.3, delta_2=0.2: thresholds must be finite with 0 <= delta_1"),
        ({"delta_1": -0.1}, "delta_1=-0.1"),
        ({"delta_2": float("inf")}, "delta_2=inf"),
        ({"delta_1": float("nan")}, "delta_1=nan"),
        ({"delta_1": "0.1"}, "delta_1='0.1'"),
        ({"penalty": 0.5}, "penalty=0.5 must be a finite number of at least 1"),
        ({"penalty": None}, "penalty=None"),
        ({"first_interval": -1}, "first_interval=-1 must be a whole number of at least 0"),
        ({"first_interval": True}, "first_interval=True"),
        ({"max_interval": 0}, "max_interval=0 must be a whole number of at least 1"),
        ({"max_interval": 2.0}, "max_interval=2.0"),
        ({"predictor": "cubic"}, "unknown predictor 'cubic'"),
        ({"granularities": []}, r"granularities=\[\] must be one or a list of step, cfg and block"),
        ({"impacts": {"steps": 1.0}}, "unknown granularity 'steps'; did you mean 'step'"),
        ({"impacts": {"step": 0.0}}, r"impacts\['step'\]=0.0 must be a finite number over 0"),
        ({"impacts": {"step": "1"}}, r"impacts\['step'\]='1'"),
        ({"impacts": ["step"]}, r"impacts=\['step'\]"),
    ],
)
def test_wrong_settings(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MixCache(**settings)  # type: ignore[arg-type]


positive = st.floats(0, 10)


@given(
    deviations=st.lists(positive, min_size=1, max_size=40),
    distances=st.lists(st.fixed_dictionaries({}, optional=dict.fromkeys(CACHED, positive)), min_size=1, max_size=40),
    absent=st.sets(st.sampled_from(CACHED)),
    impacts=st.dictionaries(st.sampled_from(["step", "cfg", "block"]), st.floats(0.01, 10), min_size=1),
    first_interval=st.integers(0, 4),
    max_interval=st.integers(1, 4),
)
def test_choices_are_allowed_and_runs_are_no_longer_than_the_interval(
    pattern: Pattern,
    deviations: list[float],
    distances: list[dict[Granularity, float]],
    absent: set[Granularity],
    impacts: dict[str, float],
    first_interval: int,
    max_interval: int,
) -> None:
    policy = MixCache(
        delta_1=0.5,
        delta_2=2.0,
        granularities=list(impacts),
        impacts=impacts,
        first_interval=first_interval,
        max_interval=max_interval,
    )
    text = pattern(policy, 40, deviations, distances, sorted(absent))
    allowed = {name[0] for name in impacts} - {granularity.value[0] for granularity in absent}
    assert set(text) <= allowed | {"."}
    assert text.startswith("..")  # nothing is measured before the second computed step
    assert max(len(run) for run in text.split(".")) <= max_interval


@given(deviations=st.lists(st.one_of(st.none(), positive), max_size=60), max_interval=st.integers(1, 5))
def test_interval_stays_in_range(deviations: list[float | None], max_interval: int) -> None:
    policy = MixCache(delta_1=0.5, delta_2=2.0, max_interval=max_interval)
    state = policy.init()
    for index, deviation in enumerate(deviations):
        policy.observe(Measurement(step=index, sigma=1.0, deviation=deviation), state)
        assert 0 <= state.interval <= max_interval
