"""One pipeline of each kind, tiny: a clip of it, a profile of it, and a wish that goes on from that.

Two experts, an image, a video, a second text, several modalities.
"""

from __future__ import annotations

import importlib
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from traces import letters

import mixcache
from mixcache import generation
from mixcache.calibration import CalibrationConfig, calibrate
from mixcache.decision import Granularity
from mixcache.hosts.diffusers.levels import levels_of_steps
from mixcache.metrics import video_psnr
from mixcache.policies.budget import num_computed_for
from mixcache.profiles import Profile, ProfileError, weights_hash

NUM_STEPS = 12
"""Of two experts twice as many: each has a loop of its own."""
KINDS = {
    "two experts": ("wan", "wan-t2v-two-experts", {}),
    "two experts, of which one is guided": ("wan", "wan-t2v-two-experts", {"guidance_scale_2": 1.0}),
    "two experts and an image": ("wan", "wan-i2v-two-experts", {}),
    "an image": ("wan", "wan-ti2v-image", {}),
    "an image, in one call for both branches": ("cogvideox", "cogvideox-i2v", {}),
    "a video": ("wan", "wan-v2v", {"strength": 0.9}),
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
    num_steps = NUM_STEPS * (1 + kind.startswith("two experts"))
    arguments = variants[name].arguments() | {"num_inference_steps": num_steps} | changes
    arguments.pop("output_type", None)
    return variants[name].build(), arguments.pop("prompt"), arguments


def calibrated(pipeline: Any, prompt: str, arguments: dict[str, Any]) -> Profile:
    return calibrate(pipeline, CalibrationConfig(model="tiny", prompts=(prompt,), arguments=arguments))


def experts_of(pipeline: Any) -> list[torch.nn.Module]:
    return [module for module in (pipeline.transformer, getattr(pipeline, "transformer_2", None)) if module]


@pytest.mark.usefixtures("steady_times")
@kinds
def test_a_clip_a_profile_and_a_wish(kind: str) -> None:
    pipeline, prompt, arguments = opened(kind)
    plain = generation.generate(pipeline, prompt, seed=0, **arguments)
    assert plain.clip.ndim == 4
    assert plain.clip.shape[-1] == 3
    assert plain.denoising_seconds > 0
    profile = calibrated(pipeline, prompt, arguments)
    assert [expert.weights for expert in profile.experts] == [weights_hash(expert) for expert in experts_of(pipeline)]
    assert profile.num_generations == 3
    with mixcache.enable(pipeline, speedup=1.3, profile=profile) as handle:
        cached = generation.generate(pipeline, prompt, seed=0, **arguments)
        entries = list(handle.trace)
        summary = handle.summary()
        learnt = handle.profile
    assert learnt is not None
    assert (learnt.num_generations, learnt.misfit(*experts_of(pipeline))) == (4, None)
    assert (summary.num_calls_in_full, summary.why_not) == (0, None)
    assert summary.ideal_speedup == pytest.approx(1.3, rel=0.1)
    assert any(entry.granularity is Granularity.STEP for entry in entries)
    assert not np.array_equal(cached.clip, plain.clip)
    assert video_psnr(cached.clip, plain.clip) > 20
    again = generation.generate(pipeline, prompt, seed=0, **arguments)
    assert np.array_equal(again.clip, plain.clip)


# --------------------------------------------------------------------------------------------------------- two experts


@pytest.fixture(scope="module")
def of_two() -> Profile:
    return calibrated(*opened("two experts"))


@pytest.mark.usefixtures("steady_times")
def test_each_expert_keeps_a_wish_in_its_own_steps(of_two: Profile) -> None:
    pipeline, prompt, arguments = opened("two experts")
    with mixcache.enable(pipeline, speedup=1.5, profile=of_two) as handle:
        generation.final_latents(pipeline, prompt, seed=0, **arguments)
        schedule = letters(handle.trace)
    first = sum(level >= pipeline.config.boundary_ratio for level in levels_of_steps(pipeline.scheduler, len(schedule)))
    assert 10 <= first <= len(schedule) - 10
    for own in (schedule[:first], schedule[first:]):
        assert own.count(".") == num_computed_for(1.5, len(own), 0.02)
        assert (own[:2], own[-1]) == ("..", ".")


@pytest.mark.usefixtures("steady_times")
def test_experts_share_a_wish_in_a_run_that_nobody_announces(of_two: Profile) -> None:
    """As where a script goes past the object that is covered: the second expert is told what the first computed."""
    pipeline, prompt, arguments = opened("two experts")
    plain_class, schedules = type(pipeline), []
    for is_announced in (True, False):
        with mixcache.enable(pipeline, speedup=2.0, profile=of_two) as handle:
            call = (type(pipeline) if is_announced else plain_class).__call__
            generator = torch.Generator().manual_seed(0)
            call(pipeline, prompt=prompt, output_type="latent", generator=generator, **arguments)
            assert handle.trace.num_generations == 1
            schedules.append(letters(handle.trace))
    assert schedules[0] == schedules[1]
    assert schedules[0].count(".") < len(schedules[0])


def test_a_profile_must_be_of_both_experts(of_two: Profile) -> None:
    pipeline, _, _ = opened("two experts")
    of_first = replace(of_two, experts=of_two.experts[:1])
    with pytest.raises(ProfileError, match=r"does not fit .* it is of one transformer, and this model has two experts"):
        mixcache.enable(pipeline, speedup=1.3, profile=of_first)
    with torch.no_grad():
        pipeline.transformer_2.proj_out.weight += 1.0
    with pytest.raises(ProfileError, match=r"does not fit .* it is of other weights of the same architecture"):
        mixcache.enable(pipeline, speedup=1.3, profile=of_two)
    for expert in (pipeline.transformer, pipeline.transformer_2):
        assert not hasattr(expert, "_diffusers_hook")


# ----------------------------------------------------------------------------------------------- what is denoised with


def test_final_latents_are_of_everything_that_is_denoised() -> None:
    pipeline, prompt, arguments = opened("video and sound")
    short = arguments | {"num_inference_steps": 2}
    made = pipeline(prompt=prompt, generator=torch.Generator().manual_seed(0), output_type="latent", **short)
    latents = generation.final_latents(pipeline, prompt, seed=0, **short)
    assert torch.equal(latents, torch.cat([made.frames.flatten(), made.audio.flatten()]))
