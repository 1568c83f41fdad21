"""What a call of the denoiser says, and what the pipeline around it says: branch, batch, text, guidance.

Where an answer would be a guess there is none, and the call is computed in full.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

import torch

from mixcache.core.calls import CONDITIONAL, CallInfo
from mixcache.core.seen import Seen
from mixcache.hosts.diffusers.clock import Clock, UnknownCallError
from mixcache.hosts.diffusers.packing import first_tensor
from mixcache.hosts.diffusers.rows import ModelRow

GUIDER_PREFIX = "pred_"
"""What guiders put before the names of branches."""
JOINED_CONTEXT = "cond_uncond"


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
        if self.row.per_frame_noise and isinstance(timestep, torch.Tensor) and not _is_uniform(timestep):
            raise UnknownCallError("the frames are at different noise levels")
        moment = self._clock.now(context, timestep)
        guider = getattr(self._pipeline(), "guider", None)
        name = getattr(context, "name", None)
        branch = name.removeprefix(GUIDER_PREFIX) if name is not None else self._branch_by_order(moment.step, arguments)
        parts: tuple[str, ...] = ()
        if self.row.batched_cfg and name in (None, JOINED_CONTEXT):
            parts = self.row.batched_cfg if self._is_joined(latents) else ()
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
            is_guided_alike=guider is None,
            signature=(
                latents.shape,
                latents.dtype,
                latents.device,
                self._num_guided_calls(name, guider),
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
        if self.row.batched_cfg:
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
            if known.seen.value is text:
                return number
        else:
            number = self._num_texts = self._num_texts + 1
        self._texts[branch] = Text(Seen.of(text), number)
        return number

    def forget(self) -> None:
        """Drops what was seen of the generation that is over."""
        self._step, self._num_calls, self._has_repeated = -1, 0, False
        self._texts.clear()
        self._joined.clear()

    def _num_guided_calls(self, name: str | None, guider: Any) -> int | None:
        """How many calls the pipeline's guider makes in this step, None without one: guidance may begin and end within
        a generation."""
        if self._expert == "transformer_2":
            guider = getattr(self._pipeline(), "guider_2", guider)
        num_calls = getattr(guider, "num_conditions", None)
        if name is None and num_calls is not None and num_calls > len(self.row.order):
            raise UnknownCallError(f"{num_calls} calls in a step and no cache context to name them")
        return num_calls

    def _is_guided(self) -> bool | None:
        """Whether the pipeline calls both branches now, None where that is not to be read: a callback may change it."""
        guided = getattr(self._pipeline(), "do_classifier_free_guidance", None)
        if not isinstance(guided, bool) and not self.row.batched_cfg and (scale := self.guidance) is not None:
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
