"""How a model's latents x are made of the clip and of noise at ComfyUI's sigma, and what is kept of an output.

A sampler is given the denoised clip x0. What is kept is e - x0, the velocity of the straight path between signal and
noise (`mixcache.core.velocity`), which changes least from step to step:

    straight path    x = (1 - sigma) x0 + sigma e    e - x0 = (x - x0) / sigma               level sigma
    noise added      x = x0 + sigma e                e - x0 = (x - (1 + sigma) x0) / sigma   level sigma / (1 + sigma)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True, slots=True)
class Levels:
    """Of one model: `is_straight`, or noise is added."""

    is_straight: bool

    @classmethod
    def of(cls, model_sampling: Any) -> Levels:
        return cls(any(ancestor.__name__ == "CONST" for ancestor in type(model_sampling).__mro__))

    def level(self, sigma: float) -> float:
        """Noise level, 0 to 1."""
        return sigma if self.is_straight else sigma / (1 + sigma)

    def velocity(self, denoised: torch.Tensor, x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        """e - x0. `sigma` has a value for each sample of the batch."""
        sigma = _as_wide_as(x, sigma)
        return (x - denoised) / sigma if self.is_straight else (x - (1 + sigma) * denoised) / sigma

    def denoised(self, velocity: torch.Tensor, x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        """What undoes `velocity`."""
        sigma = _as_wide_as(x, sigma)
        return x - sigma * velocity if self.is_straight else (x - sigma * velocity) / (1 + sigma)


def _as_wide_as(x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    return sigma.to(x.device, torch.float32).reshape(-1, *[1] * (x.dim() - 1))
