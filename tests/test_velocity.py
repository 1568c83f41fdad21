"""What is kept of a model that predicts v."""

from __future__ import annotations

import math

import pytest
import torch
from diffusers import CogVideoXDDIMScheduler, DPMSolverMultistepScheduler, FlowMatchEulerDiscreteScheduler

from mixcache.core.calls import Mix
from mixcache.core.velocity import v_from_velocity, velocity_from_v
from mixcache.hosts.diffusers.levels import mixes_of

MIX = Mix(0.6, 0.8)


def scheduler_of(num_steps: int, **config: object) -> CogVideoXDDIMScheduler:
    options = {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    scheduler = CogVideoXDDIMScheduler(**options | config)
    scheduler.set_timesteps(num_steps)
    return scheduler


def test_v_becomes_noise_less_signal_and_back() -> None:
    signal, noise = torch.randn(2, 3, 4), torch.randn(2, 3, 4)
    latents, v = 0.6 * signal + 0.8 * noise, 0.6 * noise - 0.8 * signal
    kept = velocity_from_v(v, latents, MIX)
    torch.testing.assert_close(kept, noise - signal)
    torch.testing.assert_close(v_from_velocity(kept, latents, MIX), v)


def test_conditions_behind_the_latents_are_left_out() -> None:
    latents, v = torch.randn(1, 2, 4, 3), torch.randn(1, 2, 4, 3)
    with_condition = torch.cat([latents, torch.full_like(latents, math.nan)], dim=2)
    assert torch.equal(velocity_from_v(v, with_condition, MIX), velocity_from_v(v, latents, MIX))
    assert torch.equal(v_from_velocity(v, with_condition, MIX), v_from_velocity(v, latents, MIX))


@pytest.mark.parametrize(("shape", "mix"), [((2, 4), None), ((3, 4), MIX), ((2, 4, 1), MIX)])
def test_anything_else_is_kept_as_it_is(shape: tuple[int, ...], mix: Mix | None) -> None:
    latents, output = torch.randn(2, 4), torch.randn(shape)
    assert velocity_from_v(output, latents, mix) is output
    assert v_from_velocity(output, latents, mix) is output


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_comes_back_to_the_bit(dtype: torch.dtype) -> None:
    latents, v = torch.randn(2, 400).to(dtype), torch.randn(2, 400).to(dtype)
    for mix in (Mix(0.0, 1.0), MIX, Mix(0.999, math.sqrt(1 - 0.999**2))):
        kept = velocity_from_v(v, latents, mix)
        assert kept.dtype is torch.float32
        assert torch.equal(v_from_velocity(kept, latents, mix).to(dtype), v)


def test_the_level_falls_from_noise_to_signal() -> None:
    scheduler = scheduler_of(10)
    mixes = mixes_of(scheduler, scheduler.timesteps.tolist())
    assert mixes[0] == Mix(0.0, 1.0)
    levels = [mix.level for mix in mixes]
    assert levels[0] == 1.0
    assert levels == sorted(levels, reverse=True)
    assert all(mix.signal**2 + mix.noise**2 == pytest.approx(1.0) for mix in mixes)


def test_a_step_of_ddim_is_a_straight_step_between_the_levels() -> None:
    scheduler = scheduler_of(10)
    timesteps = scheduler.timesteps.tolist()
    here, there = mixes_of(scheduler, timesteps)[4:6]
    latents, v = torch.randn(1, 4), torch.randn(1, 4)
    after = scheduler.step(v, int(timesteps[4]), latents).prev_sample
    on_path = latents / (here.signal + here.noise)
    moved = on_path + (there.level - here.level) * velocity_from_v(v, latents, here)
    torch.testing.assert_close(after / (there.signal + there.noise), moved)


def test_other_schedulers_have_no_mix() -> None:
    flow = FlowMatchEulerDiscreteScheduler()
    flow.set_timesteps(4)
    assert mixes_of(flow, flow.timesteps.tolist()) == []
    epsilon = scheduler_of(4, prediction_type="epsilon")
    assert mixes_of(epsilon, epsilon.timesteps.tolist()) == []
    assert mixes_of(scheduler_of(4), [12.5]) == []
    karras = DPMSolverMultistepScheduler(prediction_type="v_prediction", use_karras_sigmas=True)
    karras.set_timesteps(4)
    assert mixes_of(karras, karras.timesteps.tolist()) == []
    assert mixes_of(scheduler_of(4), [1000.0]) == []
