"""What a pipeline makes of its branches' outputs before the scheduler gets them, found from the tensors themselves.

Classifier-free guidance gives v_u + g (v_c - v_u); rescaled, or with a further branch, it is still a combination of the
branches, with shares that may change from step to step and from sample to sample. The shares are the least-squares
solution, so that nobody has to be asked for a scale; `misfit` tells whether the answer is such a combination at all.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

MISFIT = 1e-4
"""Relative rms up to which an output counts as a combination; of low precision, as many roundings as `ROUNDINGS`."""
ROUNDINGS = 4
RIDGE = 1e-6
"""Keeps shares finite where two branches agree: any shares of equal sum are right then."""


@dataclass(frozen=True, slots=True)
class Combination:
    """Shares of each branch in an output, for each sample of the batch."""

    shares: dict[str, torch.Tensor]
    """(batch,) float32 by branch, on the device."""
    misfit: torch.Tensor
    """Relative rms of what the shares leave over, of the worst sample; a scalar on the device."""

    def of(self, values: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """The same combination of other values, (batch, ...) each; float32."""
        return sum(
            share.view(-1, *[1] * (values[branch].dim() - 1)) * values[branch].float()
            for branch, share in self.shares.items()
        )


def tolerance(dtype: torch.dtype) -> float:
    """The misfit up to which an output of this dtype counts as a combination."""
    return max(MISFIT, ROUNDINGS * torch.finfo(dtype).eps)


def combination(output: torch.Tensor, values: Mapping[str, torch.Tensor]) -> Combination | None:
    """The combination of the branches' values, (batch, ...) each, that is nearest to an output of their shape; None
    where shapes differ. Without a device sync."""
    if not values or not output.dim() or any(value.shape != output.shape for value in values.values()):
        return None
    first, *others = values
    base = values[first].float().flatten(1) if output.dim() > 1 else values[first].float()[:, None]
    target = output.float().reshape(base.shape)
    directions = torch.stack([base, *(values[name].float().reshape(base.shape) - base for name in others)], dim=1)
    # sums of products, since autocast and TF32 round what goes into a matrix product
    gram = torch.stack([(directions * one[:, None]).sum(-1) for one in directions.unbind(1)], dim=1)  # (batch, n, n)
    scale = gram.diagonal(dim1=1, dim2=2).sqrt().clamp_min(1e-20)
    eye = torch.eye(len(values), device=gram.device)
    normal = gram / (scale[:, :, None] * scale[:, None, :]) + RIDGE * eye
    wanted = (directions * target[:, None]).sum(-1) / scale
    solved = torch.linalg.solve_ex(normal, wanted[:, :, None])[0][:, :, 0] / scale  # (batch, n)
    left = target - (solved[:, :, None] * directions).sum(1)
    misfit = (left.square().mean(1) / target.square().mean(1).clamp_min(1e-24)).sqrt().max()
    shares = {name: solved[:, place] for place, name in enumerate(others, start=1)}
    shares[first] = solved[:, 0] - sum(shares.values())
    return Combination(shares, misfit)
