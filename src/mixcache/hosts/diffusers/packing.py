"""Arguments and outputs of a transformer's call: by name, by half, as one tensor and back."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.utils import _pytree as pytree

from mixcache.core.calls import CONDITIONAL
from mixcache.hosts.diffusers.rows import ModelRow


def conditional_half(row: ModelRow, arguments: Mapping[str, Any], batch: int) -> dict[str, Any] | None:
    """The arguments of the conditional part of a batched call alone; None where a tensor might be batched and the row
    does not say."""
    part, half = row.batched_cfg.index(CONDITIONAL), {}
    for name, value in arguments.items():
        tensors = [leaf for leaf in pytree.tree_leaves(value) if isinstance(leaf, torch.Tensor)]
        if name in row.batched and tensors:
            if any(tensor.dim() and tensor.shape[0] not in (1, batch) for tensor in tensors):
                return None
            half[name] = pytree.tree_map_only(
                torch.Tensor,
                lambda t: t.chunk(len(row.batched_cfg))[part] if t.dim() and t.shape[0] == batch else t,
                value,
            )
        elif name in row.shared or not any(tensor.dim() and tensor.shape[0] == batch for tensor in tensors):
            half[name] = value
        else:
            return None
    return half


def first_tensor(value: Any) -> torch.Tensor | None:
    """The tensor, or the first one in a list or dictionary of them."""
    if isinstance(value, torch.Tensor):
        return value
    return next((leaf for leaf in pytree.tree_leaves(value) if isinstance(leaf, torch.Tensor)), None)


ALONE = pytree.tree_flatten((0,))[1]
"""Of a tuple of one tensor, as most outputs are."""


class Form:
    """The type of a denoiser's output around its tensors, so that a predicted output is what a computed one would be.

    `packed` is one tensor of all that are in the output, which the engine can add and compare; `unpack` undoes it.
    """

    def __init__(self, leaves: list[Any], spec: pytree.TreeSpec, *, keeps_batch: bool) -> None:
        self._spec, self._keeps_batch = spec, keeps_batch
        self._leaves = [None if isinstance(leaf, torch.Tensor) else leaf for leaf in leaves]
        self._shapes = [leaf.shape if isinstance(leaf, torch.Tensor) else None for leaf in leaves]
        self._dtypes = [leaf.dtype for leaf in leaves if isinstance(leaf, torch.Tensor)]

    @classmethod
    def packed(cls, output: Any, *, keeps_batch: bool) -> tuple[Form, torch.Tensor]:
        """The form of an output, and its tensors as one."""
        is_alone = type(output) is tuple and len(output) == 1 and isinstance(output[0], torch.Tensor)
        leaves, spec = (list(output), ALONE) if is_alone else pytree.tree_flatten(output)
        form = cls(leaves, spec, keeps_batch=keeps_batch)
        tensors = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]
        if len(tensors) == 1:
            return form, tensors[0]
        if keeps_batch:
            return form, torch.cat([tensor.flatten(1) for tensor in tensors], dim=1)
        return form, torch.cat([tensor.flatten() for tensor in tensors])

    def unpack(self, packed: torch.Tensor) -> Any:
        if self._spec is ALONE:
            return (packed.to(self._dtypes[0]),)
        shapes = [shape for shape in self._shapes if shape is not None]
        if len(shapes) == 1:
            values = [packed]
        elif self._keeps_batch:
            sizes = [shape[1:].numel() for shape in shapes]
            values = [v.reshape(len(packed), *s[1:]) for v, s in zip(packed.split(sizes, 1), shapes, strict=True)]
        else:
            pieces = packed.split([shape.numel() for shape in shapes])
            values = [piece.reshape(shape) for piece, shape in zip(pieces, shapes, strict=True)]
        remaining = (value.to(dtype) for value, dtype in zip(values, self._dtypes, strict=True))
        leaves = [
            leaf if shape is None else next(remaining) for leaf, shape in zip(self._leaves, self._shapes, strict=True)
        ]
        return pytree.tree_unflatten(leaves, self._spec)


def named_arguments(signature: inspect.Signature, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a call by name, as they can be given again; those left out stay out. TypeError for too many."""
    positional = signature.bind_partial(*args).arguments if args else {}
    return {**positional, **kwargs}


def signature_of(module: torch.nn.Module) -> inspect.Signature:
    """The signature of the class's forward, without `self`, whatever stands in its place on this module."""
    parameters = list(inspect.signature(type(module).forward).parameters.values())
    return inspect.Signature(parameters[1:])
