"""What a student's blocks learn from the teacher's: each is held to the teacher's latents at the end of its stretch."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from diffusers import WanTransformer3DModel

from counterparts import Plan


def watch(blocks: Iterable[torch.nn.Module]) -> list[torch.Tensor]:
    """A list that gets what each block makes of the latents, at every call; whoever reads it empties it."""
    seen: list[torch.Tensor] = []
    for block in blocks:
        block.register_forward_hook(lambda block, args, out: seen.append(out[0] if isinstance(out, tuple) else out))
    return seen


def watch_teacher(teacher: WanTransformer3DModel, plan: Plan) -> list[torch.Tensor]:
    """A list that gets the teacher's latents before its first block and at the end of each stretch of the `plan`."""
    stream: list[torch.Tensor] = []
    teacher.blocks[0].register_forward_pre_hook(lambda block, args: stream.append(args[0]))
    for index, part in plan:
        source = teacher.blocks[index]
        if part == "self":
            source.norm2.register_forward_pre_hook(lambda norm, args: stream.append(args[0]))
        else:
            source.register_forward_hook(lambda block, args, out: stream.append(out))
    return stream


class Forcing:
    """While `on`, every block gets the teacher's latents in place of those of the block before it."""

    def __init__(self, blocks: Iterable[torch.nn.Module], stream: list[torch.Tensor]) -> None:
        self.on = False
        self.stream = stream
        for index, block in enumerate(blocks):
            block.register_forward_pre_hook(partial(self._force, index), with_kwargs=True)

    def _force(self, index: int, block: torch.nn.Module, args: Any, kwargs: Any) -> tuple[Any, Any]:
        if not self.on:
            return args, kwargs
        latents = self.stream[index].float()
        return ((latents, *args[1:]), kwargs) if args else (args, kwargs | {"hidden_states": latents})


def share(missed: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    return missed.square().mean() / (wanted.square().mean() + 1e-6)


def missed_hints(seen: list[torch.Tensor], stream: list[torch.Tensor], forced: bool) -> torch.Tensor:
    """Mean over the blocks of the share that they miss of what the teacher has there, and of how this differs between
    the captions of a pair. Where forced, of what they add to it."""
    missed = []
    for ours, (before, after) in zip(seen, pairwise(stream), strict=True):
        error, wanted = ours.float() - after.float(), after.float() - (before.float() if forced else 0.0)
        first, second = error.chunk(2)
        one, other = wanted.chunk(2)
        missed.append(share(error, wanted) + share(first - second, one - other))
    return torch.stack(missed).mean()
