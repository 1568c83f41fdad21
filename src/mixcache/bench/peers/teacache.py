"""TeaCache (arXiv 2411.19108): the block stack is skipped while the estimated change of its output stays small.

With e_t the timestep modulation that the blocks of step t are given, and means of absolute values as norms,

    a := a + p(|e_t - e_{t-1}| / |e_{t-1}|),

p a polynomial of degree 4 that is fitted on the model. The stack is skipped while a < rel_l1_thresh, its output then
being its input plus the residual of the last computed step; a computed step sets a back to 0. The first and the last
step are computed. Conditional and unconditional calls are told apart by their cache context; where that does not tell
the step, the calls of each are counted. On HunyuanVideo e_t is the first block's modulated input, as in the authors'
code for that model.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from diffusers import HookRegistry
from diffusers.hooks import ModelHook
from diffusers.hooks.hooks import BaseState, CacheContext, StateManager
from diffusers.models.transformers.transformer_hunyuan_video import HunyuanVideoTransformerBlock

from mixcache.bench.methods import Account, Case, Method
from mixcache.bench.peers.calibrated import calibrated, run_calibration_prompts
from mixcache.bench.peers.leftovers import restored
from mixcache.hosts.diffusers.denoisers import experts_of
from mixcache.hosts.diffusers.rows import row_for

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
    if len(experts_of(case.pipeline)) > 1:
        raise ValueError("the published rule is for one transformer, and this pipeline has two experts")
    polynomial = calibrated(FAMILY, case, fitted_polynomial)
    with hooked(
        case.pipeline.transformer,
        _blocks(case),
        _num_steps(case),
        threshold,
        rescale=lambda change: float(polynomial(change)),
    ):
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

    with hooked(
        case.pipeline.transformer, _blocks(case), _num_steps(case), 0.0, rescale=lambda change: change, on_computed=note
    ):
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
        self.step = -1
        self.modulation: torch.Tensor | None = None
        """Of the step before, computed or not."""
        self.estimate = 0.0
        """Of the change since the last computed step."""
        self.stack_input: torch.Tensor | None = None
        self.residual: torch.Tensor | None = None
        """Of the last computed step."""
        self.has_two_streams = False
        """True if blocks give the text's stream beside the hidden states, which a skipped stack leaves as it is."""
        self.skips = False


class Rule:
    """What is decided when a stack begins, and kept when it has ended."""

    def __init__(self, num_steps: int, threshold: float, rescale: Rescale, on_computed: OnComputed | None) -> None:
        self.num_steps, self.threshold, self.rescale, self.on_computed = num_steps, threshold, rescale, on_computed
        self.branches = StateManager(Branch)

    def begin(self, branch: Branch, stack_input: torch.Tensor, modulation: torch.Tensor) -> None:
        branch.step, num_steps = position(self.branches.context, branch.step + 1, self.num_steps)
        branch.skips = branch.modulation is not None and branch.step not in (0, num_steps - 1)
        if branch.skips:
            branch.estimate += self.rescale(relative_change(modulation, branch.modulation))
            branch.skips = branch.estimate < self.threshold
        branch.modulation = modulation
        if not branch.skips:
            branch.estimate, branch.stack_input = 0.0, stack_input

    def end(self, branch: Branch, stack_output: torch.Tensor) -> None:
        branch.residual = stack_output - branch.stack_input
        branch.stack_input = None
        if self.on_computed:
            self.on_computed(self.branches.context.name, branch.step, branch.modulation, branch.residual)


class BlockHook(ModelHook):
    """Stands at a block: the first decides and answers for the whole stack where that is skipped, the others pass its
    output through, and the last keeps the residual of a computed stack."""

    def __init__(self, rule: Rule, *, is_first: bool, is_last: bool) -> None:
        super().__init__()
        self.rule, self.is_first, self.is_last, self._is_stateful = rule, is_first, is_last, is_first
        self.branches = rule.branches  # whose context diffusers sets, if it finds them on a hook

    def new_forward(self, module: torch.nn.Module, *args: Any, **kwargs: Any) -> Any:
        hidden_states, encoder_hidden_states, temb = _stack_input(args, kwargs)
        branch = self.branches.get_state()
        if self.is_first:
            self.rule.begin(branch, hidden_states, _modulation(module, hidden_states, temb))
            hidden_states = hidden_states + branch.residual if branch.skips else hidden_states
        if branch.skips:
            return (hidden_states, encoder_hidden_states) if branch.has_two_streams else hidden_states
        output = self.fn_ref.original_forward(*args, **kwargs)
        if self.is_last:
            branch.has_two_streams = isinstance(output, tuple)
            self.rule.end(branch, output[0] if branch.has_two_streams else output)
        return output

    def reset_state(self, module: torch.nn.Module) -> torch.nn.Module:
        self.branches.reset()
        return module


def _blocks(case: Case) -> list[torch.nn.Module]:
    """All transformer blocks, in the order in which they run."""
    transformer = case.pipeline.transformer
    return [block for name in row_for(transformer, case.pipeline).blocks for block in getattr(transformer, name)]


@contextlib.contextmanager
def hooked(
    transformer: torch.nn.Module,
    blocks: Sequence[torch.nn.Module],
    num_steps: int,
    threshold: float,
    rescale: Rescale,
    on_computed: OnComputed | None = None,
) -> Iterator[None]:
    """The rule stands at these blocks of the transformer, for trajectories of `num_steps`."""
    rule = Rule(num_steps, threshold, rescale, on_computed)
    with restored(transformer):
        for block in blocks:
            hook = BlockHook(rule, is_first=block is blocks[0], is_last=block is blocks[-1])
            HookRegistry.check_if_exists_or_initialize(block).register_hook(hook, FAMILY)
        HookRegistry.check_if_exists_or_initialize(transformer).invalidate_child_registries_cache()
        yield


def position(context: CacheContext, num_calls: int, num_steps: int) -> tuple[int, int]:
    """Number of the step and of all steps, as the pipeline says or else by what was counted."""
    if context.step_index is None or context.num_inference_steps is None:
        return num_calls, num_steps
    return context.step_index, context.num_inference_steps


def _num_steps(case: Case) -> int:
    return int(case.arguments["num_inference_steps"])


def _stack_input(args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Any]:
    """Of a block's arguments, the first three in every supported model: both streams and the timestep's embedding."""
    names = ("hidden_states", "encoder_hidden_states", "temb")
    return [args[index] if index < len(args) else kwargs[name] for index, name in enumerate(names)]


def _modulation(block: torch.nn.Module, hidden_states: torch.Tensor, temb: torch.Tensor) -> torch.Tensor:
    """What is compared between steps."""
    if isinstance(block, HunyuanVideoTransformerBlock):
        modulated: torch.Tensor = block.norm1(hidden_states, emb=temb)[0]
        return modulated
    return temb
