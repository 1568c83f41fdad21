"""Whether a tensor is still the one that was seen before."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True)
class Seen:
    """A tensor that was seen; held, so that its memory is not another's meanwhile."""

    value: torch.Tensor
    version: int

    @classmethod
    def of(cls, value: torch.Tensor) -> Seen:
        return cls(value, version_of(value))

    def is_same(self, other: torch.Tensor) -> bool:
        """By memory where that is the same and was not written to; else by value, with a device sync."""
        value = self.value
        if version_of(value) != self.version:
            return False
        if other is value:
            return True
        if (other.shape, other.dtype, other.device) != (value.shape, value.dtype, value.device):
            return False
        is_same_memory = other.data_ptr() == value.data_ptr() and other.stride() == value.stride()
        return is_same_memory or torch.equal(other, value)


def version_of(tensor: torch.Tensor) -> int:
    """Counts what was written to a tensor in place; tensors of inference mode do not count."""
    return 0 if tensor.is_inference() else tensor._version
