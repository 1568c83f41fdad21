"""The stack of a transformer's blocks as one thing: a rule answers for it, or has it computed and looks at its output.

A hook stands at every block. The first one asks the rule, the others pass an answer through, and the last one hands
over what a computed stack gave. Conditional and unconditional calls are told apart by their cache context; where that
does not tell the step, the calls of each are counted.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import torch
from diffusers import HookRegistry
from diffusers.hooks import ModelHook
from diffusers.hooks.hooks import BaseState, CacheContext, StateManager

from mixcache.bench.methods import Case
from mixcache.bench.peers.leftovers import restored
from mixcache.hosts.diffusers.denoisers import blocks_of, experts_of
from mixcache.hosts.diffusers.rows import row_for


class Branch(BaseState):
    """What is remembered of the conditional or of the unconditional calls."""

    def __init__(self) -> None:
        self.reset()

    def reset(self, *args: Any, **kwargs: Any) -> None:
        self.step = -1
        self.has_two_streams = False
        """True if blocks give the text's stream beside the hidden states, which a skipped stack leaves as it is."""
        self.skips = False


class Rule(Protocol):
    """Decides when a stack begins, and learns when it has ended."""

    branches: StateManager
    """Of states of a kind of `Branch`."""

    def begin(self, branch: Any, block: torch.nn.Module, hidden: torch.Tensor, temb: torch.Tensor) -> Any:
        """The stack's output in place of computing it, or None; `block` is the first."""

    def end(self, branch: Any, output: torch.Tensor) -> None:
        """A computed stack gave this."""


class BlockHook(ModelHook):
    """Stands at a block."""

    def __init__(self, rule: Rule, *, is_first: bool, is_last: bool) -> None:
        super().__init__()
        self.rule, self.is_first, self.is_last, self._is_stateful = rule, is_first, is_last, is_first
        self.branches = rule.branches  # whose context diffusers sets, if it finds them on a hook

    def new_forward(self, module: torch.nn.Module, *args: Any, **kwargs: Any) -> Any:
        hidden_states, encoder_hidden_states, temb = _stack_input(args, kwargs)
        branch = self.branches.get_state()
        if self.is_first:
            answer = self.rule.begin(branch, module, hidden_states, temb)
            branch.skips = answer is not None
            hidden_states = hidden_states if answer is None else answer
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


def stack_of(case: Case) -> tuple[torch.nn.Module, list[torch.nn.Module]]:
    """The pipeline's transformer and its blocks, in the order in which they run; ValueError where it has two."""
    if len(experts_of(case.pipeline)) > 1:
        raise ValueError("the published rule is for one transformer, and this pipeline has two experts")
    transformer = case.pipeline.transformer
    return transformer, blocks_of(transformer, row_for(transformer, case.pipeline))


def num_steps_of(case: Case) -> int:
    return int(case.arguments["num_inference_steps"])


@contextlib.contextmanager
def ruled(transformer: torch.nn.Module, blocks: Sequence[torch.nn.Module], rule: Rule, family: str) -> Iterator[None]:
    """The rule stands at these blocks of the transformer."""
    with restored(transformer):
        for block in blocks:
            hook = BlockHook(rule, is_first=block is blocks[0], is_last=block is blocks[-1])
            HookRegistry.check_if_exists_or_initialize(block).register_hook(hook, family)
        HookRegistry.check_if_exists_or_initialize(transformer).invalidate_child_registries_cache()
        yield


def position(context: CacheContext, num_calls: int, num_steps: int) -> tuple[int, int]:
    """Number of the step and of all steps, as the pipeline says or else by what was counted."""
    if context.step_index is None or context.num_inference_steps is None:
        return num_calls, num_steps
    return context.step_index, context.num_inference_steps


def _stack_input(args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Any]:
    """Of a block's arguments, the first three in every supported model: both streams and the timestep's embedding."""
    names = ("hidden_states", "encoder_hidden_states", "temb")
    return [args[index] if index < len(args) else kwargs[name] for index, name in enumerate(names)]
