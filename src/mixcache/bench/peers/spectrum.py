"""Spectrum (arXiv 2603.01623): the output of the block stack is forecast from all computed ones, by Chebyshev series.

With s the number of a step, tau = 2 s / (number of steps) - 1 and T_m the Chebyshev polynomials, the coefficients c_m
of the computed outputs h_i are those of least |h_i - sum c_m T_m(tau_i)|^2 + lam |c|^2. A forecast is

    w sum c_m T_m(tau) + (1 - w) (the line through the last two computed outputs),

in steps. After `num_first_steps` every `window`-th step is computed, and the window grows by `flex` with each. As in
the authors' code the steps are those of a schedule, whatever the outputs do; it is written for 50 steps, here tau goes
by the number there is. Values are float32 here, where theirs are rounded to bfloat16.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
from diffusers.hooks.hooks import StateManager

from mixcache.bench.methods import Account, Case, Method
from mixcache.bench.peers.stack import Branch, num_steps_of, position, ruled, stack_of

FAMILY = "spectrum"


def spectrum(
    num_steps: int,
    window: float,
    flex: float,
    weight: float = 0.5,
    num_first_steps: int = 5,
    degree: int = 4,
    ridge: float = 0.1,
) -> Method:
    setting = f"window {window:g}, flex {flex:g}, w {weight:g}, first {num_first_steps}"
    computed = computed_steps(num_steps, num_first_steps, window, flex)
    return Method(
        family=FAMILY,
        setting=setting,
        attach=partial(_attached, computed, weight, degree, ridge),
        origin="re-implementation of arXiv 2603.01623",
        is_peer=True,
    )


def computed_steps(num_steps: int, num_first_steps: int, window: float, flex: float) -> frozenset[int]:
    """The schedule."""
    computed, num_cached = set(range(min(num_first_steps, num_steps))), 0
    for step in range(num_first_steps, num_steps):
        if (num_cached + 1) % math.floor(window) == 0:
            computed.add(step)
            window, num_cached = round(window + flex, 3), 0
        else:
            num_cached += 1
    return frozenset(computed)


def forecast_weights(known: list[int], step: int, num_steps: int, weight: float, degree: int, ridge: float) -> Any:
    """What each computed output counts for in the forecast of a step; of shape (len(known),)."""

    def basis(steps: list[int]) -> Any:
        return np.polynomial.chebyshev.chebvander(2 * np.array(steps) / num_steps - 1, degree)

    design = basis(known)
    fitted = np.linalg.solve(design.T @ design + ridge * np.eye(degree + 1), design.T)
    line = np.zeros(len(known))
    line[-1] = 1.0
    if len(known) > 1:
        ahead = (step - known[-1]) / (known[-1] - known[-2])
        line[-2:] += (-ahead, ahead)
    return weight * (basis([step]) @ fitted)[0] + (1 - weight) * line


class SpectrumBranch(Branch):
    """What is remembered of the conditional or of the unconditional calls."""

    def reset(self, *args: Any, **kwargs: Any) -> None:
        super().reset()
        self.known: list[int] = []
        """Computed steps."""
        self.outputs: list[torch.Tensor] = []
        """Of each the stack's."""


class SpectrumRule:
    """The schedule, and the forecast in between."""

    def __init__(self, num_steps: int, computed: frozenset[int], weight: float, degree: int, ridge: float) -> None:
        self.num_steps, self.computed = num_steps, computed
        self.forecast: dict[str, Any] = {"num_steps": num_steps, "weight": weight, "degree": degree, "ridge": ridge}
        self.branches = StateManager(SpectrumBranch)

    def begin(
        self, branch: SpectrumBranch, block: torch.nn.Module, hidden: torch.Tensor, temb: torch.Tensor
    ) -> torch.Tensor | None:
        branch.step, _ = position(self.branches.context, branch.step + 1, self.num_steps)
        if not branch.step:
            branch.known, branch.outputs = [], []
        if branch.step in self.computed:
            return None
        weights = forecast_weights(branch.known, branch.step, **self.forecast)
        return sum((float(w) * h for w, h in zip(weights, branch.outputs, strict=True)), torch.zeros_like(hidden))

    def end(self, branch: SpectrumBranch, output: torch.Tensor) -> None:
        branch.known.append(branch.step)
        branch.outputs.append(output)


@contextlib.contextmanager
def _attached(computed: frozenset[int], weight: float, degree: int, ridge: float, case: Case) -> Iterator[Account]:
    rule = SpectrumRule(num_steps_of(case), computed, weight, degree, ridge)
    with ruled(*stack_of(case), rule, FAMILY):
        yield dict
