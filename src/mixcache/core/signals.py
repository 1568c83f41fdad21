"""Tensors in, floats out: the numbers a decision needs, brought to the host together, with one device sync."""

from __future__ import annotations

import torch


def relative_l1(value: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """mean|value - reference| / mean|reference| as a float32 scalar on the device; shapes are equal."""
    reference = reference.float()
    return (value.float() - reference).abs().mean() / reference.abs().mean().clamp_min(1e-12)


def inner(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Inner product of two tensors of one shape as a float32 scalar on the device."""
    return torch.dot(a.float().flatten(), b.float().flatten())


def total(value: torch.Tensor) -> torch.Tensor:
    """Sum of all elements as a float32 scalar on the device: NaN or infinite where one of them is."""
    return value.sum(dtype=torch.float32)


def to_floats(scalars: list[torch.Tensor]) -> list[float]:
    """All scalars in one transfer; an empty list costs nothing."""
    if not scalars:
        return []
    return [float(value) for value in torch.stack(scalars).tolist()]
