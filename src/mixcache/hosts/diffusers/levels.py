"""Noise levels that mean the same for every scheduler: the share of noise on the straight path between clip and noise.

Flow matching mixes x = (1 - l) x0 + l e, and its sigma is the level l itself. Elsewhere sigma is the ratio of noise to
signal, as in x = x0 + sigma e (EDM, arXiv 2206.00364, from 80 down) or x = a x0 + s e with sigma = s / a; the latents
over 1 + sigma, or over a + s, then lie on that path, at l = sigma / (1 + sigma).
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch

from mixcache.core.calls import Mix

NOISE_OR_SIGNAL = ("epsilon", "sample", "v_prediction")
"""Prediction types of schedulers whose sigma is a ratio, unless they use sigmas of flow matching."""

OTHER_LEVELS = ("use_flow_sigmas", "use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas")
"""Settings of schedulers by which the shares are not those of `alphas_cumprod`."""


def level_of_ratio(sigma: float) -> float:
    """The level where noise is `sigma` times the signal."""
    return sigma / (1 + sigma)


def sigma_is_a_ratio(scheduler: Any) -> bool:
    """True where the scheduler's sigma is noise over signal, False where it is the level."""
    config = getattr(scheduler, "config", None)
    if getattr(config, "use_flow_sigmas", False):
        return False
    if getattr(config, "prediction_type", None) in NOISE_OR_SIGNAL:
        return True
    sigmas = getattr(scheduler, "sigmas", None)
    return isinstance(sigmas, torch.Tensor) and sigmas.numel() > 0 and float(sigmas.max()) > 1.0


def sigmas_of(scheduler: Any, num_steps: int) -> list[float]:
    """The scheduler's own sigmas of so many steps; empty where it has none."""
    sigmas = getattr(scheduler, "sigmas", None)
    if not isinstance(sigmas, torch.Tensor) or len(sigmas) < num_steps:
        return []
    return [float(sigma) for sigma in sigmas.tolist()[:num_steps]]


def noise_levels(scheduler: Any, timesteps: Sequence[float]) -> list[float]:
    """Noise level of every step, falling.

    Of a scheduler without sigmas the level is that of its shares of signal and noise at these timesteps, or, where it
    does not tell them, the share of the training steps.
    """
    levels = sigmas_of(scheduler, len(timesteps))
    if levels:
        if sigma_is_a_ratio(scheduler):
            levels = [level_of_ratio(sigma) for sigma in levels]
    else:
        levels = _levels_of_shares(scheduler, timesteps)
    if len(levels) > 1 and levels[0] < levels[-1]:  # told as the share of the signal
        return [1.0 - level for level in levels]
    return levels


def mixes_of(scheduler: Any, timesteps: Sequence[float]) -> list[Mix]:
    """The mix of every step; none unless the scheduler takes v and tells its shares."""
    predicted = getattr(getattr(scheduler, "config", None), "prediction_type", None)
    cumulated = getattr(scheduler, "alphas_cumprod", None)
    if predicted != "v_prediction" or not isinstance(cumulated, torch.Tensor):
        return []
    if any(getattr(scheduler.config, flag, False) for flag in OTHER_LEVELS):
        return []
    shares = cumulated.tolist()
    if any(number != int(number) or not 0 <= number < len(shares) for number in timesteps):
        return []
    return [Mix(shares[int(number)] ** 0.5, (1 - shares[int(number)]) ** 0.5) for number in timesteps]


def _levels_of_shares(scheduler: Any, timesteps: Sequence[float]) -> list[float]:
    cumulated = getattr(scheduler, "alphas_cumprod", None)
    if isinstance(cumulated, torch.Tensor):
        shares = cumulated.tolist()
        if all(number == int(number) and 0 <= number < len(shares) for number in timesteps):
            signals = [(shares[int(number)] ** 0.5, (1 - shares[int(number)]) ** 0.5) for number in timesteps]
            return [noise / (signal + noise) for signal, noise in signals]
    return [number / scheduler.config.num_train_timesteps for number in timesteps]


def levels_of_steps(scheduler: Any, num_steps: int) -> list[float]:
    """Noise levels of `num_steps` steps of this scheduler, which stays as it is; ValueError where it does not tell."""
    scheduler = copy.deepcopy(scheduler)
    name = type(scheduler).__name__
    try:
        scheduler.set_timesteps(num_steps)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} does not tell the noise levels of {num_steps} steps: {error}") from error
    timesteps = getattr(scheduler, "timesteps", None)
    if not isinstance(timesteps, torch.Tensor) or len(timesteps) != num_steps:
        raise ValueError(
            f"{name} takes other steps than the {num_steps} asked for; leave their number as in the profile"
        )
    numbers = [float(number) for number in timesteps.flatten().tolist()]
    return [mix.level for mix in mixes_of(scheduler, numbers)] or noise_levels(scheduler, numbers)
