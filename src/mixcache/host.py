"""What a call of the denoiser says, and what the pipeline around it says: step, noise level, branch, arguments.

Reads attributes of diffusers' pipelines, schedulers and cache contexts; imports and patches nothing. Where an answer
would be a guess there is none, and the call is computed in full.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

import torch
from torch.utils import _pytree as pytree

from mixcache.calls import CONDITIONAL, CallInfo, Mix
from mixcache.levels import level_of_ratio, noise_levels, sigma_is_a_ratio, sigmas_of
from mixcache.models import ModelRow
from mixcache.seen import Seen
from mixcache.velocity import mixes_of

GUIDER_PREFIX = "pred_"
"""What guiders put before the names of branches."""
JOINED_CONTEXT = "cond_uncond"


class UnknownCallError(Exception):
    """This call does not say enough for any of it to be cached; the message says what is missing."""


@dataclass(frozen=True, slots=True)
class Moment:
    """Where the denoising loop stands."""

    step: int
    """From 0, of the steps that this denoiser does."""
    num_steps: int
    sigma: float
    """Noise level (`mixcache.levels`), falling from step to step."""
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


@dataclass(frozen=True, slots=True)
class Text:
    """The text embedding that a branch was called with."""

    seen: Seen
    number: int


def _is_uniform(timestep: torch.Tensor) -> bool:
    """True where all frames are at one noise level, but for those that are done (a device sync)."""
    return bool(((timestep == timestep.amax()) | (timestep <= 0)).all())


class Reader:
    """Turns a call into what the engine wants to know."""

    def __init__(self, row: ModelRow, pipeline: Callable[[], Any], expert: str = "transformer") -> None:
        self.row, self._pipeline, self._expert = row, pipeline, expert
        self._clock = Clock(pipeline, expert)
        self._step, self._num_calls = -1, 0
        self._texts: dict[str, Text] = {}
        self._num_texts = 0
        self._joined: dict[torch.Size, bool] = {}
        self._has_repeated = False

    def read(self, context: Any, arguments: Mapping[str, Any]) -> CallInfo:
        """What the engine is told of a call; UnknownCallError where that would be a guess."""
        latents = self.latents(arguments)
        if self._clock.notice_schedule(getattr(self._pipeline(), "scheduler", None)):
            self.forget()
        timestep = arguments.get("timestep")
        if self.row.forcing and isinstance(timestep, torch.Tensor) and not _is_uniform(timestep):
            raise UnknownCallError("the frames are at different noise levels")
        moment = self._clock.now(context, timestep)
        name = getattr(context, "name", None)
        branch = name.removeprefix(GUIDER_PREFIX) if name is not None else self._branch_by_order(moment.step, arguments)
        parts: tuple[str, ...] = ()
        if self.row.joined and name in (None, JOINED_CONTEXT):
            parts = self.row.joined if self._is_joined(latents) else ()
            branch = JOINED_CONTEXT if parts else CONDITIONAL
        return CallInfo(
            branch=branch,
            step=moment.step,
            num_steps=moment.num_steps,
            sigma=moment.sigma,
            offset=moment.offset,
            sigmas=moment.sigmas,
            scheduler_sigma=moment.scheduler_sigma,
            mix=moment.mix,
            is_guided_alike=getattr(self._pipeline(), "guider", None) is None,
            signature=(
                latents.shape,
                latents.dtype,
                latents.device,
                self._num_guided_calls(name),
                self._is_guided(),
                self._number_of_text(branch, arguments),
            ),
            parts=parts,
        )

    def latents(self, arguments: Mapping[str, Any]) -> torch.Tensor:
        """The latents of a call; UnknownCallError where there are none."""
        latents = first_tensor(arguments.get(self.row.latents))
        if latents is None:
            raise UnknownCallError(f"no tensor in the argument {self.row.latents}")
        return latents

    def _branch_by_order(self, step: int, arguments: Mapping[str, Any]) -> str:
        """The branch of a call that has no context: its place within the step, held against the text of that branch."""
        if self.row.joined:
            self._has_repeated = self._has_repeated or step == self._step
            self._step = step
            if self._has_repeated:
                raise UnknownCallError("several calls in a step and no cache context to name them")
            return CONDITIONAL
        self._num_calls = self._num_calls + 1 if step == self._step else 0
        self._step = step
        if self._num_calls >= len(self.row.order):
            raise UnknownCallError(f"more than {len(self.row.order)} calls in a step and no cache context to name them")
        branch = self.row.order[self._num_calls]
        text = first_tensor(arguments.get(self.row.text))
        if text is not None and branch in self._texts and not self._texts[branch].seen.is_same(text):
            del self._texts[branch]
            raise UnknownCallError(f"another text than before in the {branch} call of this step")
        return branch

    def _number_of_text(self, branch: str, arguments: Mapping[str, Any]) -> int:
        """Another number for another text: a callback may replace it within a generation."""
        text = first_tensor(arguments.get(self.row.text))
        if text is None:
            return 0
        known = self._texts.get(branch)
        if known is not None and known.seen.is_same(text):
            number = known.number
        else:
            number = self._num_texts = self._num_texts + 1
        self._texts[branch] = Text(Seen.of(text), number)
        return number

    def forget(self) -> None:
        """Drops what was seen of the generation that is over."""
        self._step, self._num_calls, self._has_repeated = -1, 0, False
        self._texts.clear()
        self._joined.clear()

    def _num_guided_calls(self, name: str | None) -> int | None:
        """How many calls the pipeline's guider makes in this step, None without one: guidance may begin and end within
        a generation."""
        pipeline = self._pipeline()
        guider = getattr(pipeline, "guider", None)
        if self._expert == "transformer_2":
            guider = getattr(pipeline, "guider_2", guider)
        num_calls = getattr(guider, "num_conditions", None)
        if name is None and num_calls is not None and num_calls > len(self.row.order):
            raise UnknownCallError(f"{num_calls} calls in a step and no cache context to name them")
        return num_calls

    def _is_guided(self) -> bool | None:
        """Whether the pipeline calls both branches now, None where that is not to be read: a callback may change it."""
        guided = getattr(self._pipeline(), "do_classifier_free_guidance", None)
        if not isinstance(guided, bool) and not self.row.joined and (scale := self.guidance) is not None:
            guided = scale > 1
        return guided if isinstance(guided, bool) else None

    def _is_joined(self, latents: torch.Tensor) -> bool:
        """True where both halves of the batch are the same latents: looked at once in a generation (a device sync)."""
        if self._is_guided() is False or latents.shape[0] % 2:
            return False
        if latents.shape not in self._joined:
            scale = self.guidance
            self._joined[latents.shape] = (scale is None or scale > 1) and torch.equal(*latents.chunk(2))
        return self._joined[latents.shape]

    @property
    def guidance(self) -> float | None:
        """The guidance scale in force, or None where there is none to be read."""
        if self.row.guidance is None:
            return None
        names = [self.row.guidance]
        if self._expert == "transformer_2":
            names = ["_guidance_scale_2", "guider_2.guidance_scale", *names]
        for name in names:
            try:
                scale = attrgetter(name)(self._pipeline())
            except AttributeError:
                continue
            if isinstance(scale, (int, float)):
                return float(scale) + self.row.guidance_offset
        return None


def conditional_half(row: ModelRow, arguments: Mapping[str, Any], batch: int) -> dict[str, Any] | None:
    """The arguments of the conditional part of a joined call alone; None where a tensor might be batched and the row
    does not say."""
    part, half = row.joined.index(CONDITIONAL), {}
    for name, value in arguments.items():
        tensors = [leaf for leaf in pytree.tree_leaves(value) if isinstance(leaf, torch.Tensor)]
        if name in row.batched and tensors:
            if any(tensor.dim() and tensor.shape[0] not in (1, batch) for tensor in tensors):
                return None
            half[name] = pytree.tree_map_only(
                torch.Tensor,
                lambda t: t.chunk(len(row.joined))[part] if t.dim() and t.shape[0] == batch else t,
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
        leaves, spec = pytree.tree_flatten(output)
        form = cls(leaves, spec, keeps_batch=keeps_batch)
        tensors = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]
        if len(tensors) == 1:
            return form, tensors[0]
        if keeps_batch:
            return form, torch.cat([tensor.flatten(1) for tensor in tensors], dim=1)
        return form, torch.cat([tensor.flatten() for tensor in tensors])

    def unpack(self, packed: torch.Tensor) -> Any:
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
