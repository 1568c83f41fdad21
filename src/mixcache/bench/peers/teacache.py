"""TeaCache (arXiv 2411.19108): the block stack is skipped while the estimated change of its output stays small.

With e_t the timestep modulation that the blocks of step t are given, and means of absolute values as norms,

    a := a + p(|e_t - e_{t-1}| / |e_{t-1}|),

p a polynomial of degree 4 that is fitted on the model. The stack is skipped while a < rel_l1_thresh, its output then
being its input plus the residual of the last computed step; a computed step sets a back to 0. The first and the last
step are computed. On HunyuanVideo e_t is the first block's modulated input, as in the authors'
code for that model.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
from diffusers.hooks.hooks import StateManager
from diffusers.models.transformers.transformer_hunyuan_video import HunyuanVideoTransformerBlock

from mixcache.bench.methods import Account, Case, Method
from mixcache.bench.peers.calibrated import calibrated, run_calibration_prompts
from mixcache.bench.peers.stack import Branch, num_steps_of, position, ruled, stack_of

FAMILY = "teacache"
DEGREE = 4
Rescale = Callable[[float], float]
OnComputed = Callable[[str, int, torch.Tensor, torch.Tensor], None]
"""Told branch, step, modulation and residual of a computed step."""


def teacache(num_steps: int, threshold: float) -> Method:
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
    stack = stack_of(case)
    polynomial = calibrated(FAMILY, case, fitted_polynomial)
    rule = TeaRule(num_steps_of(case), threshold, rescale=lambda change: float(polynomial(change)))
    with ruled(*stack, rule, FAMILY):
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

    rule = TeaRule(num_steps_of(case), 0.0, rescale=lambda change: change, on_computed=note)
    with ruled(*stack_of(case), rule, FAMILY):
        run_calibration_prompts(case)
    modulations, residuals = np.array(changes).T
    return np.polynomial.Polynomial.fit(modulations, residuals, DEGREE)


def relative_change(now: torch.Tensor, before: torch.Tensor) -> float:
    return float((now - before).abs().mean() / before.abs().mean())


class TeaBranch(Branch):
    """What is remembered of the conditional or of the unconditional calls."""

    def reset(self, *args: Any, **kwargs: Any) -> None:
        super().reset()
        self.modulation: torch.Tensor | None = None
        """Of the step before, computed or not."""
        self.estimate = 0.0
        """Of the change since the last computed step."""
        self.stack_input: torch.Tensor | None = None
        self.residual: torch.Tensor | None = None
        """Of the last computed step."""


class TeaRule:
    """The accumulated change of the modulation says whether the stack is skipped."""

    def __init__(
        self, num_steps: int, threshold: float, rescale: Rescale, on_computed: OnComputed | None = None
    ) -> None:
        self.num_steps, self.threshold, self.rescale, self.on_computed = num_steps, threshold, rescale, on_computed
        self.branches = StateManager(TeaBranch)

    def begin(
        self, branch: TeaBranch, block: torch.nn.Module, hidden: torch.Tensor, temb: torch.Tensor
    ) -> torch.Tensor | None:
        branch.step, num_steps = position(self.branches.context, branch.step + 1, self.num_steps)
        modulation, before = _modulation(block, hidden, temb), branch.modulation
        branch.modulation = modulation
        if before is not None and branch.residual is not None and branch.step not in (0, num_steps - 1):
            branch.estimate += self.rescale(relative_change(modulation, before))
            if branch.estimate < self.threshold:
                return hidden + branch.residual
        branch.estimate, branch.stack_input = 0.0, hidden
        return None

    def end(self, branch: TeaBranch, output: torch.Tensor) -> None:
        branch.residual, branch.stack_input = output - branch.stack_input, None
        if self.on_computed:
            self.on_computed(self.branches.context.name, branch.step, branch.modulation, branch.residual)


def _modulation(block: torch.nn.Module, hidden_states: torch.Tensor, temb: torch.Tensor) -> torch.Tensor:
    """What is compared between steps."""
    if isinstance(block, HunyuanVideoTransformerBlock):
        modulated: torch.Tensor = block.norm1(hidden_states, emb=temb)[0]
        return modulated
    return temb
