"""TeaCache (arXiv 2411.19108): the block stack is skipped while the estimated change of its output stays small.

With e_t the timestep modulation that the blocks of step t are given, and means of absolute values as norms,

    a := a + p(|e_t - e_{t-1}| / |e_{t-1}|),

p a polynomial of degree 4 that is fitted on the model. The stack is skipped while a < rel_l1_thresh, its output then
being its input plus the residual of the last computed step; a computed step sets a back to 0. The first and the last
step are computed. Conditional and unconditional calls are told apart by their cache context.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
from diffusers import HookRegistry
from diffusers.hooks import ModelHook
from diffusers.hooks.hooks import BaseState, StateManager

from mixcache.bench.methods import MANY_STEPS, Account, Case, Method
from mixcache.bench.peers.calibrated import calibrated, run_calibration_prompts
from mixcache.bench.peers.leftovers import restored

FAMILY = "teacache"
DEGREE = 4
Rescale = Callable[[float], float]
OnComputed = Callable[[str, int, torch.Tensor, torch.Tensor], None]
"""Told branch, step, modulation and residual of a computed step."""


def teacaches(num_steps: int) -> list[Method]:
    many, few = (0.03, 0.04, 0.05, 0.07, 0.1), (0.06, 0.075, 0.12, 0.15, 0.2, 0.3)
    return [_teacache(threshold) for threshold in (many if num_steps > MANY_STEPS else few)]


def _teacache(threshold: float) -> Method:
    return Method(
        family=FAMILY,
        setting=f"rel_l1_thresh {threshold:g}",
        attach=partial(_attached, threshold),
        origin="re-implementation of arXiv 2411.19108",
        is_peer=True,
        is_calibrated=True,
    )


@contextlib.contextmanager
def _attached(threshold: float, case: Case) -> Iterator[Account]:
    polynomial = calibrated(FAMILY, case, fitted_polynomial)
    with hooked(case.pipeline.transformer, threshold, rescale=lambda change: float(polynomial(change))):
        yield dict


def fitted_polynomial(case: Case) -> np.polynomial.Polynomial:
    """Least squares over the steps of all calibration prompts: the change of the residual by that of the modulation."""
    changes: list[tuple[float, float]] = []
    before: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}

    def note(branch: str, step: int, modulation: torch.Tensor, residual: torch.Tensor) -> None:
        if step:
            old_modulation, old_residual = before[branch]
            changes.append((relative_change(modulation, old_modulation), relative_change(residual, old_residual)))
        before[branch] = modulation, residual

    with hooked(case.pipeline.transformer, threshold=0.0, rescale=lambda change: change, on_computed=note):
        run_calibration_prompts(case)
    modulations, residuals = np.array(changes).T
    return np.polynomial.Polynomial.fit(modulations, residuals, DEGREE)


def relative_change(now: torch.Tensor, before: torch.Tensor) -> float:
    return float((now - before).abs().mean() / before.abs().mean())


class Branch(BaseState):
    """What is remembered of the conditional or of the unconditional calls."""

    def __init__(self) -> None:
        self.reset()

    def reset(self, *args: Any, **kwargs: Any) -> None:
        self.modulation: torch.Tensor | None = None
        """Of the step before, computed or not."""
        self.estimate = 0.0
        """Of the change since the last computed step."""
        self.stack_input: torch.Tensor | None = None
        self.residual: torch.Tensor | None = None
        """Of the last computed step."""
        self.skips = False


class FirstBlockHook(ModelHook):
    """Stands before the first block: decides, and answers for the whole stack where that is skipped."""

    _is_stateful = True

    def __init__(self, branches: StateManager, threshold: float, rescale: Rescale) -> None:
        super().__init__()
        self.branches, self.threshold, self.rescale = branches, threshold, rescale

    def new_forward(self, module: torch.nn.Module, *args: Any, **kwargs: Any) -> Any:
        hidden_states, modulation = _stack_input(*args, **kwargs)
        branch = self.branches.get_state()
        branch.skips = self._may_skip(branch, modulation)
        branch.modulation = modulation
        if branch.skips:
            return hidden_states + branch.residual
        branch.estimate, branch.stack_input = 0.0, hidden_states
        return self.fn_ref.original_forward(*args, **kwargs)

    def _may_skip(self, branch: Branch, modulation: torch.Tensor) -> bool:
        step, num_steps = position(self.branches)
        if branch.modulation is None or step in (0, num_steps - 1):
            return False
        branch.estimate += self.rescale(relative_change(modulation, branch.modulation))
        return branch.estimate < self.threshold

    def reset_state(self, module: torch.nn.Module) -> torch.nn.Module:
        self.branches.reset()
        return module


class LaterBlockHook(ModelHook):
    """Passes the output of a skipped stack through."""

    def __init__(self, branches: StateManager) -> None:
        super().__init__()
        self.branches = branches

    def new_forward(self, module: torch.nn.Module, *args: Any, **kwargs: Any) -> Any:
        if self.branches.get_state().skips:
            return _stack_input(*args, **kwargs)[0]
        return self.fn_ref.original_forward(*args, **kwargs)


class LastBlockHook(LaterBlockHook):
    """Keeps the residual of a computed stack too."""

    def __init__(self, branches: StateManager, on_computed: OnComputed | None) -> None:
        super().__init__(branches)
        self.on_computed = on_computed

    def new_forward(self, module: torch.nn.Module, *args: Any, **kwargs: Any) -> Any:
        output = super().new_forward(module, *args, **kwargs)
        branch = self.branches.get_state()
        if not branch.skips:
            branch.residual = output - branch.stack_input
            branch.stack_input = None
            if self.on_computed:
                step, _ = position(self.branches)
                self.on_computed(self.branches.context.name, step, branch.modulation, branch.residual)
        return output


@contextlib.contextmanager
def hooked(
    transformer: Any, threshold: float, rescale: Rescale, on_computed: OnComputed | None = None
) -> Iterator[None]:
    """The rule stands at the blocks of a Wan transformer."""
    branches = StateManager(Branch)
    first, *later, last = transformer.blocks
    hooks = [
        (first, FirstBlockHook(branches, threshold, rescale)),
        *((block, LaterBlockHook(branches)) for block in later),
        (last, LastBlockHook(branches, on_computed)),
    ]
    with restored(transformer):
        for block, hook in hooks:
            HookRegistry.check_if_exists_or_initialize(block).register_hook(hook, FAMILY)
        HookRegistry.check_if_exists_or_initialize(transformer).invalidate_child_registries_cache()
        yield


def position(branches: StateManager) -> tuple[int, int]:
    """Number of the step and of all steps; ValueError where the pipeline does not say."""
    context = branches.context
    if context.step_index is None or context.num_inference_steps is None:
        raise ValueError("the pipeline does not give the step to its cache context, as WanPipeline does")
    return context.step_index, context.num_inference_steps


def _stack_input(
    hidden_states: torch.Tensor, encoder_hidden_states: torch.Tensor, temb: torch.Tensor, rotary_emb: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    """Of a Wan block's arguments, those that count here."""
    return hidden_states, temb
