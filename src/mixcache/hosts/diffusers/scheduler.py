"""The scheduler of a pipeline, whose steps a corrector may have taken again.

Its method `step` is covered on the one object (`overlay.py`). Only schedulers that do the same for the same values are:
those that draw noise in a step are left alone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from mixcache.core.observer import Observer
from mixcache.hosts.diffusers.overlay import KEY, put_on, take_off

REPEATABLE: dict[str, Callable[[Any], bool]] = {
    "FlowMatchEulerDiscreteScheduler": lambda config: not config.stochastic_sampling,
    "UniPCMultistepScheduler": lambda config: True,
    "DPMSolverMultistepScheduler": lambda config: not config.algorithm_type.startswith("sde"),
    "DDIMScheduler": lambda config: True,
    "CogVideoXDDIMScheduler": lambda config: True,
}
"""Classes of diffusers, and by which settings they are repeatable."""
HARMLESS: dict[str, Callable[[Any], bool]] = {
    "return_dict": lambda value: True,
    "generator": lambda value: True,  # drawn from for eta alone
    "eta": lambda value: not value,
}
"""Further arguments of `step` that leave a step repeatable, and with which values."""


def is_repeatable(scheduler: Any) -> bool:
    """True where a step from the same state with the same values arrives at the same sample."""
    rule = REPEATABLE.get(type(scheduler).__name__)
    return rule is not None and rule(scheduler.config)


class SchedulerHook:
    """Covers `scheduler.step` and lets the engine's corrector see each step first. A `corrector.Solver`."""

    covers = ("step",)

    def __init__(self, scheduler: Any, on_step: Callable[[], None] = lambda: None) -> None:
        self.scheduler = scheduler
        self.engine: Observer | None = None
        """Of the transformer that was called last."""
        self._on_step = on_step
        self._inner: Callable[..., Any] = scheduler.step

    def put_on(self) -> None:
        put_on(self.scheduler, self)

    def take_off(self) -> None:
        """Leaves the scheduler as it was."""
        self.engine = None
        take_off(self.scheduler, self)

    def step(
        self,
        scheduler: Any,
        inner: Callable[..., Any],
        model_output: Any,
        timestep: Any,
        sample: Any,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        """The pipeline's step, from where the corrector puts it."""
        engine = self.engine
        is_known = not args and all(name in HARMLESS and HARMLESS[name](value) for name, value in kwargs.items())
        if engine is None or not is_known:
            return inner(model_output, timestep, sample, *args, **kwargs)
        self._inner = inner
        model_output, sample = engine.solve(self, model_output, timestep, sample)
        answer = inner(model_output, timestep, sample, **kwargs)
        engine.solved(answer[0])
        self._on_step()
        return answer

    def state(self) -> dict[str, Any]:
        """All attributes. Lists are written to by steps, and latents by whoever else holds them: these are copied."""
        return {name: _own(value) for name, value in vars(self.scheduler).items() if name not in ("step", KEY)}

    def restore(self, state: dict[str, Any]) -> None:
        vars(self.scheduler).update(state)

    def advance(self, output: torch.Tensor, timestep: Any, sample: torch.Tensor) -> torch.Tensor:
        arrived: torch.Tensor = self._inner(output, timestep, sample, return_dict=False)[0]
        return arrived


def _own(value: Any) -> Any:
    if isinstance(value, list):
        return [_own(each) for each in value]
    # of more than one dimension are the latents and outputs that a multistep solver keeps, and no table
    return value.detach().clone() if isinstance(value, torch.Tensor) and value.dim() > 1 else value
