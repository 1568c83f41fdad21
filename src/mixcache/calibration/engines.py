"""Engines that compute everything: one disturbs a quantity, one keeps samples of all of them."""

from __future__ import annotations

import torch

from mixcache.core.calls import CONDITIONAL, UNCONDITIONAL, CallInfo
from mixcache.core.observer import Observer
from mixcache.core.run import Run, parts_of
from mixcache.core.velocity import v_from_velocity, velocity_from_v
from mixcache.decision import Granularity

STRENGTH = 0.1
NUM_SAMPLES = 16384
"""Values of each tensor that its inner products are taken from."""


class PerturbingEngine(Observer):
    """Computes everything, and disturbs one quantity in one step."""

    target: Granularity | None = None
    step: int = 0
    strength: float = STRENGTH
    noise_seed: int = 0

    def call(self, info: CallInfo, run: Run) -> torch.Tensor:
        """The computed output, disturbed if this is the step."""
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


class RecordingEngine(Observer):
    """Computes everything, and keeps samples of the outputs and of the span residuals."""

    def begin(self) -> None:
        """Forgets what was recorded."""
        self.sigmas: list[float] = []
        self.last_sigma = 0.0
        self._samples: dict[tuple[str, str], list[torch.Tensor]] = {}
        self._places: dict[int, torch.Tensor] = {}

    def call(self, info: CallInfo, run: Run) -> torch.Tensor:
        """The computed output."""
        if info.step == len(self.sigmas):
            self.sigmas.append(info.sigma)
            self.last_sigma = info.sigmas[-1] if info.sigmas else 0.0
        output, residuals = run.full(records=True)
        for branch, part in parts_of(velocity_from_v(output, run.latents, info.mix), info).items():
            self._keep("output", branch, part)
        if residuals:
            self._keep("residual", info.branch, residuals[0])
        return output

    def _keep(self, kind: str, branch: str, value: torch.Tensor) -> None:
        flat = value.detach().flatten()
        if flat.numel() not in self._places:
            generator = torch.Generator().manual_seed(0)
            self._places[flat.numel()] = torch.randperm(flat.numel(), generator=generator)[:NUM_SAMPLES]
        places = self._places[flat.numel()].to(flat.device)
        self._samples.setdefault((kind, branch), []).append(flat[places].to("cpu", torch.float64))

    def matrix(self, kind: str, branch: str) -> torch.Tensor | None:
        """Samples of one quantity, a row for each step; None where a branch was not called at every step."""
        rows = self._samples.get((kind, branch), [])
        return torch.stack(rows) if len(rows) == len(self.sigmas) else None
