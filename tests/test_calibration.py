"""A profile of a tiny pipeline: what is in it, that nothing stays behind, and that a run that was cut off goes on."""

from __future__ import annotations

import functools
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch

import mixcache
from mixcache import generation
from mixcache.calibration import (
    CALIBRATION_SEED,
    ERRORS,
    IMPACT_PLACES,
    NOTHING,
    CalibrationConfig,
    Measured,
    built_in_prompts,
    calibrate,
)
from mixcache.calibration.perturbing import STRENGTH, PerturbingEngine
from mixcache.core.calls import CallInfo, Span
from mixcache.decision import Granularity
from mixcache.hosts.diffusers import overlay
from mixcache.hosts.diffusers.reader import Reader
from mixcache.metrics import video_psnr
from mixcache.policies import AlwaysCompute, Hold
from mixcache.profiles import Profile, ProfileError
from mixcache.trace import Trace, TraceWriter

NUM_STEPS = 12
ARGUMENTS = {
    "height": 16,
    "width": 16,
    "num_frames": 5,
    "num_inference_steps": NUM_STEPS,
    "guidance_scale": 5.0,
    "max_sequence_length": 24,
}
PROMPTS = ("a circle", "a square")


def config_of(prompts: tuple[str, ...] = PROMPTS, *, impacts: bool = False, **changed: Any) -> CalibrationConfig:
    return CalibrationConfig(model="tiny", prompts=prompts, arguments=ARGUMENTS | changed, impacts=impacts)


@functools.cache
def calibrated(make_pipeline: Callable[..., Any]) -> Profile:
    return calibrate(make_pipeline(), config_of())


@pytest.fixture
def profile(make_pipeline: Callable[..., Any]) -> Profile:
    """Of the tiny pipeline; every pipeline of that seed has these weights."""
    return calibrated(make_pipeline)


class CutOffError(Exception):
    """Stands for whatever ends a run."""


def cut_off_after(num_clips: int) -> Callable[[int, int], None]:
    def on_clip(num_done: int, total: int) -> None:
        if num_done == num_clips:
            raise CutOffError

    return on_clip


def without_times(profile: Profile) -> dict[str, Any]:
    return {name: value for name, value in asdict(profile).items() if name not in ("cached_share", "provenance")}


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Prompts of the clips that were generated, in order."""
    prompts: list[str] = []
    generate = generation.generate

    def counted(pipeline: Any, prompt: str, **arguments: Any) -> Any:
        prompts.append(prompt)
        return generate(pipeline, prompt, **arguments)

    monkeypatch.setattr(generation, "generate", counted)
    return prompts


# ------------------------------------------------------------------------------------------------------------- profile


def test_a_profile_has_what_was_seen_and_what_it_is_of(profile: Profile, pipeline: Any) -> None:
    assert (profile.model, profile.num_generations, profile.impacts) == ("tiny", 6, {})
    assert profile.misfit(pipeline.transformer) is None
    assert len(profile.rates) > 3
    assert profile.cached_share is not None
    assert {(row[0], row[1]) for row in profile.psnrs} == {(error, NUM_STEPS) for error in ERRORS}
    assert len(profile.psnrs) == len(PROMPTS) * len(ERRORS)
    assert {"seed", "scheduler", "versions", "machine", "date"} <= set(profile.provenance)
    assert profile.provenance["prompts"] == list(PROMPTS)
    assert profile.provenance["arguments"] == ARGUMENTS


def test_psnrs_are_those_of_clips_made_by_hand(profile: Profile, pipeline: Any) -> None:
    def clip(error: float) -> Any:
        with mixcache.enable(pipeline, Hold(error=error)):
            return generation.generate(pipeline, PROMPTS[1], seed=CALIBRATION_SEED + 1, **ARGUMENTS).clip

    plain = generation.generate(pipeline, PROMPTS[1], seed=CALIBRATION_SEED + 1, **ARGUMENTS).clip
    of_second = profile.psnrs[len(ERRORS) :]
    assert [row[2] for row in of_second] == [pytest.approx(video_psnr(clip(e), plain), abs=1e-3) for e in ERRORS]
    assert (clip(NOTHING) == plain).all()


def test_clips_in_which_nothing_could_be_cached_tell_no_psnr(pipeline: Any, generate: Callable[..., Any]) -> None:
    profile = calibrate(pipeline, config_of(PROMPTS[:1], num_inference_steps=3))
    assert profile.psnrs == []
    assert profile.rates
    with pytest.raises(ProfileError, match="quality=40 is a PSNR, which no profile of this model estimates"):
        mixcache.enable(pipeline, quality=40.0, profile=profile)


def test_one_profile_serves_several_numbers_of_steps(pipeline: Any, tmp_path: Path, made: list[str]) -> None:
    told: list[tuple[int, int]] = []
    out = tmp_path / "two.json"
    profile = calibrate(
        pipeline, config_of(PROMPTS[:1]), out, lambda *both: told.append(both), step_counts=(NUM_STEPS, 16, NUM_STEPS)
    )
    assert [row[:2] for row in profile.psnrs] == [[error, count] for count in (NUM_STEPS, 16) for error in ERRORS]
    assert Profile.load(out) == profile
    assert told == [(3, 6), (6, 6)]
    assert made == ["a circle"] * 6
    assert list(tmp_path.iterdir()) == [out]


def test_nothing_stays_attached(pipeline: Any, generate: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mixcache.calibration.IMPACT_PLACES", IMPACT_PLACES[:1])
    before = generate(pipeline)
    calibrate(pipeline, config_of(PROMPTS[:1], impacts=True), step_counts=(4,))
    with pytest.raises(CutOffError):
        calibrate(pipeline, config_of(), on_clip=cut_off_after(3))
    assert not any(overlay.hooks_on(each) for each in (pipeline, *pipeline.transformer.modules()))
    assert torch.equal(generate(pipeline), before)


def test_nothing_stays_attached_where_a_clip_fails(
    pipeline: Any, generate: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = generate(pipeline)
    for name in ("generate", "final_latents"):
        with monkeypatch.context() as patched:
            patched.setattr(generation, name, lambda *_, **__: (_ for _ in ()).throw(CutOffError))
            with pytest.raises(CutOffError):
                calibrate(pipeline, config_of(PROMPTS[:1], impacts=True))
    assert not any(overlay.hooks_on(each) for each in (pipeline, *pipeline.transformer.modules()))
    assert torch.equal(generate(pipeline), before)


def test_calls_that_say_too_little_are_nothing_to_calibrate(pipeline: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from mixcache.hosts.diffusers.clock import UnknownCallError

    def unknown(*_: Any) -> None:
        raise UnknownCallError("it is not known")

    monkeypatch.setattr(Reader, "read", unknown)
    with pytest.raises(ValueError, match="do not say enough to cache them; nothing to calibrate"):
        calibrate(pipeline, config_of())


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        ({"colour": "red"}, ValueError, "colour"),
        ({"image": object()}, ValueError, "image"),
    ],
)
def test_wrong_arguments_are_found_before_anything_runs(
    pipeline: Any, changed: dict[str, Any], error: type[Exception], message: str, made: list[str]
) -> None:
    with pytest.raises(error, match=message):
        calibrate(pipeline, config_of(**changed))
    assert not made


def test_wrong_settings() -> None:
    with pytest.raises(ValueError, match="calibration needs a prompt at least"):
        config_of(prompts=())


def test_built_in_prompts_are_not_those_of_the_benchmarks() -> None:
    from mixcache.zoo import world

    held_out = {scene.caption for scene in world.sample_scenes(64, CALIBRATION_SEED, held_out=True)}
    prompts = built_in_prompts(8)
    assert len(prompts) == 8
    assert not held_out & set(prompts)


# ------------------------------------------------------------------------------------------------------------- impacts


@pytest.fixture(scope="module")
def measured(make_pipeline: Callable[..., Any]) -> Measured:
    """The tiny pipeline with Euler's scheduler, its impacts measured."""
    measured = Measured(make_pipeline(scheduler="euler"), config_of(PROMPTS[:1], impacts=True), None, (8,))
    for name, _, task in measured.tasks():
        measured.once(name, task)
    return measured


def test_an_impact_is_the_mean_over_places(measured: Measured) -> None:
    impacts = measured.profile().impacts
    assert set(impacts) == {"step", "cfg", "block"}
    for granularity in Granularity.STEP, Granularity.CFG, Granularity.BLOCK:
        values = [measured.done[f"{granularity} {place}"] for place in IMPACT_PLACES]
        assert all(value > 0 for value in values)
        assert impacts[granularity.value] == pytest.approx(sum(values) / 4)


def test_clips_of_impacts_are_counted(pipeline: Any) -> None:
    tasks = list(Measured(pipeline, config_of(PROMPTS[:1], impacts=True), None).tasks())
    assert sum(count for _, count, _ in tasks) == 3 + 3 * 8


def test_an_impact_in_the_last_step_is_what_euler_makes_of_the_noise(measured: Measured) -> None:
    """There the latents move by the last level times the noise, and by nothing else."""
    pipeline, outputs = measured.pipeline, []
    hook = pipeline.transformer.register_forward_hook(lambda _m, _i, output: outputs.append(output[0].double()))
    try:
        latents = generation.final_latents(
            pipeline, PROMPTS[0], seed=CALIBRATION_SEED, **ARGUMENTS | {"num_inference_steps": 8}
        ).double()
    finally:
        hook.remove()
    generator = torch.Generator().manual_seed(CALIBRATION_SEED)
    noise = torch.randn(latents.shape, generator=generator)
    cond, uncond = (rms(output) * noise for output in outputs[-2:])
    guided = uncond + ARGUMENTS["guidance_scale"] * (cond - uncond)
    expected = float(pipeline.scheduler.sigmas[7]) * rms(guided) / rms(latents)
    assert measured.done[f"{Granularity.STEP} 0.875"] == pytest.approx(expected, rel=1e-4)


def test_no_strength_changes_nothing(make_pipeline: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PerturbingEngine, "strength", 0.0)
    measured = Measured(make_pipeline(), config_of(PROMPTS[:1], impacts=True), None)
    # block adds its residual again, which may differ in the last bit of the sum
    for granularity in (Granularity.STEP, Granularity.CFG):
        assert measured._impact(8, granularity, 0.375) == 0.0


def test_an_impact_of_nothing_is_left_out(pipeline: Any) -> None:
    measured = Measured(pipeline, config_of(PROMPTS[:1], impacts=True), None)
    for granularity, value in (("step", 2.0), ("cfg", 0.0), ("block", 1.0)):
        for place in IMPACT_PLACES:
            measured.done[f"{Granularity(granularity)} {place}"] = value
    assert measured.profile().impacts == {"step": 2.0, "block": 1.0}


def test_without_guidance_there_is_no_impact_of_cfg(pipeline: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mixcache.calibration.IMPACT_PLACES", IMPACT_PLACES[:1])
    profile = calibrate(pipeline, config_of(PROMPTS[:1], impacts=True, guidance_scale=1.0), step_counts=(4,))
    assert set(profile.impacts) == {"step", "block"}


def rms(tensor: torch.Tensor) -> float:
    return tensor.double().square().mean().sqrt().item()


class FixedRun:
    """A call whose output and residual are given; without the span it gives ten times the residual."""

    latents = torch.zeros(1)

    def __init__(self, *values: float) -> None:
        self.output = torch.tensor(values)
        self.records: bool | None = None

    def full(self, *, records: bool) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
        self.records = records
        return self.output, (torch.tensor([2.0, -2.0]),) if records else ()

    def without_span(self, residuals: tuple[torch.Tensor, ...]) -> torch.Tensor:
        return residuals[0] * 10

    def conditional(self) -> torch.Tensor | None:
        raise AssertionError("never asked for")


def perturbed(target: Granularity | None, *calls: tuple[str, tuple[str, ...], FixedRun]) -> list[torch.Tensor]:
    """What the engine makes of the calls of the step that it disturbs."""
    engine = PerturbingEngine(AlwaysCompute(), Span(1, 3, 4), lambda: None, TraceWriter(Trace()))
    engine.target, engine.step, engine.noise_seed = target, 3, 7
    infos = [CallInfo(branch=b, step=3, num_steps=8, sigma=0.5, signature=(), parts=parts) for b, parts, _ in calls]
    return [engine.call(info, run) for info, (_, _, run) in zip(infos, calls, strict=True)]


def noise_of(count: int) -> torch.Tensor:
    return torch.randn(count, generator=torch.Generator().manual_seed(7))


def test_a_step_is_disturbed_by_a_share_of_its_outputs() -> None:
    cond, uncond = FixedRun(3.0, 4.0), FixedRun(1.0, 1.0)
    outputs = perturbed(Granularity.STEP, ("cond", (), cond), ("uncond", (), uncond))
    assert torch.allclose(outputs[0], cond.output + STRENGTH * 12.5**0.5 * noise_of(2))
    assert torch.allclose(outputs[1], uncond.output + STRENGTH * noise_of(2))


def test_cfg_is_disturbed_by_a_share_of_the_difference() -> None:
    cond, uncond = FixedRun(3.0, 4.0), FixedRun(1.0, 2.0)
    outputs = perturbed(Granularity.CFG, ("cond", (), cond), ("uncond", (), uncond))
    assert torch.equal(outputs[0], cond.output)
    assert torch.allclose(outputs[1], uncond.output + STRENGTH * 2.0 * noise_of(2))


@pytest.mark.parametrize("parts", [("cond", "uncond"), ("uncond", "cond")])
def test_cfg_of_both_branches_in_one_call(parts: tuple[str, str]) -> None:
    values = {"cond": (3.0, 4.0), "uncond": (1.0, 2.0)}
    run = FixedRun(*(value for branch in parts for value in values[branch]))
    output = perturbed(Granularity.CFG, ("both", parts, run))[0]
    found = dict(zip(parts, output.chunk(2), strict=True))
    assert torch.equal(found["cond"], torch.tensor(values["cond"]))
    assert torch.allclose(found["uncond"], torch.tensor(values["uncond"]) + STRENGTH * 2.0 * noise_of(2))


def test_block_is_disturbed_by_a_share_of_the_residual() -> None:
    run = FixedRun(3.0, 4.0)
    (output,) = perturbed(Granularity.BLOCK, ("cond", (), run))
    assert torch.allclose(output, 10 * (torch.tensor([2.0, -2.0]) + STRENGTH * 2.0 * noise_of(2)))
    assert run.records


@pytest.mark.parametrize(("target", "step"), [(None, 3), (Granularity.STEP, 2), (Granularity.BLOCK, 4)])
def test_all_other_outputs_are_the_very_tensors(target: Granularity | None, step: int) -> None:
    engine = PerturbingEngine(AlwaysCompute(), Span(1, 3, 4), lambda: None, TraceWriter(Trace()))
    engine.target, engine.step = target, 3
    run = FixedRun(3.0, 4.0)
    info = CallInfo(branch="cond", step=step, num_steps=8, sigma=0.5, signature=())
    assert engine.call(info, run) is run.output
    assert (run.records, engine.num_steps) == (False, 8)


# ------------------------------------------------------------------------------------------------------------- cut off


def test_a_run_that_was_cut_off_goes_on(profile: Profile, pipeline: Any, tmp_path: Path, made: list[str]) -> None:
    """All clips together are as many as those of a run that was not cut off."""
    out = tmp_path / "tiny.json"
    with pytest.raises(CutOffError):
        calibrate(pipeline, config_of(), out, cut_off_after(3))
    assert made == ["a circle"] * 3
    assert [path.name for path in tmp_path.iterdir()] == ["tiny.json.partial"]
    told: list[tuple[int, int]] = []
    resumed = calibrate(pipeline, config_of(), out, lambda *both: told.append(both))
    assert without_times(resumed) == without_times(profile)
    assert Profile.load(out) == resumed
    assert [path.name for path in tmp_path.iterdir()] == ["tiny.json"]
    assert made == ["a circle"] * 3 + ["a square"] * 3
    assert told == [(3, 6), (6, 6)]


def cut_off(pipeline: Any, out: Path, **changed: Any) -> Path:
    """The unfinished file of a run that was cut off."""
    with pytest.raises(CutOffError):
        calibrate(pipeline, config_of(**changed), out, cut_off_after(3))
    return out.with_name(f"{out.name}.partial")


def test_a_run_goes_on_with_a_scheduler_that_lists_its_notes_in_another_order(
    pipeline: Any, make_pipeline: Callable[..., Any], tmp_path: Path
) -> None:
    """As different processes do with the settings that were not given."""
    unfinished = cut_off(pipeline, tmp_path / "tiny.json")
    other = make_pipeline()
    notes = other.scheduler.config["_use_default_values"]
    other.scheduler.register_to_config(_use_default_values=notes[::-1])
    assert len(notes) > 1
    assert list(Measured(other, config_of(), unfinished).done) == ["None 0"]


@pytest.mark.slow
def test_a_run_goes_on_in_another_process(profile: Profile, pipeline: Any, tmp_path: Path, made: list[str]) -> None:
    out = tmp_path / "tiny.json"
    lines = (
        "import sys, pathlib, conftest, test_calibration as t",
        "t.cut_off(conftest.build_pipeline(), pathlib.Path(sys.argv[1]))",
    )
    environment = {"PYTHONPATH": ":".join([str(Path(__file__).parent), *sys.path]), "PYTHONHASHSEED": "11"}
    subprocess.run([sys.executable, "-c", "\n".join(lines), str(out)], check=True, env=environment)
    resumed = calibrate(pipeline, config_of(), out)
    assert made == ["a square"] * 3
    assert without_times(resumed) == without_times(profile)


def test_an_unfinished_file_of_another_calibration(
    pipeline: Any, make_pipeline: Callable[..., Any], tmp_path: Path
) -> None:
    out = tmp_path / "tiny.json"
    unfinished = cut_off(pipeline, out)
    content = unfinished.read_bytes()
    others = [
        (pipeline, config_of(prompts=("a circle", "a triangle"))),
        (pipeline, config_of(impacts=True)),
        (pipeline, config_of(num_inference_steps=6)),
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


@pytest.mark.parametrize("content", [{"header": "0"}, {"done": {}}, [1, 2], {"header": "0", "done": 3, "known": {}}])
def test_an_unfinished_file_of_something_else(pipeline: Any, tmp_path: Path, content: Any) -> None:
    (tmp_path / "tiny.json.partial").write_text(json.dumps(content))
    with pytest.raises(ValueError, match="is no calibration to go on from"):
        calibrate(pipeline, config_of(), tmp_path / "tiny.json")


# ----------------------------------------------------------------------------------------------------------------- use


@pytest.mark.parametrize("is_file", [False, True])
def test_a_profile_says_which_error_a_psnr_takes(
    profile: Profile, pipeline: Any, generate: Callable[..., Any], tmp_path: Path, is_file: bool
) -> None:
    profile.save(tmp_path / "tiny.json")
    given = tmp_path / "tiny.json" if is_file else profile
    wanted = profile.foretold(0.4, 12).psnr_db
    with mixcache.enable(pipeline, quality=wanted, profile=given) as handle:
        latents = generate(pipeline)
    assert profile.estimate(wanted, 12).error == pytest.approx(0.4)
    with mixcache.enable(pipeline, error=0.4, profile=given) as other:
        assert torch.equal(generate(pipeline), latents)
    assert [entry.granularity for entry in handle.trace] == [entry.granularity for entry in other.trace]
    assert handle.summary()["granularity_counts"]["step"] > 0
    assert f"quality      {wanted:.3g} dB or more in nine clips of ten" in str(handle.summary())
    assert other.summary().estimate is None


def test_a_profile_of_another_model_is_refused(profile: Profile, make_pipeline: Callable[..., Any]) -> None:
    other = make_pipeline(seed=1)
    with pytest.raises(ProfileError, match="does not fit this model: it is of other weights of the same architecture"):
        mixcache.enable(other, speedup=1.5, profile=profile)
    assert not hasattr(other.transformer, "_diffusers_hook")
