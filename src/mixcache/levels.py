"""Noise levels that mean the same for every scheduler: the share of noise on the straight path between clip and noise.

Flow matching mixes x = (1 - l) x0 + l e, and its sigma is the level l itself. Elsewhere sigma is the ratio of noise to
signal, as in x = x0 + sigma e (EDM, arXiv 2206.00364, from 80 down) or x = a x0 + s e with sigma = s / a; the latents
over 1 + sigma, or over a + s, then lie on that path, at l = sigma / (1 + sigma).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

NOISE_OR_SIGNAL = ("epsilon", "sample", "v_prediction")
"""Prediction types of schedulers whose sigma is a ratio, unless they use sigmas of flow matching."""


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


def _levels_of_shares(scheduler: Any, timesteps: Sequence[float]) -> list[float]:
    cumulated = getattr(scheduler, "alphas_cumprod", None)
    if isinstance(cumulated, torch.Tensor):
        shares = cumulated.tolist()
        if all(number == int(number) and 0 <= number < len(shares) for number in timesteps):
            signals = [(shares[int(number)] ** 0.5, (1 - shares[int(number)]) ** 0.5) for number in timesteps]
            return [noise / (signal + noise) for signal, noise in signals]
    return [number / scheduler.config.num_train_timesteps for number in timesteps]
