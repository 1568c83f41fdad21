"""Schedules from a profile, on hand-made ones."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from mixcache.decision import Choice, Granularity
from mixcache.planning.profiles import FORMAT, Profile
from mixcache.planning.search import LEAST_PSNR_DB, MAX_AGE, Plan, Planner
from mixcache.planning.trajectory import COMPUTE, DOUBT, SHOWN, Trajectory
from mixcache.predictors import LINE, PARABOLA, REUSE, Lagrange, Predictor, undamped

STEP, CFG, BLOCK = Granularity.STEP, Granularity.CFG, Granularity.BLOCK
HOLD, EXTRAPOLATE = (STEP, REUSE), (STEP, LINE)
SIGMAS = (1.0, 0.75, 0.5, 0.0)
LETTERS = {Granularity.COMPUTE: ".", STEP: "s", CFG: "c", BLOCK: "b"}


def made(outputs: Sequence[float | Sequence[float]], sigmas: Sequence[float] = SIGMAS, **changed: Any) -> Profile:
    """A profile of points, or of numbers on a line, without guidance, where all of an error arrives; its PSNR is
    -10 log10(cost)."""
    points = [[output] if isinstance(output, float) else list(output) for output in outputs]
    values: dict[str, Any] = {
        "format": FORMAT,
        "model": "made",
        "transformer_class": "Made",
        "fingerprint": "",
        "weights": "",
        "dtype": "torch.float32",
        "guidance": None,
        "sigmas": list(sigmas),
        "outputs": points,
        "differences": [[0.0] * len(point) for point in points],
        "residuals": [],
        "sensitivity": {"step": [[1.0, 1.0]]},
        "costs": {"compute": 1.0, "step": 0.1},
        "damping": 1.0,
        "psnr_at_one": 0.0,
        "band": 1.0,
        "impacts": {},
        "impacts_by_step": {},
    }
    return Profile(**values | changed)


def guided_profile() -> Profile:
    """At guidance 3 the guided outputs are c - 2 d: -1, -4, 0."""
    return made(
        [1.0, 2.0, 4.0],
        guidance=3.0,
        differences=[[1.0], [3.0], [2.0]],
        residuals=[[0.0], [1.0], [1.5]],
        sensitivity={"step": [[1.0, 1.0], [0.5, 4.0]], "block": [[1.0, 0.5]]},
        costs={"compute": 1.0, "step": 0.1, "cfg": 0.5, "block": 0.4},
    )


def frontier_of(profile: Profile, **settings: Any) -> list[Plan]:
    settings = {"corrects": False} | settings
    return Planner(profile=profile, speedup=1.0, **settings).frontier(profile.sigmas, profile.guidance)


def pattern(plan: Plan) -> str:
    """`.` computed, `s` step, `c` cfg, `b` block."""
    return "".join(LETTERS[granularity] for granularity, _ in plan.choices)


def wave(num_steps: int, seed: int = 0) -> Profile:
    """A smooth curve in the plane with a little noise, over even noise levels."""
    chance = random.Random(seed)
    sigmas = [1 - index / num_steps for index in range(num_steps + 1)]
    points = [
        (math.sin(4 * sigma) + chance.gauss(0, 0.02), math.cos(3 * sigma) + chance.gauss(0, 0.02))
        for sigma in sigmas[:-1]
    ]
    return made(points, sigmas)


# ---------------------------------------------------------------------------------------------------------- trajectory


@pytest.mark.parametrize(
    ("granularity", "predictor", "index", "nodes", "error"),
    [
        (STEP, REUSE, 1, (0,), 3.0),  # -1 for -4
        (STEP, REUSE, 2, (0, 1), -4.0),  # the last one: -4 for 0
        (STEP, LINE, 2, (0, 1), -7.0),  # the levels are even: 2 * -4 - -1 = -7 for 0
        (CFG, REUSE, 1, (0,), 4.0),  # (1 - 3) * (1 - 3)
        (CFG, LINE, 2, (0, 1), -6.0),  # (1 - 3) * (5 - 2)
        (BLOCK, REUSE, 2, (0,), -1.5),
        (BLOCK, LINE, 2, (0, 1), 0.5),  # 2 for 1.5
    ],
)
def test_the_error_of_a_cached_step(
    granularity: Granularity, predictor: Predictor, index: int, nodes: tuple[int, ...], error: float
) -> None:
    trajectory = Trajectory(guided_profile(), SIGMAS, 3.0)
    assert trajectory.error(granularity, predictor, index, nodes) == pytest.approx([error])


@pytest.mark.parametrize(("damping", "error"), [(1.0, -1.0), (0.5, -1.5), (0.0, -2.0)])
def test_the_error_of_an_extrapolation_that_is_followed_part_of_the_way(damping: float, error: float) -> None:
    """1, 2, 4: the line says 3, the last value 2."""
    profile = made([1.0, 2.0, 4.0], sigmas=(1.0, 0.75, 0.5, 0.0), damping=damping)
    assert Trajectory(profile, profile.sigmas, None).error(Granularity.STEP, LINE, 2, (0, 1)) == pytest.approx([error])


def test_without_damping_nothing_is_said_to_extrapolate() -> None:
    plans = frontier_of(replace(wave(12), damping=0.0))
    assert len(plans) > 2
    assert {predictor for plan in plans for _, predictor in plan.choices} == {REUSE}


def test_a_move_is_error_times_way_times_sensitivity() -> None:
    """The way from 0.75 is a quarter; sensitivity there is 2 between 1 and 4, and 0.5 for block."""
    trajectory = Trajectory(guided_profile(), SIGMAS, 3.0)
    assert trajectory.move(STEP, REUSE, 1, (0,)) == pytest.approx([3.0 * 0.25 * 2])
    assert trajectory.move(CFG, REUSE, 1, (0,)) == pytest.approx([4.0 * 0.25 * 2])
    assert trajectory.move(STEP, REUSE, 2, (0,)) == pytest.approx([-1.0 * 0.5 * 4])
    assert trajectory.move(BLOCK, REUSE, 1, (0,)) == pytest.approx([-1.0 * 0.25 * 0.5])


@pytest.mark.parametrize(("guidance", "step", "cfg"), [(1.0, -1.0, 0.0), (2.0, 1.0, 2.0), (6.0, 9.0, 10.0)])
def test_another_guidance_than_that_of_the_profile(guidance: float, step: float, cfg: float) -> None:
    """c goes from 1 to 2 and d from 1 to 3: reuse is wrong by -1 + (1 - g) * -2."""
    trajectory = Trajectory(guided_profile(), SIGMAS, guidance)
    assert trajectory.error(STEP, REUSE, 1, (0,)) == pytest.approx([step])
    assert trajectory.error(CFG, REUSE, 1, (0,)) == pytest.approx([cfg])


def test_an_unknown_guidance_is_that_of_the_profile() -> None:
    assert Trajectory(guided_profile(), SIGMAS, None).error(STEP, REUSE, 1, (0,)) == pytest.approx([3.0])
    assert Trajectory(made([1.0, 2.0, 4.0]), SIGMAS, None).error(STEP, REUSE, 1, (0,)) == pytest.approx([-1.0])


def test_points_between_the_noise_levels_of_the_profile_are_on_lines() -> None:
    """Between -1 at 1.0 and -4 at 0.75, then to 0 at 0.5, which also stands for all below."""
    sigmas = (1.0, 0.875, 0.6, 0.25, 0.0)
    trajectory = Trajectory(guided_profile(), sigmas, 3.0)
    assert trajectory.num_steps == 4
    assert trajectory.error(STEP, REUSE, 1, (0,)) == pytest.approx([-1.0 - -2.5])
    assert trajectory.error(STEP, REUSE, 2, (0,)) == pytest.approx([-1.0 - -1.6])
    assert trajectory.error(STEP, REUSE, 3, (0,)) == pytest.approx([-1.0])
    assert trajectory.error(BLOCK, REUSE, 1, (0,)) == pytest.approx([-0.5])


def test_the_relative_error_for_the_guard() -> None:
    trajectory = Trajectory(guided_profile(), SIGMAS, 3.0)
    assert trajectory.relative_error(REUSE, 0.75, [1.0]) == pytest.approx(3 / 4)
    assert trajectory.relative_error(REUSE, 0.7, [1.0]) is None
    assert trajectory.relative_error(REUSE, 0.75, [0.9]) is None


# ------------------------------------------------------------------------------------------------------------ frontier


def test_a_frontier_worked_out_by_hand() -> None:
    """Reuse moves by 0.25 * -1 at 0.75, by 0.5 * -2 at 0.5 and by 0.5 * -3 there if both are cached."""
    computed, one, two = frontier_of(made([1.0, 2.0, 4.0]), predictors=(REUSE,))
    assert (pattern(computed), pattern(one), pattern(two)) == ("...", ".s.", ".ss")
    assert [plan.speedup for plan in (computed, one, two)] == pytest.approx([1.0, 3 / 2.1, 3 / 1.2])
    assert computed.psnr_db == math.inf
    assert one.psnr_db == pytest.approx(-10 * math.log10(0.25**2 + DOUBT**2 * 0.25**2))
    assert two.psnr_db == pytest.approx(-10 * math.log10(1.75**2 + DOUBT**2 * (0.25**2 + 1.5**2)))


def test_errors_that_cancel_do_less_cost() -> None:
    """Moves of -0.5 and -0.5, and of -0.5 and 0.5."""
    alike, against = (
        frontier_of(made(outputs), predictors=(REUSE,))[-1] for outputs in ([0.0, 2.0, 1.0], [0.0, 2.0, -1.0])
    )
    assert alike.psnr_db == pytest.approx(-10 * math.log10(1 + DOUBT**2 / 2))
    assert against.psnr_db == pytest.approx(-10 * math.log10(DOUBT**2 / 2))


def test_errors_of_residuals_do_not_cancel() -> None:
    profile = made(
        [0.0] * 3,
        residuals=[[0.0], [2.0], [-1.0]],
        sensitivity={"step": [[1.0, 1.0]], "block": [[1.0, 1.0]]},
        costs={"compute": 1.0, "step": 0.1, "block": 0.5},
    )
    fastest = frontier_of(profile, predictors=(REUSE,), granularities=("block",))[-1]
    assert pattern(fastest) == ".bb"
    assert fastest.psnr_db == pytest.approx(-10 * math.log10((1 + DOUBT**2) / 2))


def test_psnr_is_counted_from_that_at_one() -> None:
    low, high = (frontier_of(made([1.0, 2.0, 4.0], psnr_at_one=psnr), predictors=(REUSE,))[-1] for psnr in (0.0, 12.5))
    assert high.psnr_db == pytest.approx(low.psnr_db + 12.5)


def test_extrapolation_is_chosen_where_it_is_right() -> None:
    """On a straight line order 1 is right to the last bit or so, and reuse is not."""
    straight = made([index / 7 for index in range(6)], [1 - index / 6 for index in range(7)])
    extrapolated = frontier_of(straight, predictors=(REUSE, LINE))[-2]
    assert extrapolated.choices == (COMPUTE, COMPUTE, *[EXTRAPOLATE] * 4)
    assert extrapolated.psnr_db > 200
    reused = next(plan for plan in frontier_of(straight, predictors=(REUSE,)) if plan.speedup == extrapolated.speedup)
    assert reused.psnr_db < 30


@pytest.mark.parametrize(
    ("profile", "choices", "letters"),
    [
        (guided_profile(), ("step", "cfg", "block"), ".scb"),
        (guided_profile(), ("cfg",), ".c"),
        (guided_profile(), ("block", "cfg"), ".cb"),
        (made([1.0, 2.0, 4.0]), ("step", "cfg", "block"), ".s"),
        (made([1.0, 2.0, 4.0]), ("cfg", "block"), "."),
    ],
)
def test_only_what_is_allowed_and_known_is_chosen(profile: Profile, choices: tuple[str, ...], letters: str) -> None:
    used = {letter for plan in frontier_of(profile, granularities=choices) for letter in pattern(plan)}
    assert used <= set(letters)
    assert len(used) == 1 or used - {"."}
    assert (used == {"."}) == (letters == ".")


def test_cfg_is_not_chosen_where_guidance_has_no_weight() -> None:
    planner = Planner(profile=guided_profile(), speedup=1.0, granularities=("cfg",))
    assert [pattern(plan) for plan in planner.frontier(SIGMAS, 1.0)] == ["..."]
    assert len(planner.frontier(SIGMAS, 1.5)) > 1


@pytest.mark.parametrize("predictors", [(REUSE,), (REUSE, LINE), (REUSE, LINE, PARABOLA)])
def test_a_frontier_begins_with_everything_computed_and_a_slower_plan_is_better(
    predictors: tuple[Predictor, ...],
) -> None:
    plans = frontier_of(wave(12), predictors=predictors)
    assert plans[0] == Plan(choices=(COMPUTE,) * 12, speedup=1.0, psnr_db=math.inf)
    assert len(plans) > 5
    for slower, faster in itertools.pairwise(plans):
        assert slower.speedup < faster.speedup
        assert slower.psnr_db > faster.psnr_db
    assert all(plan.choices[0] == COMPUTE for plan in plans)


def test_a_step_is_decided_as_planned() -> None:
    plan = frontier_of(replace(wave(12), damping=0.5))[-1]
    decisions = [plan.decision(index) for index in range(12)]
    undone = [(decision.granularity, *undamped(decision.predictor)) for decision in decisions]
    assert [(granularity, predictor) for granularity, predictor, _ in undone] == list(plan.choices)
    assert {damping for _, predictor, damping in undone if predictor != REUSE} == {0.5}


def through(levels: Sequence[float], level: float) -> list[float]:
    """Weights of the polynomial through all of the values."""
    return Lagrange(degree=len(levels) - 1).weights(levels, level) if len(levels) > 1 else [1.0]


def by_hand(profile: Profile, choices: Sequence[Choice], *, corrects: bool = False) -> tuple[float, float] | None:
    """Time and cost of a schedule of whole steps, worked out apart; None where a predictor finds no history, and where
    a run of cached steps changes its predictor, which is not searched for."""
    sigmas, points = profile.sigmas, np.asarray(profile.outputs)
    step_sizes = [a - b for a, b in itertools.pairwise(sigmas)]

    def error(index: int, nodes: Sequence[int]) -> np.ndarray:
        weights = through([sigmas[node] for node in nodes], sigmas[index])
        return np.asarray(weights) @ points[list(nodes)] - points[index]

    moves: list[np.ndarray] = []
    computed: list[int] = []
    for is_computed, run in itertools.groupby(range(len(choices)), lambda index: choices[index] == COMPUTE):
        steps = list(run)
        if is_computed:
            computed += steps
            continue
        found = {choices[index][1] for index in steps}
        if len(found) > 1 or (num_values := min(p.num_values for p in found)) > len(computed):
            return None
        nodes = computed[-num_values:]
        of_run = [step_sizes[index] * error(index, nodes) for index in steps]
        if corrects and (later := steps[-1] + 1) < len(choices):
            drift = sum(of_run)
            of_run = [step_sizes[index] * error(index, [*nodes, later]) for index in steps]
            last_weights = [through([sigmas[n] for n in (*nodes, later)], sigmas[i])[-1] for i in steps]
            seen = step_sizes[later] + sum(
                step_sizes[i] * weight for i, weight in zip(steps, last_weights, strict=True)
            )
            of_run.append(-min(1.0, SHOWN * seen / sigmas[later]) * drift)
        moves += of_run
    cost = sum(profile.costs[granularity.value] for granularity, _ in choices)
    if not moves:
        return cost, 0.0
    return cost, float(np.square(sum(moves)).sum() + DOUBT**2 * sum(np.square(move).sum() for move in moves))


@pytest.mark.parametrize("corrects", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_no_schedule_is_as_cheap_and_much_less_costly(seed: int, corrects: bool) -> None:
    """All schedules of 6 whole steps; the beam may miss the best one by a tenth of a decibel."""
    profile = wave(6, seed)
    plans = frontier_of(profile, corrects=corrects)
    for plan in plans[1:]:
        time, cost = by_hand(profile, plan.choices, corrects=corrects) or (0.0, 0.0)
        assert plan.speedup == pytest.approx(6 / time)
        assert plan.psnr_db == pytest.approx(-10 * math.log10(cost))
    schedules = [(COMPUTE, *rest) for rest in itertools.product((COMPUTE, HOLD, EXTRAPOLATE), repeat=5)]
    for time, cost in filter(None, (by_hand(profile, schedule, corrects=corrects) for schedule in schedules)):
        if cost > 0:
            best = max(plan.psnr_db for plan in plans if plan.speedup >= 6 / time - 1e-9)
            assert best > -10 * math.log10(cost) - 0.1


def test_a_corrected_run_by_hand() -> None:
    """1, 3, 4 and 0 at even levels. Step 1 is reused, off by -2, and then the middle of 1 and 4: off by -0.5, each
    times a quarter of the way. Of the drift of -0.5 a half shows in step 2 times its quarter, and half of that in step
    1: over its level of 0.5, 3/4 of it."""
    profile = made([1.0, 3.0, 4.0, 0.0], sigmas=(1.0, 0.75, 0.5, 0.25, 0.0))
    plan = next(p for p in frontier_of(profile, predictors=(REUSE,), corrects=True) if pattern(p) == ".s..")
    moves = (-0.125, SHOWN * 0.75 * 0.5)
    assert plan.psnr_db == pytest.approx(-10 * math.log10(sum(moves) ** 2 + DOUBT**2 * sum(m**2 for m in moves)))


def test_what_is_cached_by_halves_or_at_the_end_is_not_corrected() -> None:
    profile = guided_profile()
    for choices in (("cfg",), ("block",)):
        assert frontier_of(profile, granularities=choices, corrects=True) == frontier_of(profile, granularities=choices)
    ends = [
        p
        for p in frontier_of(profile, predictors=(REUSE,), corrects=True, granularities=("step",))
        if pattern(p).endswith("s")
    ]
    assert ends
    assert all(plan in frontier_of(profile, predictors=(REUSE,), granularities=("step",)) for plan in ends)


def test_nothing_is_older_than_the_highest_age() -> None:
    """Where nothing changes much, nothing but the age calls for a computed step."""
    num_steps = 4 * (MAX_AGE + 1)
    sigmas = [1 - index / num_steps for index in range(num_steps + 1)]
    plans = frontier_of(made([1e-3 * index for index in range(num_steps)], sigmas), predictors=(REUSE,))
    assert pattern(plans[-1]) == 4 * ("." + MAX_AGE * "s")
    assert max(len(run) for plan in plans for run in pattern(plan).split(".")) == MAX_AGE


# ------------------------------------------------------------------------------------------------------------- planner


def test_the_plan_nearest_to_the_speedup_that_was_asked_for() -> None:
    """`.s.` is 1.43 times as fast and `.ss` 2.5 times; nearness is that of ratios."""
    profile = made([1.0, 2.0, 4.0], psnr_at_one=40.0)
    for wish, expected in ((1.0, "..."), (1.19, "..."), (1.2, ".s."), (1.88, ".s."), (1.9, ".ss"), (2.5, ".ss")):
        plan, _ = Planner(profile=profile, speedup=wish, predictors=(REUSE,), corrects=False).plan(SIGMAS, None)
        assert pattern(plan) == expected


def test_the_quality_that_was_asked_for() -> None:
    """`.s.` is at 49.03 dB and `.ss` at 32.70 dB."""
    profile = made([1.0, 2.0, 4.0], psnr_at_one=40.0)
    for wish, expected in ((49.0, ".s."), (32.8, ".s."), (32.6, ".ss"), (-99.0, ".ss")):
        plan, _ = Planner(profile=profile, quality=wish, predictors=(REUSE,), corrects=False).plan(SIGMAS, None)
        assert pattern(plan) == expected


def test_a_wish_out_of_reach_is_an_error_with_the_range() -> None:
    profile = made([1.0, 2.0, 4.0])
    with pytest.raises(ValueError, match=r"^speedup=2.6 cannot be reached; .* allow 1 to 2\.50$"):
        Planner(profile=profile, speedup=2.6, predictors=(REUSE,), corrects=False)
    with pytest.raises(ValueError, match=r"^quality=12 dB leaves nothing to cache; this model allows -7\.3 to 9\.0$"):
        Planner(profile=profile, quality=12, predictors=(REUSE,), corrects=False)


@pytest.mark.parametrize(
    ("psnr_at_one", "wish", "expected", "told"),
    [
        (27.4, {"speedup": 2.5}, ".ss", ""),  # 20.10 dB
        (27.2, {"speedup": 2.5}, ".s.", "speedup=2.5 at 3 steps would give 19.9 dB"),
        (27.2, {"speedup": 1.5}, ".s.", ""),
        (11.0, {"speedup": 1.5}, ".s.", ""),  # 20.03 dB
        (10.9, {"speedup": 1.5}, "...", "speedup=1.5 at 3 steps would give 19.9 dB"),
        (27.2, {"quality": 19.5}, ".s.", "quality=19.5 at 3 steps would give 19.9 dB"),
        (10.9, {"quality": 1.0}, "...", "quality=1 at 3 steps would give 3.6 dB"),
    ],
)
def test_a_plan_that_foretells_another_video_is_not_followed(
    psnr_at_one: float, wish: dict[str, float], expected: str, told: str, caplog: pytest.LogCaptureFixture
) -> None:
    """`.s.` foretells 9.03 dB more than `psnr_at_one`, and `.ss` 7.30 dB less."""
    planner = Planner(
        profile=made([1.0, 2.0, 4.0], psnr_at_one=psnr_at_one), predictors=(REUSE,), corrects=False, **wish
    )
    assert caplog.messages == []  # nothing is followed yet
    plan, _ = planner.plan(SIGMAS, None)
    assert (pattern(plan), plan.psnr_db >= LEAST_PSNR_DB) == (expected, True)
    planner.plan(SIGMAS, None)
    what = {
        ".s.": f"a plan of 1.43x and {plan.psnr_db:.1f} dB is followed instead",
        "...": "everything is computed instead",
    }
    assert caplog.messages == ([f"{told}, which is another video: {what[expected]}"] if told else [])
    assert planner.chosen(planner.frontier(SIGMAS, None)) == plan
    assert (plan.instead_of is not None) == bool(told)


def test_every_planner_tells_what_it_does_not_follow(caplog: pytest.LogCaptureFixture) -> None:
    """The plan is remembered for both; at two steps `.s` moves by 0.5 * -3, which with the doubt is 6.5 dB under 16."""
    profile = made([1.0, 2.0, 4.0], psnr_at_one=16.0)
    for _ in range(2):
        planner = Planner(profile=profile, speedup=2.4, predictors=(REUSE,), corrects=False)
        plan, _ = planner.plan((1.0, 0.5, 0.0), None)
        assert (pattern(plan), plan.speedup, plan.psnr_db) == ("..", 1.0, math.inf)
    assert [message for message in caplog.messages if "speedup" in message] == 2 * [
        "speedup=2.4 at 2 steps would give 9.5 dB, which is another video: everything is computed instead"
    ]


def test_a_quality_of_a_model_with_nothing_to_cache_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"^the profile knows nothing that granularities=\('cfg',\) could cache$"):
        Planner(profile=made([1.0, 2.0, 4.0]), quality=12, granularities=("cfg",))


def test_a_plan_is_worked_out_once(monkeypatch: pytest.MonkeyPatch) -> None:
    planner = Planner(profile=wave(6), speedup=1.5)
    asked = []
    frontier = Planner.frontier

    def counted(self: Planner, sigmas: Sequence[float], guidance: float | None) -> list[Plan]:
        asked.append((sigmas, guidance))
        return frontier(self, sigmas, guidance)

    monkeypatch.setattr(Planner, "frontier", counted)
    other = (1.0, 0.8, 0.6, 0.4, 0.2, 0.0)
    first, again = planner.plan(other, None), planner.plan(other, None)
    assert first[0] is again[0]
    assert first[1] is again[1]
    assert planner.plan(other, 2.0)[0] is not first[0]
    assert asked == [(other, None), (other, 2.0)]


def test_every_calibrated_number_of_steps_is_planned_for_beforehand(monkeypatch: pytest.MonkeyPatch) -> None:
    planner = Planner(profile=replace(wave(6), others=[wave(5)]), speedup=1.5)
    monkeypatch.setattr(Planner, "frontier", None)
    for profile in (planner.profile, *planner.profile.others):
        assert len(planner.plan(tuple(profile.sigmas), None)[0].choices) == profile.num_steps


def test_a_plan_is_of_the_noise_levels_of_the_generation() -> None:
    plan, trajectory = Planner(profile=wave(6), speedup=1.5).plan((1.0, 0.7, 0.4, 0.2, 0.0), None)
    assert len(plan.choices) == trajectory.num_steps == 4
    assert trajectory.sigmas == [1.0, 0.7, 0.4, 0.2, 0.0]


def test_a_short_schedule_has_the_nearest_plan() -> None:
    profile = made([1.0, 2.0, 4.0], psnr_at_one=40.0)
    fast, good = (
        Planner(profile=profile, predictors=(REUSE,), corrects=False, **wish)
        for wish in ({"speedup": 2.5}, {"quality": 49.0})
    )
    assert pattern(fast.plan((1.0, 0.5, 0.0), None)[0]) == ".s"
    assert pattern(good.plan((1.0, 0.5, 0.0), None)[0]) == ".."
    assert pattern(fast.plan((1.0, 0.0), None)[0]) == "."


# -------------------------------------------------------------------------------------------------------- noise levels


def test_noise_levels_of_a_number_of_steps() -> None:
    profile = made([1.0, 2.0, 4.0])
    asked: list[int] = []

    def of_scheduler(num_steps: int) -> list[float]:
        asked.append(num_steps)
        return [1.0, 0.75, 0.5, 0.25]

    assert profile.levels(None, of_scheduler) == SIGMAS
    assert profile.levels(3, of_scheduler) == SIGMAS
    assert profile.levels(4, of_scheduler) == (1.0, 0.75, 0.5, 0.25, 0.0)
    assert asked == [4]


def test_a_plan_stands_on_the_profile_of_the_nearest_number_of_steps() -> None:
    line = made([1.0, 2.0, 4.0, 8.0], sigmas=(1.0, 0.75, 0.5, 0.25, 0.0), costs={"compute": 1.0, "step": 0.5})
    planner = Planner(profile=replace(line, others=[made([1.0, 1.0], sigmas=(1.0, 0.5, 0.0))]), speedup=1.0)
    two, four = (planner.frontier(sigmas, None) for sigmas in ((1.0, 0.6, 0.0), (1.0, 0.8, 0.5, 0.25, 0.0)))
    assert two[-1].speedup == pytest.approx(2 / 1.1)  # there a step costs 0.1
    assert four[-1].speedup == pytest.approx(4 / 2.5)
    assert planner.plan((1.0, 0.6, 0.0), None)[1].profile.num_steps == 2
    assert planner.profile.levels(2, lambda num_steps: []) == (1.0, 0.5, 0.0)
