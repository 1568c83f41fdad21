"""Where the denoising loop stands: step and noise level, from the cache context where that says it all, else from the
pipeline's scheduler.

Reads attributes of diffusers' pipelines, schedulers and cache contexts; patches nothing. Where an answer would be a
guess there is none, and the call is computed in full.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from mixcache.core.calls import Mix
from mixcache.hosts.diffusers.levels import level_of_ratio, mixes_of, noise_levels, sigma_is_a_ratio, sigmas_of


class UnknownCallError(Exception):
    """This call does not say enough for any of it to be cached; the message says what is missing."""


@dataclass(frozen=True, slots=True)
class Moment:
    """Where the denoising loop stands."""

    step: int
    """From 0, of the steps that this denoiser does."""
    num_steps: int
    sigma: float
    """Noise level (`mixcache.hosts.diffusers.levels`), falling from step to step."""
    offset: int = 0
    """Steps of the loop that the other of two experts does before."""
    sigmas: tuple[float, ...] = ()
    """Noise levels of the steps that this denoiser does, and the one at which the last of them arrives; empty where the
    scheduler does not tell."""
    scheduler_sigma: float | None = None
    """The scheduler's own number for this step; None where it is the noise level."""
    mix: Mix | None = None
    """Of the step, where the model predicts v."""


class Clock:
    """Tells the moment from the cache context where that says it all, else from the pipeline's scheduler.

    `expert` is the attribute of the denoiser in a pipeline of two: steps are then counted within its own range.
    """

    def __init__(self, pipeline: Callable[[], Any], expert: str = "transformer") -> None:
        self._pipeline, self._expert = pipeline, expert
        self._timesteps: torch.Tensor | None = None
        self._levels: list[float] = []
        self._own_sigmas: list[float] = []
        self._mixes: list[Mix] = []
        self._is_ratio = False
        self._sliced, self._slice = (0, 0), tuple[float, ...]()
        self._numbers: list[float] = []
        self._range = (0, 0)
        self._is_first_call = False
        self._begin = 0

    def now(self, context: Any, timestep: Any) -> Moment:
        """The moment of a call; UnknownCallError where neither context nor scheduler tells."""
        step = getattr(context, "step_index", None)
        num_steps, sigma = getattr(context, "num_inference_steps", None), getattr(context, "sigma", None)
        pipeline = self._pipeline()
        if pipeline is None:
            raise UnknownCallError("the pipeline that mixcache was enabled on is gone; enable it on this one")
        scheduler = getattr(pipeline, "scheduler", None)
        self.notice_schedule(scheduler)
        if step is not None and num_steps is not None and sigma is not None and not self._mixes:
            level = level_of_ratio(sigma) if self._is_ratio else sigma
            if self._does_a_part:
                return self._moment(step, *self._range, level)
            first = max(0, len(self._levels) - num_steps)
            levels = self._levels_of(first, first + num_steps)
            return Moment(step, num_steps, level, sigmas=levels, scheduler_sigma=sigma if sigma != level else None)
        if self._timesteps is None or getattr(scheduler, "num_inference_steps", None) is None:
            raise UnknownCallError("the scheduler has no timesteps yet, and the cache context does not tell the step")
        step = self._index(scheduler, timestep)
        if step >= len(self._numbers):
            raise UnknownCallError(
                "pipe.scheduler is past its last step: the loop has another, or did not set timesteps"
            )
        if self._is_first_call:
            self._range = self._own_range(scheduler, step)
            self._is_first_call = False
        return self._moment(step, *self._range, self._levels[step])

    def _moment(self, step: int, first: int, end: int, level: float) -> Moment:
        if not first <= step < end:
            raise UnknownCallError(f"step {step} is outside of the loop's {first} to {end - 1}")
        own = self._own_sigmas[step] if self._own_sigmas else level
        return Moment(
            step - first,
            end - first,
            level,
            offset=first - self._begin,
            sigmas=self._levels_of(first, end),
            scheduler_sigma=own if own != level else None,
            mix=self._mixes[step] if self._mixes else None,
        )

    def _levels_of(self, first: int, end: int) -> tuple[float, ...]:
        if (first, end) != self._sliced:
            self._sliced = (first, end)
            self._slice = (*self._levels, 0.0)[first : end + 1] if end <= len(self._levels) else ()
        return self._slice

    def notice_schedule(self, scheduler: Any) -> bool:
        """True where the scheduler has got new timesteps, as it does at the start of every generation."""
        timesteps = getattr(scheduler, "timesteps", None)
        if timesteps is self._timesteps:
            return False
        self._timesteps = timesteps if isinstance(timesteps, torch.Tensor) else None
        if self._timesteps is not None:
            self._numbers = [float(t) for t in self._timesteps.flatten().tolist()]
            self._mixes = mixes_of(scheduler, self._numbers)
            self._is_ratio = sigma_is_a_ratio(scheduler)  # once, as it may be a device sync
            levels = [mix.level for mix in self._mixes] or noise_levels(scheduler, self._numbers)
            self._levels, self._sliced = levels, (0, 0)
            self._own_sigmas = sigmas_of(scheduler, len(self._numbers))
            self._range = self._own_range(scheduler, int(getattr(scheduler, "_begin_index", None) or 0))
            self._is_first_call = self._boundary is None
        return True

    @property
    def _does_a_part(self) -> bool:
        return self._range != (0, len(self._numbers)) and self._boundary is not None

    @property
    def _boundary(self) -> float | None:
        """Share of the timesteps from which on the first of two experts works; None where there is one."""
        pipeline = self._pipeline()
        if getattr(pipeline, "transformer", None) is None or getattr(pipeline, "transformer_2", None) is None:
            return None
        return getattr(pipeline.config, "boundary_ratio", None)

    def _own_range(self, scheduler: Any, first: int) -> tuple[int, int]:
        """First step and end of what this denoiser does."""
        boundary, end = self._boundary, len(self._numbers)
        self._begin = first
        if boundary is None:
            return first, end
        border = boundary * scheduler.config.num_train_timesteps
        num_high = sum(number >= border for number in self._numbers)
        return (first, num_high) if self._expert == "transformer" else (max(first, num_high), end)

    def _index(self, scheduler: Any, timestep: Any) -> int:
        index = getattr(scheduler, "_step_index", None)
        if index is not None:
            return int(index)
        begin = getattr(scheduler, "_begin_index", None)
        if begin is not None:
            return int(begin)
        place = self._position(timestep)  # None where the pipeline scales its timesteps: the loop's first step then
        if place is None and not hasattr(scheduler, "_step_index"):
            raise UnknownCallError("neither the scheduler nor the call's timestep says which step it is")
        return place or 0

    def _position(self, timestep: Any) -> int | None:
        """Place of the call's timestep in the scheduler's list; without a device sync where it is a view of it."""
        if self._timesteps is None or not isinstance(timestep, torch.Tensor) or not timestep.numel():
            return None
        if timestep.untyped_storage().data_ptr() == self._timesteps.untyped_storage().data_ptr():
            return timestep.storage_offset() - self._timesteps.storage_offset()
        number = float(timestep.max())  # frames and tokens that are given have a smaller one
        rounded = (
            torch.tensor(self._numbers, dtype=torch.float64).to(timestep.dtype).tolist()
        )  # as the pipeline may have cast it
        return rounded.index(number) if rounded.count(number) == 1 else None
