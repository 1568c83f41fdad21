"""EasyCache (arXiv 2507.02860): the model's output is rebuilt from its input while the estimated change stays small.

With x_t input and v_t output of step t, c the last computed step, b the computed one before it, and means of absolute
values as norms,

    k = |v_c - v_b| / |x_c - x_b|,    a := a + k |x_t - x_{t-1}| / |v_{t-1}|.

While a < thresh, v_t = x_t + (v_c - x_c) stands in for the model; a computed step sets a back to 0. The first
ret_steps and the last step are computed. The branch that is called first in a step, on Wan the conditional one,
decides for the other. Where the pipeline does not tell the step,
the calls of each branch are counted.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from diffusers import HookRegistry
from diffusers.hooks import ModelHook
from diffusers.hooks.hooks import BaseState, StateManager
from diffusers.models.modeling_outputs import Transformer2DModelOutput

from mixcache.bench.methods import Account, Case, Method
from mixcache.bench.peers.leftovers import restored
from mixcache.bench.peers.stack import position
from mixcache.hosts.diffusers.denoisers import experts_of

FAMILY = "easycache"


def easycache(num_steps: int, threshold: float, share_first: float) -> Method:
    num_first_steps = round(share_first * num_steps)
    return Method(
        family=FAMILY,
        setting=f"thresh {threshold:g}, ret_steps {num_first_steps}",
        attach=partial(_attached, threshold, num_first_steps),
        origin="re-implementation of arXiv 2507.02860",
        is_peer=True,
    )


@contextlib.contextmanager
def _attached(threshold: float, num_first_steps: int, case: Case) -> Iterator[Account]:
    with contextlib.ExitStack() as stack:
        for transformer in experts_of(case.pipeline).values():
            stack.enter_context(restored(transformer))
            registry = HookRegistry.check_if_exists_or_initialize(transformer)
            num_steps = case.arguments["num_inference_steps"]
            registry.register_hook(RootHook(threshold, num_first_steps, num_steps), FAMILY)
        yield dict


class Branch(BaseState):
    """What is remembered of the conditional or of the unconditional calls."""

    def __init__(self) -> None:
        self.reset()

    def reset(self, *args: Any, **kwargs: Any) -> None:
        self.step = -1
        self.input: torch.Tensor | None = None
        self.output: torch.Tensor | None = None
        """Of the step before, computed or not."""
        self.computed: tuple[torch.Tensor, torch.Tensor] | None = None
        """Input and output of the last computed step."""
        self.rate: float | None = None
        """k of the equation."""
        self.estimate = 0.0
        """a of the equation."""


class RootHook(ModelHook):
    """Stands before the whole transformer."""

    _is_stateful = True

    def __init__(self, threshold: float, num_first_steps: int, num_steps: int) -> None:
        super().__init__()
        self.threshold, self.num_first_steps, self.num_steps = threshold, num_first_steps, num_steps
        self.branches = StateManager(Branch)
        self.decided_step: int | None = None
        self.skips = False

    def new_forward(
        self, module: torch.nn.Module, hidden_states: torch.Tensor, *args: Any, return_dict: bool = True, **kwargs: Any
    ) -> Any:
        branch = self.branches.get_state()
        branch.step, num_steps = position(self.branches.context, branch.step + 1, self.num_steps)
        if branch.step != self.decided_step:
            self.decided_step, self.skips = branch.step, self._may_skip(branch, hidden_states, num_steps)
        if self.skips and branch.computed is not None:
            computed_input, computed_output = branch.computed
            output = hidden_states + (computed_output - computed_input)
        else:
            (output,) = self.fn_ref.original_forward(hidden_states, *args, return_dict=False, **kwargs)
            if branch.computed is not None:
                computed_input, computed_output = branch.computed
                branch.rate = _norm(output - computed_output) / _norm(hidden_states - computed_input)
            branch.computed, branch.estimate = (hidden_states, output), 0.0
        branch.input, branch.output = hidden_states, output
        return Transformer2DModelOutput(sample=output) if return_dict else (output,)

    def _may_skip(self, branch: Branch, hidden_states: torch.Tensor, num_steps: int) -> bool:
        if branch.step < self.num_first_steps or branch.step == num_steps - 1:
            return False
        if branch.rate is None or branch.input is None or branch.output is None:
            return False
        branch.estimate += branch.rate * _norm(hidden_states - branch.input) / _norm(branch.output)
        return branch.estimate < self.threshold

    def reset_state(self, module: torch.nn.Module) -> torch.nn.Module:
        self.branches.reset()
        self.decided_step, self.skips = None, False
        return module


def _norm(value: torch.Tensor) -> float:
    return float(value.abs().mean())
