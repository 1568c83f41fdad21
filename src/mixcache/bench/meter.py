"""Measures any caching method from outside, ours and the peers' alike: the work it really did, the memory it held."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from mixcache.hosts.diffusers.denoisers import blocks_of, experts_of
from mixcache.hosts.diffusers.rows import row_for

FULL = 0.995
"""Share of a plain step's work from which a step counts as computed in full."""


class WorkMeter:
    """Counts the multiplications of all linear layers in the transformer's blocks, step by step.

    They are counted where they are done, in `torch.nn.functional.linear`, so that a layer that a cache answers for is
    not. Attention's own products are left out: they go with the projections before them, but where a method leaves
    out the products alone, as Pyramid Attention Broadcast does, it saves more than is counted. The counting costs the
    same for every layer that runs, so it shortens no method's ratio of times.
    """

    def __init__(self) -> None:
        self.steps: list[int] = []
        """Multiplications of each finished step."""
        self._count = 0

    def mark(self, num_done: int, total: int) -> None:
        """Told at the loop's start and after every step, as `generation.OnStep` is."""
        if num_done:
            self.steps.append(self._count)
        else:
            self.steps = []
        self._count = 0

    @contextlib.contextmanager
    def on(self, pipeline: Any) -> Iterator[WorkMeter]:
        """Counts while it is open."""
        weights = {
            id(layer.weight)
            for expert in experts_of(pipeline).values()
            for block in blocks_of(expert, row_for(expert, pipeline))
            for layer in block.modules()
            if isinstance(layer, torch.nn.Linear)
        }
        linear = torch.nn.functional.linear

        def counted(values: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
            if id(weight) in weights:
                self._count += values.numel() * weight.shape[0]
            return linear(values, weight, bias)

        torch.nn.functional.linear = counted
        try:
            yield self
        finally:
            torch.nn.functional.linear = linear


def work_share(steps: Sequence[int], plain: Sequence[int]) -> float:
    """Work of a run as a share of the plain one's."""
    return sum(steps) / sum(plain)


def work_digits(steps: Sequence[int], plain: Sequence[int]) -> str:
    """One character a step: `#` all of a plain step's work, `.` none, a digit the tenths between."""
    full = max(plain)
    return "".join("#" if s >= FULL * full else "." if not s else str(max(1, int(10 * s / full))) for s in steps)


class MemoryGauge:
    """How many bytes of tensors are alive after some of the steps."""

    EVERY = 10
    """Steps between two looks, since a look at a CPU's memory goes through every object there is."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.seen: dict[int, int] = {}

    def mark(self, num_done: int, total: int) -> None:
        """Told as `WorkMeter.mark` is; the last step is left out, after which caches may be gone."""
        if num_done < total and (num_done % self.EVERY == 0 or num_done == total - 1):
            self.seen[num_done] = live_tensor_bytes(self.device)

    def above(self, plain: MemoryGauge) -> int:
        """The most that was alive over what the plain run had at the same step."""
        return max((0, *(self.seen[step] - plain.seen[step] for step in self.seen if step in plain.seen)))


def live_tensor_bytes(device: torch.device) -> int:
    """Bytes of all tensors alive on the device."""
    if device.type == "cuda":
        return int(torch.cuda.memory_allocated(device))
    storages = {}
    for thing in gc.get_objects():
        if type(thing) in (torch.Tensor, torch.nn.Parameter) and thing.device == device:  # a fake one holds nothing
            storage = thing.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())
