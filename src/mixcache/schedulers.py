"""The scheduler of a pipeline, whose steps a corrector may have taken again.

Its method `step` is replaced on the one object, and put back. Only schedulers that do the same for the same values are:
those that draw noise in a step are left alone.
"""

from __future__ import annotations

import inspect
import types
from collections.abc import Callable
from typing import Any

import torch

from mixcache.engine import Engine

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
    """Stands in for `scheduler.step` and lets the engine's corrector see each step first. A `corrector.Solver`."""

    def __init__(self, scheduler: Any) -> None:
        self.scheduler = scheduler
        self.engine: Engine | None = None
        """Of the transformer that was called last."""
        self._covered = vars(scheduler).get("step")
        self._step = scheduler.step
        self.__signature__ = inspect.signature(scheduler.step)  # pipelines look for `eta` and `generator` in it

    def put_on(self) -> None:
        self.scheduler.step = self

    def take_off(self) -> None:
        """Leaves the scheduler as it was; where somebody has replaced `step` since, this hook passes everything on."""
        self.engine = None
        if vars(self.scheduler).get("step") is self:
            del self.scheduler.step
            covered = self._covered
            while isinstance(covered, SchedulerHook) and covered.engine is None:  # of another handle, disabled since
                covered = covered._covered
            if covered is not None:
                self.scheduler.step = covered

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        """A copy of the scheduler steps by itself."""
        copied = memo.get(id(self.scheduler), self.scheduler)
        return types.MethodType(type(copied).step, copied)

    def __call__(self, model_output: Any, timestep: Any, sample: Any, *args: Any, **kwargs: Any) -> Any:
        engine = self.engine
        is_known = not args and all(name in HARMLESS and HARMLESS[name](value) for name, value in kwargs.items())
        if engine is None or not is_known:
            return self._step(model_output, timestep, sample, *args, **kwargs)
        model_output, sample = engine.before_solver(self, model_output, timestep, sample)
        answer = self._step(model_output, timestep, sample, **kwargs)
        engine.after_solver(answer[0])
        return answer

    def state(self) -> dict[str, Any]:
        """All attributes; lists are written to by steps, tensors are not."""
        return {
            name: list(value) if isinstance(value, list) else value
            for name, value in vars(self.scheduler).items()
            if name != "step"
        }

    def restore(self, state: dict[str, Any]) -> None:
        vars(self.scheduler).update(state)

    def advance(self, output: torch.Tensor, timestep: Any, sample: torch.Tensor) -> torch.Tensor:
        arrived: torch.Tensor = self._step(output, timestep, sample, return_dict=False)[0]
        return arrived
