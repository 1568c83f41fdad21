"""Plans of two experts, on hand-made profiles."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from typing import Any

import pytest

from mixcache.decision import Granularity
from mixcache.planning.experts import ExpertsPlanner, planner_for
from mixcache.planning.profiles import FORMAT, Profile
from mixcache.planning.search import Planner
from mixcache.planning.trajectory import COMPUTE
from mixcache.predictors import REUSE

COSTS = {"compute": 1.0, "step": 0.1}


def of_range(sigmas: list[float], outputs: list[float], **changed: Any) -> Profile:
    """An expert whose outputs lie on a line, of which all of an error arrives."""
    values: dict[str, Any] = {
        "format": FORMAT,
        "model": "made",
        "transformer_class": "Made",
        "fingerprint": "",
        "weights": "",
        "dtype": "torch.float32",
        "guidance": None,
        "sigmas": sigmas,
        "outputs": [[output] for output in outputs],
        "differences": [[0.0]] * len(outputs),
        "residuals": [],
        "sensitivity": {"step": [[1.0, 1.0]]},
        "costs": COSTS,
        "damping": 1.0,
        "psnr_at_one": 0.0,
        "band": 1.0,
        "impacts": {},
        "impacts_by_step": {},
    }
    return Profile(**values | changed)


HIGH = [1.0, 0.9, 0.8, 0.7]
LOW = [0.7, 0.4, 0.2, 0.0]


def two(calm: float = 0.01, wild: float = 1.0) -> Profile:
    """Three steps of an expert whose outputs hardly change, and three of one whose outputs do."""
    second = of_range(LOW, [0.0, wild, 3 * wild], weights="2", share=0.5)
    return replace(of_range(HIGH, [0.0, calm, 3 * calm]), share=0.5, second=second)


def asked(profile: Profile, **wish: Any) -> Planner:
    return planner_for(profile, **{"predictors": (REUSE,), "corrects": False} | wish)


def pattern(choices: Any) -> str:
    return "".join("." if choice == COMPUTE else "s" for choice in choices)


def test_there_is_a_planner_for_each_kind_of_profile() -> None:
    assert type(asked(of_range(HIGH, [0.0, 1.0, 2.0]), speedup=1.0)) is Planner
    assert type(asked(two(), speedup=1.0)) is ExpertsPlanner


def test_what_is_asked_falls_to_the_expert_that_can_bear_it() -> None:
    """Both steps of the calm one are cached before any of the other."""
    planner = asked(two(), speedup=6 / 4.2)
    first, second = (planner.plan(tuple(sigmas), None)[0] for sigmas in (HIGH, LOW))
    assert (pattern(first.choices), pattern(second.choices)) == (".ss", "...")
    other = asked(two(calm=1.0, wild=0.01), speedup=6 / 4.2)
    first, second = (other.plan(tuple(sigmas), None)[0] for sigmas in (HIGH, LOW))
    assert (pattern(first.choices), pattern(second.choices)) == ("...", ".ss")


def test_a_pair_of_plans_takes_the_time_and_has_the_cost_of_both() -> None:
    """Reuse in the first: 0.1 * 0.01 and 0.1 * 0.03; at the second's second step 0.2 * 1.0."""
    planner = asked(two(), speedup=2.0)
    plans = {pattern(plan.choices): plan for plan in planner.frontier(two().loop_sigmas, None)}
    plan = plans[".ss.s."]
    assert plan.speedup == pytest.approx(6 / 3.3)
    cost = (0.001 + 0.003) ** 2 + 0.001**2 + 0.003**2 + 2 * 0.2**2
    assert plan.psnr_db == pytest.approx(-10 * math.log10(cost))
    assert [pattern(part.choices) for part in plan.parts] == [".ss", ".s."]
    assert planner.together(plan.parts) == plan


def test_an_expert_that_takes_longer_weighs_more() -> None:
    profile = two()
    profile = replace(profile, share=0.9, second=replace(profile.second, share=0.1))
    plan = next(
        p for p in asked(profile, speedup=1.0).frontier(profile.loop_sigmas, None) if pattern(p.choices) == ".ss..."
    )
    assert plan.speedup == pytest.approx(1 / (0.9 * 1.2 / 3 + 0.1))


def test_a_frontier_of_pairs_is_a_frontier() -> None:
    plans = asked(two(), speedup=1.0).frontier(two().loop_sigmas, None)
    assert (plans[0].speedup, plans[0].psnr_db) == (1.0, math.inf)
    for slower, faster in itertools.pairwise(plans):
        assert slower.speedup < faster.speedup
        assert slower.psnr_db > faster.psnr_db
    assert all(plan.choices[0] == plan.choices[3] == COMPUTE for plan in plans)


def test_a_wish_out_of_reach_of_both_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"^speedup=6 cannot be reached; .* allow 1 to 2\.50$"):
        asked(two(), speedup=6)
    with pytest.raises(ValueError, match=r"^quality=99 dB leaves nothing to cache"):
        asked(two(), quality=99)


def test_the_quality_that_was_asked_for_is_that_of_both() -> None:
    planner = asked(two(), quality=45.0)
    parts = [planner.plan(tuple(sigmas), None)[0] for sigmas in (HIGH, LOW)]
    assert [pattern(part.choices) for part in parts] == [".ss", "..."]
    assert planner.together(parts).psnr_db >= 45.0
    rough = asked(two(calm=0.001, wild=0.1), quality=25.0)
    parts = [rough.plan(tuple(sigmas), None)[0] for sigmas in (HIGH, LOW)]
    assert rough.together(parts).psnr_db >= 25.0
    assert pattern(parts[1].choices) != "..."


def test_each_expert_reads_its_own_points_at_other_noise_levels() -> None:
    """The first's outputs do not go over into the second's, whatever the number of steps."""
    planner = asked(two(), speedup=2.0)
    _, first = planner.plan((1.0, 0.95, 0.75, 0.65), None)
    assert first.guided[:, 0].tolist() == pytest.approx([0.0, 0.005, 0.03])
    _, second = planner.plan((0.72, 0.65, 0.3, 0.0), None)
    assert second.guided[:, 0].tolist() == pytest.approx([0.0, 1 / 6, 2.0])
    assert second.relative_error(REUSE, 0.3, [0.65]) == pytest.approx((2 - 1 / 6) / 2)


def test_the_nearest_number_of_steps_is_that_of_the_expert() -> None:
    """Of 6 and 4 steps, of which the first does 3 and 2."""
    few_second = of_range([0.6, 0.3, 0.0], [0.0, 1.0], weights="2", share=0.5)
    few = replace(of_range([1.0, 0.8, 0.6], [0.0, 0.01]), share=0.5, second=few_second)
    planner = asked(replace(two(), others=[few]), speedup=1.5)
    assert planner.plan((1.0, 0.9, 0.6), None)[1].profile.num_steps == 2
    assert planner.plan((0.6, 0.3, 0.0), None)[1].profile.num_steps == 2
    assert planner.plan((1.0, 0.9, 0.8, 0.65), None)[1].profile.num_steps == 3
    assert len(planner.frontier(few.loop_sigmas, None)[-1].choices) == 4


def test_steps_of_both_granularities_are_told_apart() -> None:
    """An expert without guidance has no `cfg`, its partner has."""
    profile = two()
    guided = {"differences": [[1.0], [1.1], [1.2]], "guidance": 3.0, "costs": COSTS | {"cfg": 0.5}}
    planner = asked(replace(profile, **guided), speedup=1.1, granularities=("cfg",))
    plans = planner.frontier(profile.loop_sigmas, None)
    used = [{choice[0] for plan in plans for choice in part} for part in zip(*(p.choices for p in plans), strict=True)]
    assert [Granularity.CFG in kinds for kinds in used] == [False, True, True, False, False, False]
