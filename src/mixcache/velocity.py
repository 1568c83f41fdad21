"""What is kept of a model that predicts v: the velocity of the straight path between signal and noise.

With x = a x0 + s e, a and s the shares of signal and noise, such a model gives v = a e - s x0, which turns from step to
step even where it sees the same x0 and e. Reusing it moves the latents off; e - x0, which models of flow matching give,
stays. Both say the same where x is known:

    e - x0 = (s - a) x + (a + s) v

and x / (a + s) lies on the straight path at the noise level s / (a + s). v: Salimans and Ho, arXiv 2202.00512.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from mixcache.calls import Mix


def mixes_of(scheduler: Any, timesteps: Sequence[float]) -> list[Mix]:
    """The mix of every step; none unless the scheduler takes v and tells its shares."""
    predicted = getattr(getattr(scheduler, "config", None), "prediction_type", None)
    cumulated = getattr(scheduler, "alphas_cumprod", None)
    if predicted != "v_prediction" or not isinstance(cumulated, torch.Tensor):
        return []
    shares = cumulated.tolist()
    if any(number != int(number) or not 0 <= number < len(shares) for number in timesteps):
        return []
    return [Mix(shares[int(number)] ** 0.5, (1 - shares[int(number)]) ** 0.5) for number in timesteps]


def straightened(output: torch.Tensor, latents: torch.Tensor, mix: Mix | None) -> torch.Tensor:
    """e - x0 from v; the output itself without a mix, and where it is not of the shape of the latents."""
    noisy = _noisy_part(latents, output)
    if mix is None or noisy is None:
        return output
    return (mix.noise - mix.signal) * noisy + (mix.signal + mix.noise) * output


def bent(kept: torch.Tensor, latents: torch.Tensor, mix: Mix | None) -> torch.Tensor:
    """v from e - x0: undoes `straightened`."""
    noisy = _noisy_part(latents, kept)
    if mix is None or noisy is None:
        return kept
    return (kept + (mix.signal - mix.noise) * noisy) / (mix.signal + mix.noise)


def _noisy_part(latents: torch.Tensor, output: torch.Tensor) -> torch.Tensor | None:
    """The latents without the conditions that are stacked behind them; None where the shapes say nothing."""
    if latents.dim() != output.dim() or any(n < m for n, m in zip(latents.shape, output.shape, strict=True)):
        return None
    return latents[tuple(slice(size) for size in output.shape)]
