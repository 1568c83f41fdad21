"""Noise levels of real schedulers: of one meaning, whatever the unit of their sigmas."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import (
    CogVideoXDDIMScheduler,
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EDMEulerScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    UniPCMultistepScheduler,
)

from mixcache.hosts.diffusers.clock import Clock
from mixcache.hosts.diffusers.levels import level_of_ratio, levels_of_steps, sigma_is_a_ratio

V = {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}


def test_the_sigma_of_flow_matching_is_the_level() -> None:
    for scheduler in (
        FlowMatchEulerDiscreteScheduler(shift=3.0),
        UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0),
    ):
        assert not sigma_is_a_ratio(scheduler)
        levels = levels_of_steps(scheduler, 8)
        scheduler.set_timesteps(8)
        assert levels == pytest.approx(scheduler.sigmas[:8].tolist())


def test_elsewhere_it_is_a_ratio() -> None:
    """Cosmos goes from 80 to 0.002, which is the way from 0.988 to 0.002."""
    scheduler = EDMEulerScheduler(sigma_min=0.002, sigma_max=80.0)
    assert sigma_is_a_ratio(scheduler)
    levels = levels_of_steps(scheduler, 10)
    assert (levels[0], levels[-1]) == pytest.approx((80 / 81, 0.002 / 1.002))
    assert levels == sorted(levels, reverse=True)
    scheduler.set_timesteps(10)
    assert levels == pytest.approx([level_of_ratio(float(sigma)) for sigma in scheduler.sigmas[:10]])


def test_sigmas_over_1_are_ratios_whatever_the_class() -> None:
    """Cosmos 2 gives its sigmas, from 80 down, to a scheduler of flow matching."""
    scheduler = FlowMatchEulerDiscreteScheduler()
    scheduler.sigmas = torch.tensor([80.0, 8.0, 1.0, 0.1])
    assert sigma_is_a_ratio(scheduler)


@pytest.mark.parametrize(
    "scheduler",
    [
        DDIMScheduler(timestep_spacing="trailing"),
        EulerDiscreteScheduler(timestep_spacing="trailing"),
        DPMSolverMultistepScheduler(timestep_spacing="trailing"),
    ],
    ids=lambda scheduler: type(scheduler).__name__,
)
def test_schedulers_of_one_noise_schedule_agree_on_the_level_of_a_timestep(scheduler: Any) -> None:
    """Some tell their shares of signal and noise, some the ratio of the two."""
    ours = levels_of_steps(scheduler, 5)
    scheduler.set_timesteps(5)
    shares = scheduler.alphas_cumprod[scheduler.timesteps.long()].double()
    signal, noise = shares.sqrt(), (1 - shares).sqrt()
    assert ours == pytest.approx((noise / (signal + noise)).tolist(), abs=2e-3)


def test_where_the_model_predicts_v_the_level_is_that_of_its_mix() -> None:
    scheduler = CogVideoXDDIMScheduler(**V)
    levels = levels_of_steps(scheduler, 4)
    assert (levels[0], len(levels)) == (pytest.approx(1.0, abs=1e-4), 4)
    assert levels == sorted(levels, reverse=True)


@pytest.mark.parametrize(
    "scheduler",
    [
        CogVideoXDDIMScheduler(prediction_type="v_prediction", timestep_spacing="trailing"),
        DDIMScheduler(),
        DPMSolverMultistepScheduler(),
        EulerDiscreteScheduler(use_karras_sigmas=True),
        FlowMatchEulerDiscreteScheduler(invert_sigmas=True),
    ],
    ids=lambda scheduler: type(scheduler).__name__,
)
def test_levels_are_those_that_a_run_is_told(scheduler: Any) -> None:
    """Of schedulers whose own sigma is a ratio, rises, or is not there."""
    foretold = levels_of_steps(scheduler, 5)
    scheduler.set_timesteps(5)
    pipeline = SimpleNamespace(scheduler=scheduler)
    told = Clock(lambda: pipeline).now(None, scheduler.timesteps[0]).sigmas
    assert (*foretold, 0.0) == told
    assert 1 >= foretold[0] > foretold[-1]


def test_the_scheduler_stays_as_it_is() -> None:
    scheduler = FlowMatchEulerDiscreteScheduler()
    scheduler.set_timesteps(7)
    levels_of_steps(scheduler, 3)
    assert len(scheduler.timesteps) == 7


def test_a_scheduler_that_does_not_tell() -> None:
    def fail(num_steps: int) -> None:
        raise ValueError("mu is needed")

    with pytest.raises(ValueError, match="does not tell the noise levels of 200 steps: mu is needed"):
        levels_of_steps(SimpleNamespace(set_timesteps=fail), 200)
    with pytest.raises(ValueError, match="takes other steps than the 4 asked for"):
        levels_of_steps(SimpleNamespace(set_timesteps=lambda _: None), 4)
