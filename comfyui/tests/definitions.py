"""What caching and correcting mean, without an engine, as wrappers and a sampler of ComfyUI's."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import comfy.model_sampling
import comfy.patcher_extension
import comfy.samplers
import torch


def reusing(patcher: Any, is_cached: list[bool], *, negative: bool = False) -> Any:
    """The definition: a model whose answers at these steps are the last computed velocities, each by its place among
    the calls of a step. Where only the `negative` prompt is left out, it is as far from the positive one as it was."""
    is_straight = isinstance(patcher.get_model_object("model_sampling"), comfy.model_sampling.CONST)

    def to_velocity(x: Any, denoised: Any, sigma: Any) -> Any:
        noise = (x - (1 - sigma) * denoised) / sigma if is_straight else (x - denoised) / sigma
        return noise - denoised

    def from_velocity(x: Any, velocity: Any, sigma: Any) -> Any:
        return x - sigma * velocity if is_straight else (x - sigma * velocity) / (1 + sigma)

    clone, last, seen = patcher.clone(), {}, {"step": -1, "call": 0}

    def predict(executor: Any, *args: Any) -> Any:
        seen.update(step=seen["step"] + 1, call=0)
        return executor(*args)

    def answer(executor: Any, model: Any, conds: Any, x: Any, sigma: Any, options: Any) -> Any:
        call, wide = seen["call"], sigma.reshape(-1, *[1] * (x.dim() - 1))
        seen["call"] += 1
        if is_cached[seen["step"]] and negative:
            positive = executor(model, [conds[0], None], x, sigma, options)[0]
            apart = last[call][1] - last[call][0]
            return [positive, from_velocity(x, to_velocity(x, positive, wide) + apart, wide)]
        if is_cached[seen["step"]]:
            return [from_velocity(x, velocity, wide) for velocity in last[call]]
        outputs = executor(model, conds, x, sigma, options)
        last[call] = [to_velocity(x, denoised, wide) for denoised in outputs]
        return outputs

    kinds = comfy.patcher_extension.WrappersMP
    clone.add_wrapper_with_key(kinds.PREDICT_NOISE, "reference", predict)
    clone.add_wrapper_with_key(kinds.CALC_COND_BATCH, "reference", answer)
    return clone


@contextmanager
def without_blocks(patcher: Any, is_cached: list[bool], blocks: list[Any]) -> Iterator[Any]:
    """The definition: at these steps the `blocks`, modules in a row, hand on what goes into the first of them and what
    they added to it at the last computed step, each time that the model is run in a step."""
    seen: dict[str, int] = {"step": -1, "run": -1}
    begun: dict[int, torch.Tensor] = {}
    added: dict[int, torch.Tensor] = {}

    def predict(executor: Any, *args: Any) -> Any:
        seen.update(step=seen["step"] + 1, run=-1)
        return executor(*args)

    def replace(place: int, module: Any) -> None:
        inner = module.forward

        def forward(x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
            if place == 0:
                seen["run"] += 1
                begun[seen["run"]] = x.clone()
            is_last, run = place == len(blocks) - 1, seen["run"]
            if is_cached[seen["step"]]:
                return begun[run] + added[run] if is_last else x
            out: torch.Tensor = inner(x, *args, **kwargs)
            if is_last:
                added[run] = out - begun[run]
            return out

        module.forward = forward

    for place, module in enumerate(blocks):
        replace(place, module)
    clone = patcher.clone()
    clone.add_wrapper_with_key(comfy.patcher_extension.WrappersMP.PREDICT_NOISE, "reference", predict)
    try:
        yield clone
    finally:
        for module in blocks:
            del module.forward


def euler_taken_again(is_cached: list[bool]) -> Any:
    """The definition of correcting, as a sampler of its own: the cached steps between two computed ones are taken again
    on the line through both."""

    def sampler(
        ask: Any, x: Any, sigmas: Any, extra_args: Any = None, callback: Any = None, disable: Any = None
    ) -> Any:
        ones, last, began, begun = x.new_ones(x.shape[0]), x, 0, x
        for step, (sigma, after) in enumerate(itertools.pairwise(sigmas)):
            if not is_cached[step]:
                before, last = last, (x - ask(x, sigma * ones, **extra_args)) / sigma
                if step - began > 1:
                    x = begun
                    for again in range(began + 1, step):
                        share = (sigmas[began] - sigmas[again]) / (sigmas[began] - sigma)
                        x = x + (sigmas[again + 1] - sigmas[again]) * torch.lerp(before, last, share)
                began, begun = step, x + (after - sigma) * last
            x = x + (after - sigma) * last
        return x

    return comfy.samplers.KSAMPLER(sampler)
