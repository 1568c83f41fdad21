"""A profile of a tiny pipeline: what is in it, that nothing stays behind, and that a run that was cut off goes on."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import mixcache
from mixcache.calibration import CALIBRATION_SEED, Calibration, CalibrationConfig, calibrate
from mixcache.calibration import runs as runs_module
from mixcache.calibration.assemble import coordinates
from mixcache.calibration.engines import PerturbingEngine
from mixcache.calibration.plans import DAMPINGS, IDENTICAL_DB, PLANNED_SPEEDUPS, best_damping, psnr_of
from mixcache.calibration.runs import MIN_STEPS, WINDOW, Runs
from mixcache.calibration.schedules import AFTER_COMPUTED, windows
from mixcache.decision import Granularity
from mixcache.hosts.diffusers import overlay
from mixcache.planning.profiles import (
    Profile,
    ProfileError,
    fingerprint,
    profile_for,
    shipped_profiles,
    weights_hash,
)
from mixcache.predictors import REUSE, undamped

GUIDANCE = 5.0
NUM_STEPS = 8
ARGUMENTS = {
    "height": 16,
    "width": 16,
    "num_frames": 5,
    "num_inference_steps": NUM_STEPS,
    "guidance_scale": GUIDANCE,
    "max_sequence_length": 24,
}
PROMPTS = ("a circle", "a square")


def config_of(prompts: tuple[str, ...] = PROMPTS, num_steps: int = NUM_STEPS, **changed: Any) -> CalibrationConfig:
    arguments = ARGUMENTS | {"num_inference_steps": num_steps} | changed
    return CalibrationConfig(model="tiny", prompts=prompts, arguments=arguments, num_windows=2, num_impact_steps=2)


@functools.cache
def calibrated(make_pipeline: Callable[..., Any]) -> Profile:
    return calibrate(make_pipeline(), config_of())


@pytest.fixture
def profile(make_pipeline: Callable[..., Any]) -> Profile:
    """Of the tiny pipeline; every pipeline of that seed has these weights."""
    return calibrated(make_pipeline)


class CutOffError(Exception):
    """Stands for whatever ends a run."""


def cut_off_after(num_tasks: int) -> Callable[[int, int], None]:
    def on_task(num_done: int, total: int) -> None:
        if num_done == num_tasks:
            raise CutOffError

    return on_task


def without_times(profile: Profile) -> dict[str, Any]:
    return {name: value for name, value in asdict(profile).items() if name not in ("costs", "provenance")}


@pytest.fixture
def num_runs(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Prompts of all runs that a calibration measured on, in order."""
    runs: list[int] = []
    latents = Runs.latents

    def counted(self: Runs, index: int, *arguments: Any) -> torch.Tensor:
        runs.append(index)
        return latents(self, index, *arguments)

    monkeypatch.setattr(Runs, "latents", counted)
    return runs


# ------------------------------------------------------------------------------------------------------------- profile


def test_a_profile_has_what_it_needs(profile: Profile, pipeline: Any) -> None:
    assert (profile.model, profile.guidance, profile.dtype) == ("tiny", GUIDANCE, "torch.float32")
    assert profile.fingerprint == fingerprint(pipeline.transformer)
    assert profile.weights == weights_hash(pipeline.transformer)
    assert profile.misfit(pipeline.transformer) is None
    assert len(profile.outputs) == len(profile.differences) == len(profile.residuals) == NUM_STEPS
    assert len(profile.sigmas) == NUM_STEPS + 1
    assert profile.sigmas[0] == pytest.approx(1.0, abs=1e-3)
    assert profile.sigmas[-1] == 0.0
    assert set(profile.costs) == {"compute", "step", "cfg", "block"}
    assert set(profile.sensitivity) == {"step", "block"}
    firsts = [profile.sigmas[first] for first in windows(NUM_STEPS, 2)]
    assert [[sigma for sigma, _ in pairs] for pairs in profile.sensitivity.values()] == [firsts, firsts]
    assert all(ratio > 0 for pairs in profile.sensitivity.values() for _, ratio in pairs)
    assert profile.damping in DAMPINGS
    assert math.isfinite(profile.psnr_at_one)
    assert {"prompts", "seed", "scheduler", "versions", "machine", "date"} <= set(profile.provenance)
    assert tuple(profile.provenance["prompts"]) == PROMPTS


def test_impacts_are_over_0_and_means_of_those_by_step(profile: Profile) -> None:
    assert {name: list(rows) for name, rows in profile.impacts_by_step.items()} == {
        name: ["2", "6"] for name in ("step", "cfg", "block")
    }
    for name, rows in profile.impacts_by_step.items():
        assert all(value > 0 for value in rows.values())
        assert profile.impacts[name] == pytest.approx(sum(rows.values()) / 2)


def test_no_strength_changes_nothing(pipeline: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PerturbingEngine, "strength", 1e-30)
    calibration = Calibration(pipeline, config_of())
    calibration.done["0 plain"] = calibration.runs.plain(0)
    # block adds its residual again, which may differ in the last bit of the sum
    assert [calibration.runs.impact(0, granularity, 2) for granularity in (Granularity.STEP, Granularity.CFG)] == [
        0.0,
        0.0,
    ]


def test_carry_is_the_rms_over_the_prompts(pipeline: Any) -> None:
    calibration = Calibration(pipeline, config_of(PROMPTS[:2]))
    first = windows(NUM_STEPS, 2)[0]
    sigmas = [1 - k / NUM_STEPS for k in range(NUM_STEPS)]
    calibration.done["0 plain"] = {"sigmas": sigmas, "counts": [NUM_STEPS]}
    for index, change in ((0, 0.1), (1, 0.3)):
        for window in windows(NUM_STEPS, 2):
            calibration.done[f"{index} sensitivity step {window}"] = {"change": change, "injected": 0.1}
    sigma, ratio = calibration.assembly.sensitivity(Granularity.STEP)[0]
    assert (sigma, ratio) == (sigmas[first], pytest.approx(math.sqrt(5), abs=1e-4))
    calibration.done[f"1 sensitivity step {first}"]["injected"] = 0.0
    assert calibration.assembly.sensitivity(Granularity.STEP)[0][1] == pytest.approx(1.0)


def test_costs_are_times_over_that_of_a_plain_step(pipeline: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A computed step costs a plain one and what it is measured for; `block` is timed in a run of its own."""
    runs: list[set[str]] = []

    def timed(
        _: Any, index: int, names: Sequence[tuple[int, str]], seconds: dict[tuple[int, str], list[float]]
    ) -> None:
        runs.append({name for _, name in names})
        has_block = (0, "block") in names
        values = {"plain": 2.0, "computed": 9.0, AFTER_COMPUTED: 0.7, "step": 0.2, "cfg": 1.0, "block": 0.6}
        for place, name in names:
            value = values[name] * (3 if has_block and name == AFTER_COMPUTED else 1)
            seconds.setdefault((place, name), []).append(value)

    calibration = Calibration(pipeline, config_of(PROMPTS[:1]))
    calibration.done["0 plain"] = calibration.runs.plain(0)
    monkeypatch.setattr(Runs, "_timed", timed)
    calibration.done["0 times"] = calibration.runs.times(0)
    assert calibration.assembly.costs() == {"compute": 1.25, "step": 0.1, "cfg": 0.5, "block": 0.3}
    assert [("block" in names, "cfg" in names) for names in runs if "plain" not in names] == [
        (False, True),
        (True, False),
    ]


def test_too_few_steps(pipeline: Any) -> None:
    with pytest.raises(ValueError, match=r"^4 steps are too few to calibrate on; take 5 at least$"):
        calibrate(pipeline, config_of(prompts=("a circle",), num_steps=4))


def test_few_steps_are_enough_and_nothing_stays_attached(pipeline: Any, generate: Callable[..., Any]) -> None:
    before = generate(pipeline)
    few_steps = calibrate(pipeline, config_of(prompts=("a circle",), num_steps=MIN_STEPS))
    assert {"compute", "step", "cfg", "block"} <= set(few_steps.costs)
    assert not any(overlay.hooks_on(each) for each in (pipeline, *pipeline.transformer.modules()))
    assert "progress_bar" not in vars(pipeline)
    assert torch.equal(generate(pipeline), before)


def test_nothing_stays_attached_after_an_error(pipeline: Any, generate: Callable[..., Any]) -> None:
    before = generate(pipeline)
    for num_tasks in (1, 3, 6):
        with pytest.raises(CutOffError):
            calibrate(pipeline, config_of(num_steps=6), on_task=cut_off_after(num_tasks))
    assert not any(overlay.hooks_on(each) for each in (pipeline, *pipeline.transformer.modules()))
    assert torch.equal(generate(pipeline), before)


def test_without_guidance_there_is_no_cfg(pipeline: Any) -> None:
    profile = calibrate(pipeline, config_of(prompts=("a circle",), num_steps=6, guidance_scale=1.0))
    assert profile.guidance is None
    assert np.abs(profile.differences).max() == 0
    assert "cfg" not in profile.costs
    assert set(profile.impacts) == set(profile.impacts_by_step) == {"step", "block"}


def plain_outputs(pipeline: Any, reused: range = range(0)) -> tuple[torch.Tensor, torch.Tensor]:
    """Final latents, and the guided output of every step; steps in `reused` repeat the outputs before them."""
    outputs: list[torch.Tensor] = []
    forward = pipeline.transformer.forward

    def watched(*arguments: Any, **named: Any) -> Any:
        step = len(outputs) // 2  # cond and then uncond
        output = (outputs[-2],) if step in reused else forward(*arguments, **named)
        outputs.append(output[0])
        return output

    pipeline.transformer.forward = watched
    try:
        generator = torch.Generator().manual_seed(CALIBRATION_SEED)
        latents = pipeline("a circle", generator=generator, output_type="latent", **ARGUMENTS).frames
    finally:
        del pipeline.transformer.forward
    pairs = torch.stack(outputs).unflatten(0, (NUM_STEPS, 2))
    return latents, pairs[:, 1] + GUIDANCE * (pairs[:, 0] - pairs[:, 1])


def rms(tensor: torch.Tensor) -> float:
    return tensor.double().square().mean().sqrt().item()


def test_the_sensitivity_agrees_with_a_direct_computation(pipeline: Any) -> None:
    first = 3
    calibration = Calibration(pipeline, config_of())
    calibration.done["0 plain"] = calibration.runs.plain(0)
    carried = calibration.runs.sensitivity(0, Granularity.STEP, first)
    latents, guided = plain_outputs(pipeline)
    assert torch.equal(latents, calibration.done["0 plain"]["latents"])
    reused = range(first, first + WINDOW)
    changed, _ = plain_outputs(pipeline, reused)
    assert carried["change"] == pytest.approx(rms(changed - latents) / rms(latents), rel=1e-4)
    sigmas = [*calibration.done["0 plain"]["sigmas"], 0.0]
    moved = sum((sigmas[step] - sigmas[step + 1]) * (guided[first - 1] - guided[step]) for step in reused)
    assert carried["injected"] == pytest.approx(rms(moved) / rms(latents), rel=1e-4)


def test_points_are_as_far_apart_as_the_outputs(pipeline: Any) -> None:
    plain = Calibration(pipeline, config_of()).runs.plain(0)
    latents, guided = plain_outputs(pipeline)
    points = coordinates(plain["gram"])
    points = points[:NUM_STEPS] + (1 - GUIDANCE) * points[NUM_STEPS:]
    for one, other in ((0, 1), (2, 3), (3, 7)):
        distance = rms(guided[one] - guided[other]) / rms(latents)
        assert np.linalg.norm(points[one] - points[other]) == pytest.approx(distance, rel=1e-3)


def test_coordinates_reproduce_inner_products() -> None:
    torch.manual_seed(0)
    points = torch.randn(12, 30, dtype=torch.float64)
    gram = points @ points.T
    found = coordinates(gram)
    assert found.shape == (12, 12)
    assert np.allclose(found @ found.T, gram.numpy())
    flat = coordinates(torch.ones(5, 2, dtype=torch.float64) @ torch.ones(2, 5, dtype=torch.float64))
    assert flat.shape == (5, 1)


@pytest.mark.parametrize(
    ("num_steps", "count", "expected"), [(50, 1, [1]), (8, 2, [1, 7]), (50, 3, [1, 25, 49]), (4, 8, [1, 2, 3])]
)
def test_windows_are_spread_over_the_steps(num_steps: int, count: int, expected: list[int]) -> None:
    assert windows(num_steps, count) == expected


# ------------------------------------------------------------------------------------------------------------- cut off


def test_a_run_that_was_cut_off_goes_on(profile: Profile, pipeline: Any, tmp_path: Path, num_runs: list[int]) -> None:
    """All runs together are as many as those of a run that was not cut off."""
    out = tmp_path / "tiny.json"
    for num_tasks, num_expected in ((1, 1), (7, 7), (14, 19), (30, 34)):  # the twelfth task, the times, takes 6 runs
        with pytest.raises(CutOffError):
            calibrate(pipeline, config_of(), out, cut_off_after(num_tasks))
        assert len(num_runs) == num_expected
        assert [path.name for path in tmp_path.iterdir()] == ["tiny.json.partial"]
    tasks: list[tuple[int, int]] = []
    resumed = calibrate(pipeline, config_of(), out, lambda *told: tasks.append(told))
    assert without_times(resumed) == without_times(profile)
    assert Profile.load(out) == resumed
    assert [path.name for path in tmp_path.iterdir()] == ["tiny.json"]
    # one for the trajectory, 4 for sensitivity, 6 for impacts and 6 for times
    assert num_runs == [0] * 17 + [1] * 17
    assert tasks == [(number, 44) for number in range(1, 45)]


@pytest.mark.parametrize(
    ("better", "foretold", "expected"),
    [
        (0.5, 20.0, (0.5, 13.0)),  # 36 and 30 dB
        (0.5, math.inf, (0.5, 0.0)),  # plans that cache nothing tell nothing
        (None, 20.0, (1.0, 10.0)),  # all alike: followed all the way
    ],
)
def test_the_trust_with_the_best_clips_is_taken(
    pipeline: Any, better: float | None, foretold: float, expected: tuple[float, float]
) -> None:
    calibration = Calibration(pipeline, config_of(PROMPTS[:1]))
    for damping in DAMPINGS:
        for speedup, psnr in zip(PLANNED_SPEEDUPS, (36.0, 30.0) if damping == better else (33.0, 27.0), strict=True):
            run = {"psnr_db": psnr, "foretold_db": foretold, "speedup": speedup}
            calibration.done[f"0 plan {damping:g} {speedup:g}"] = run
    assert best_damping(calibration.done, 1) == expected


def test_trusts_are_compared_at_one_speedup() -> None:
    """On a line that falls by 10 dB from 1.5 to 2.5, wherever on it the plans are."""
    line = {1.5: 40.0, 2.0: 35.0, 2.5: 30.0}
    for first, second in ((1.5, 2.5), (1.5, 2.0), (2.0, 2.5)):
        runs = [{"speedup": s, "psnr_db": line[s] + off} for s in (first, second) for off in (-1.0, 1.0)]
        assert psnr_of(runs) == pytest.approx(36.5)
    assert psnr_of([{"speedup": 2.0, "psnr_db": psnr} for psnr in (30.0, math.inf)]) == (30 + IDENTICAL_DB) / 2


def test_a_plan_is_tried_with_its_trust(pipeline: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[mixcache.Trace] = []
    calibration = Calibration(pipeline, config_of(PROMPTS[:1]))
    for name, task in itertools.islice(calibration.tasks(), 12):
        calibration.done[name] = task()
    enable = runs_module.enable

    def watched(*arguments: Any) -> Any:
        handle = enable(*arguments)
        seen.append(handle.trace)
        return handle

    monkeypatch.setattr(runs_module, "enable", watched)
    result = calibration._planned(0, 0.75, 1.5)
    plan = calibration.plans.plan(0.75, 1.5)
    assert result["speedup"] == plan.speedup
    assert result["foretold_db"] == plan.psnr_db
    cached = [entry for entry in seen[0] if entry.granularity is not Granularity.COMPUTE]
    assert [(entry.granularity, undamped(entry.predictor)[0]) for entry in seen[0]][1:] == list(plan.choices)[1:]
    followed = [entry for entry in cached if entry.predictor != REUSE and entry.reason != "planned, damped"]
    assert followed
    assert all(undamped(entry.predictor)[1] == 0.75 for entry in followed)


def test_plans_are_tried_whatever_the_machine_is_like(pipeline: Any) -> None:
    """Of a schedule's costs only its work counts, so a slow clock changes no trial."""
    calibration = Calibration(pipeline, config_of(PROMPTS[:1]))
    for name, task in itertools.islice(calibration.tasks(), 12):
        calibration.done[name] = task()
    plan = calibration.plans.plan(0.5, 1.5)
    assert plan.damping == 0.5
    assert 1.2 < plan.speedup < 1.9
    slow = Calibration(pipeline, config_of(PROMPTS[:1]))
    times = calibration.done["0 times"]
    costs = [{name: 2 * cost for name, cost in of_expert.items()} for of_expert in times["costs"]]
    slow.done.update(calibration.done | {"0 times": times | {"costs": costs}})
    assert slow.plans.plan(0.5, 1.5) == plan


def cut_off(pipeline: Any, out: Path, **changed: Any) -> Path:
    """The unfinished file of a run that was cut off."""
    with pytest.raises(CutOffError):
        calibrate(pipeline, config_of(**changed), out, cut_off_after(1))
    return out.with_name(f"{out.name}.partial")


def test_a_run_goes_on_in_another_process(pipeline: Any, make_pipeline: Callable[..., Any], tmp_path: Path) -> None:
    """There diffusers lists in another order which of the scheduler's settings were not given."""
    unfinished = cut_off(pipeline, tmp_path / "tiny.json")
    other = make_pipeline()
    notes = other.scheduler.config["_use_default_values"]
    other.scheduler.register_to_config(_use_default_values=notes[::-1])
    assert len(notes) > 1
    assert list(Calibration(other, config_of(), unfinished).done) == ["0 plain"]


def test_an_unfinished_file_of_another_calibration(
    pipeline: Any, make_pipeline: Callable[..., Any], tmp_path: Path
) -> None:
    out = tmp_path / "tiny.json"
    unfinished = cut_off(pipeline, out)
    content = unfinished.read_bytes()
    others = [
        (pipeline, config_of(prompts=("a circle", "a triangle"))),
        (pipeline, config_of(num_steps=6)),
        (make_pipeline(seed=1), config_of()),
        (make_pipeline(scheduler="euler"), config_of()),
        (make_pipeline(dtype="bfloat16"), config_of()),
    ]
    for other, config in others:
        with pytest.raises(ValueError, match=r"is of another calibration .* delete it to begin anew") as caught:
            calibrate(other, config, out)
        assert str(unfinished) in str(caught.value)
    assert unfinished.read_bytes() == content


@pytest.mark.parametrize("kept", [0, 100, -10])
def test_a_damaged_unfinished_file(pipeline: Any, tmp_path: Path, kept: int) -> None:
    out = tmp_path / "tiny.json"
    unfinished = cut_off(pipeline, out)
    unfinished.write_bytes(unfinished.read_bytes()[:kept])
    with pytest.raises(ValueError, match="is no calibration to go on from; delete it to begin anew") as caught:
        calibrate(pipeline, config_of(), out)
    assert str(unfinished) in str(caught.value)


@pytest.mark.parametrize("content", [{"header": "0"}, {"done": {}}, [1, 2], {"header": "0", "done": 3}])
def test_an_unfinished_file_of_something_else(pipeline: Any, tmp_path: Path, content: Any) -> None:
    torch.save(content, tmp_path / "tiny.json.partial")
    with pytest.raises(ValueError, match="is no calibration to go on from"):
        calibrate(pipeline, config_of(), tmp_path / "tiny.json")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"prompts": ()}, "calibration needs a prompt at least"),
        ({"num_windows": 0}, "num_windows=0 must be a whole number of at least 1"),
        ({"num_impact_steps": 1.5}, "num_impact_steps=1.5 must be a whole number of at least 1"),
    ],
)
def test_wrong_settings(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CalibrationConfig(**{"model": "tiny", "prompts": PROMPTS} | settings)


# ----------------------------------------------------------------------------------------------------------------- use


def cheap(profile: Profile) -> Profile:
    """With the costs of a large model: those of a tiny one are all overhead, and change from run to run."""
    return replace(profile, costs={"compute": 1.0, "step": 0.05, "cfg": 0.5, "block": 0.6})


@pytest.mark.parametrize("is_file", [False, True])
def test_a_profile_makes_a_plan(
    profile: Profile, pipeline: Any, generate: Callable[..., Any], tmp_path: Path, is_file: bool
) -> None:
    profile = cheap(profile)
    profile.save(tmp_path / "tiny.json")
    given = tmp_path / "tiny.json" if is_file else profile
    with mixcache.enable(pipeline, speedup=1.5, profile=given) as handle:
        assert handle.plan is None
        generate(pipeline, num_steps=NUM_STEPS)
        plan = handle.plan
        assert plan.speedup == pytest.approx(1.5, rel=0.1)
        assert np.isfinite(plan.psnr_db)
        assert [(entry.granularity, undamped(entry.predictor)[0]) for entry in handle.trace][1:] == list(plan.choices)[
            1:
        ]
        assert {entry.reason for entry in handle.trace} == {"warm-up", "planned"}


def test_a_plan_is_made_for_another_number_of_steps(
    profile: Profile, pipeline: Any, generate: Callable[..., Any]
) -> None:
    with mixcache.enable(pipeline, speedup=1.5, profile=cheap(profile)) as handle:
        generate(pipeline, num_steps=12)
        counts = handle.summary()["granularity_counts"]
    assert sum(counts.values()) == 12
    assert 0 < counts["compute"] < 12


def test_a_profile_of_another_model_is_refused(profile: Profile, make_pipeline: Callable[..., Any]) -> None:
    other = make_pipeline(seed=1)
    with pytest.raises(ProfileError, match="it is of other weights of the same architecture; force_profile=True"):
        mixcache.enable(other, speedup=1.5, profile=cheap(profile))
    assert not hasattr(other.transformer, "_diffusers_hook")
    with mixcache.enable(other, speedup=1.5, profile=cheap(profile), force_profile=True) as handle:
        assert handle.is_enabled


def test_a_model_without_a_profile_cannot_be_planned_for(pipeline: Any) -> None:
    with pytest.raises(ProfileError, match="no profile for this WanTransformer3DModel: make one with"):
        mixcache.enable(pipeline, speedup=1.5)


def test_a_shipped_profile_is_found_for_its_model_and_no_other(pipeline: Any) -> None:
    from mixcache import zoo

    transformer = zoo.load("shapes-wan").transformer
    found = profile_for(transformer)
    assert found is not None
    assert set(found.impacts) == {"step", "cfg", "block"}
    assert profile_for(pipeline.transformer) is None
    for profile in shipped_profiles():
        assert {"prompts", "versions", "date", "strength"} <= set(profile.provenance)


def test_one_profile_serves_several_numbers_of_steps(make_pipeline: Callable[..., Any], tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    out = tmp_path / "two.json"
    profile = calibrate(
        make_pipeline(), config_of(), out, lambda *both: told.append(both), step_counts=(NUM_STEPS, 5, NUM_STEPS)
    )
    assert [profile.num_steps, *(other.num_steps for other in profile.others)] == [NUM_STEPS, 5]
    assert Profile.load(out) == profile
    assert told[-1][0] == told[-1][1]
    assert [done for done, _ in told] == sorted(done for done, _ in told)
    assert list(tmp_path.iterdir()) == [out]
