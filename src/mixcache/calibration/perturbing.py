"""An engine that computes everything, and disturbs one quantity in one step."""

from __future__ import annotations

import torch

from mixcache.core.calls import CONDITIONAL, UNCONDITIONAL, CallInfo
from mixcache.core.observer import Observer
from mixcache.core.run import Run, parts_of
from mixcache.core.velocity import v_from_velocity, velocity_from_v
from mixcache.decision import Granularity

STRENGTH = 0.1


class PerturbingEngine(Observer):
    """Computes everything, and disturbs one quantity in one step."""

    target: Granularity | None = None
    step: int = 0
    num_steps: int = 0
    """Of the loop, as the last call told."""
    strength: float = STRENGTH
    noise_seed: int = 0

    def call(self, info: CallInfo, run: Run) -> torch.Tensor:
        """The computed output, disturbed if this is the step."""
        self.num_steps = info.num_steps
        is_step = info.step == self.step
        output, residuals = run.full(records=is_step and self.target is Granularity.BLOCK)
        if not is_step or self.target is None:
            return output
        if self.target is Granularity.BLOCK:
            return run.without_span(tuple(residual + self._noise(residual) for residual in residuals))
        parts = parts_of(velocity_from_v(output, run.latents, info.mix), info)
        if CONDITIONAL in parts:
            self._conditional = parts[CONDITIONAL]
        for branch, part in parts.items():
            if self.target is Granularity.STEP:
                parts[branch] = part + self._noise(part)
            elif branch == UNCONDITIONAL:
                parts[branch] = part + self._noise(part - self._conditional)
        disturbed = torch.cat([parts[branch] for branch in info.branches])
        return v_from_velocity(disturbed, run.latents, info.mix).to(output.dtype)

    def _noise(self, quantity: torch.Tensor) -> torch.Tensor:
        generator = torch.Generator().manual_seed(self.noise_seed)
        noise = torch.randn(quantity.shape, generator=generator).to(quantity)
        return self.strength * quantity.float().square().mean().sqrt().to(quantity) * noise
