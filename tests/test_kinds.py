"""One pipeline of each kind, tiny: a clip of it, a profile of it, and a plan from that.

Two experts, an image, a video, a second text, several modalities.
"""

from __future__ import annotations

import importlib
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

import mixcache
from mixcache import generation
from mixcache.calibration import CalibrationConfig, calibrate
from mixcache.calibration.runs import MIN_STEPS
from mixcache.decision import Granularity
from mixcache.metrics import video_psnr
from mixcache.planning.profiles import Profile, ProfileError, weights_hash

NUM_STEPS = 12
CHEAP = {"compute": 1.0, "step": 0.05, "cfg": 0.5, "block": 0.6}
KINDS = {
    "two experts": ("wan", "wan-t2v-two-experts", {}),
    "two experts, of which one is guided": ("wan", "wan-t2v-two-experts", {"guidance_scale_2": 1.0}),
    "two experts and an image": ("wan", "wan-i2v-two-experts", {}),
    "an image": ("wan", "wan-ti2v-image", {}),
    "an image, in one call for both branches": ("cogvideox", "cogvideox-i2v", {}),
    "a video": ("wan", "wan-v2v", {"strength": 0.8}),
    "a negative text": ("wan", "wan-t2v", {"negative_prompt": "a blue square"}),
    "a second text": ("hunyuan", "hunyuan-video-true-cfg", {"prompt_2": "a blue square"}),
    "video and sound": ("ltx2", "ltx2-t2v", {}),
    "a guider": ("hunyuan", "hunyuan15-cfg", {}),
}
QUICK = ("two experts", "an image")
kinds = pytest.mark.parametrize(
    "kind", [kind if kind in QUICK else pytest.param(kind, marks=pytest.mark.slow) for kind in KINDS]
)


def opened(kind: str) -> tuple[Any, str, dict[str, Any]]:
    """The pipeline, its prompt, and the other arguments of its call."""
    family, name, changes = KINDS[kind]
    variants = {variant.name: variant for variant in importlib.import_module(f"conformance.{family}").VARIANTS}
    arguments = variants[name].arguments() | {"num_inference_steps": NUM_STEPS} | changes
    arguments.pop("output_type", None)
    return variants[name].build(), arguments.pop("prompt"), arguments


def cheap(profile: Profile) -> Profile:
    """With the costs of a large model."""
    second = profile.second and replace(profile.second, costs=CHEAP)
    return replace(profile, costs=CHEAP, second=second)


def calibrated(pipeline: Any, prompt: str, arguments: dict[str, Any]) -> Profile:
    config = CalibrationConfig(model="tiny", prompts=(prompt,), arguments=arguments, num_windows=1, num_impact_steps=1)
    return calibrate(pipeline, config)


@kinds
def test_a_clip_a_profile_and_a_plan(kind: str) -> None:
    pipeline, prompt, arguments = opened(kind)
    plain = generation.generate(pipeline, prompt, seed=0, **arguments)
    assert plain.clip.ndim == 4
    assert plain.clip.shape[-1] == 3
    assert plain.denoising_seconds > 0
    profile = calibrated(pipeline, prompt, arguments)
    experts = [module for module in (pipeline.transformer, getattr(pipeline, "transformer_2", None)) if module]
    assert [own.weights for own in profile.experts] == [weights_hash(expert) for expert in experts]
    with mixcache.enable(pipeline, speedup=1.3, profile=cheap(profile)) as handle:
        cached = generation.generate(pipeline, prompt, seed=0, **arguments)
        assert handle.plan.speedup == pytest.approx(1.3, rel=0.1)
        planned = [denoiser.engine.policy_state.plan for denoiser in handle.denoisers]
        entries = list(handle.trace)
        assert handle.summary()["num_calls_in_full"] == 0
    assert [len(plan.choices) for plan in planned] == [own.num_steps for own in profile.experts]
    assert len(handle.plan.choices) == len(entries) == profile.num_steps
    assert {entry.reason for entry in entries} >= {"warm-up", "planned"}
    assert any(entry.granularity is not Granularity.COMPUTE for entry in entries)
    assert not np.array_equal(cached.clip, plain.clip)
    assert video_psnr(cached.clip, plain.clip) > 20
    again = generation.generate(pipeline, prompt, seed=0, **arguments)
    assert np.array_equal(again.clip, plain.clip)


# --------------------------------------------------------------------------------------------------------- two experts


@pytest.fixture(scope="module")
def of_two() -> Profile:
    return calibrated(*opened("two experts"))


def test_a_profile_of_two_experts_says_of_each_what_it_is(of_two: Profile) -> None:
    pipeline, _, _ = opened("two experts")
    first, second = of_two.experts
    border = pipeline.config.boundary_ratio
    assert (first.guidance, second.guidance) == (5.0, 3.0)
    assert first.sigmas[-2] >= border > second.sigmas[0] == first.sigmas[-1]
    assert second.sigmas[-1] == 0.0
    assert of_two.num_steps == NUM_STEPS == len(first.outputs) + len(second.outputs)
    assert first.share + second.share == pytest.approx(1.0)
    assert set(first.costs) == set(second.costs) == {"compute", "step", "cfg", "block"}


def outputs_of(module: torch.nn.Module) -> list[torch.Tensor]:
    """Filled with what the module gives."""
    seen: list[torch.Tensor] = []
    module.register_forward_hook(lambda _module, _inputs, output: seen.append(output[0].detach().clone()))
    return seen


def test_points_of_both_experts_are_as_far_apart_as_their_outputs(of_two: Profile) -> None:
    """Also those of one from those of the other."""
    pipeline, prompt, arguments = opened("two experts")
    seen = [outputs_of(pipeline.transformer), outputs_of(pipeline.transformer_2)]
    seed = of_two.provenance["seed"]
    latents = generation.final_latents(pipeline, prompt, seed=seed, **arguments)
    conds = torch.cat([torch.stack(outputs[::2]) for outputs in seen]).double()
    points = np.concatenate([np.asarray(own.outputs) for own in of_two.experts])
    rms = latents.double().square().mean().sqrt()
    for one, other in ((0, 1), (2, NUM_STEPS - 2), (len(of_two.outputs) - 1, len(of_two.outputs))):
        distance = (conds[one] - conds[other]).square().mean().sqrt() / rms
        assert np.linalg.norm(points[one] - points[other]) == pytest.approx(float(distance), rel=1e-3)


def test_a_profile_of_two_experts_serves_another_number_of_steps(of_two: Profile) -> None:
    pipeline, prompt, arguments = opened("two experts")
    with mixcache.enable(pipeline, speedup=1.5, profile=cheap(of_two)) as handle:
        generation.final_latents(pipeline, prompt, seed=0, **arguments | {"num_inference_steps": 16})
        assert len(handle.trace) == len(handle.plan.choices) == 16
        assert handle.plan.speedup == pytest.approx(1.5, rel=0.15)
        ideal = handle.summary()["ideal_speedup"]
    assert ideal > 1.2


def test_a_profile_must_be_of_both_experts(of_two: Profile) -> None:
    pipeline, _, _ = opened("two experts")
    of_first = of_two.experts[0]
    with pytest.raises(
        ProfileError, match=r"it is of transformer alone, .* it does not fit transformer_2; force_profile"
    ):
        mixcache.enable(pipeline, speedup=1.3, profile=of_first)
    with torch.no_grad():
        pipeline.transformer_2.proj_out.weight += 1.0
    with pytest.raises(ProfileError, match=r"other weights of the same architecture \(transformer_2\); force_profile"):
        mixcache.enable(pipeline, speedup=1.3, profile=of_two)
    for expert in (pipeline.transformer, pipeline.transformer_2):
        assert not hasattr(expert, "_diffusers_hook")
    with mixcache.enable(pipeline, speedup=1.3, profile=of_two, force_profile=True) as handle:
        assert handle.is_enabled


def test_each_expert_must_do_enough_steps() -> None:
    pipeline, prompt, arguments = opened("two experts")
    with pytest.raises(
        ValueError, match=f"transformer does 4 of the 8 steps, .* each expert does {MIN_STEPS} at least"
    ):
        calibrated(pipeline, prompt, arguments | {"num_inference_steps": 8})


# ----------------------------------------------------------------------------------------------- what is denoised with


def test_final_latents_are_of_everything_that_is_denoised() -> None:
    pipeline, prompt, arguments = opened("video and sound")
    short = arguments | {"num_inference_steps": 2}
    made = pipeline(prompt=prompt, generator=torch.Generator().manual_seed(0), output_type="latent", **short)
    latents = generation.final_latents(pipeline, prompt, seed=0, **short)
    assert torch.equal(latents, torch.cat([made.frames.flatten(), made.audio.flatten()]))
