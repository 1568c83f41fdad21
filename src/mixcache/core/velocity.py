"""What is kept of a model that predicts v: the velocity of the straight path between signal and noise.

With x = a x0 + s e, a and s the shares of signal and noise, such a model gives v = a e - s x0, which turns from step to
step even where it sees the same x0 and e. Reusing it moves the latents off; e - x0, which models of flow matching give,
stays. Both say the same where x is known:

    e - x0 = (s - a) x + (a + s) v

and x / (a + s) lies on the straight path at the noise level s / (a + s). v: Salimans and Ho, arXiv 2202.00512.
"""

from __future__ import annotations

import torch

from mixcache.core.calls import Mix


def velocity_from_v(output: torch.Tensor, latents: torch.Tensor, mix: Mix | None) -> torch.Tensor:
    """e - x0, float32; the output itself without a mix, and where it is not of the shape of the latents."""
    if mix is None or (noisy := _noisy_part(latents, output)) is None:
        return output
    return torch.add((mix.noise - mix.signal) * noisy.float(), output.float(), alpha=mix.signal + mix.noise)


def v_from_velocity(kept: torch.Tensor, latents: torch.Tensor, mix: Mix | None) -> torch.Tensor:
    """What undoes `velocity_from_v`, float32 again: guidance would multiply what is rounded off."""
    if mix is None or (noisy := _noisy_part(latents, kept)) is None:
        return kept
    return torch.add(kept, noisy.float(), alpha=mix.signal - mix.noise) / (mix.signal + mix.noise)


def _noisy_part(latents: torch.Tensor, output: torch.Tensor) -> torch.Tensor | None:
    """The latents without the conditions that are stacked behind them; None where the shapes say nothing."""
    if latents.dim() != output.dim() or any(n < m for n, m in zip(latents.shape, output.shape, strict=True)):
        return None
    return latents[tuple(slice(size) for size in output.shape)].to(output.device)
