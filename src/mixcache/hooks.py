"""The hooks that `enable` puts on a model, and how they are taken off.

One root hook on the transformer owns context, decision and state; block hooks, on the span only and only where the
policy may choose `block`, ask the engine.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from diffusers import HookRegistry
from diffusers.hooks import ModelHook
from diffusers.hooks.hooks import BaseState, StateManager

from mixcache.calls import CallInfo, SpanMode
from mixcache.decision import Granularity
from mixcache.engine import Engine, Streams
from mixcache.host import (
    Form,
    Reader,
    UnknownCallError,
    conditional_half,
    named_arguments,
    signature_of,
)
from mixcache.policies import Bounded
from mixcache.velocity import v_from_velocity, velocity_from_v

logger = logging.getLogger("mixcache")
HOOK = "mixcache"
COMPILE_FIRST = "mixcache decides outside of what is compiled; compile in place, transformer.compile(), before enable"


class Owner(Protocol):
    """Who is told of calls: the handle, which knows the other transformers too."""

    def before_call(self, engine: Engine) -> None: ...


class _NoState(BaseState):
    """The state manager is here for its context alone."""

    def reset(self, *args: Any, **kwargs: Any) -> None:
        """Holds nothing."""


class OutsideHook(ModelHook):
    """A hook that can stand around a module that is compiled in place, since python that changes with every step has no
    place in a graph."""

    def __init__(self) -> None:
        super().__init__()
        self.compiled: Callable[..., Any] | None = None
        """What runs the module where it is compiled; this hook then stands around it."""
        self.standing_outside: Callable[..., Any] | None = None
        self.installed_forward: Any = None
        """The forward that diffusers' registry put in for this hook, to tell whether something wrapped it since."""

    def is_outermost(self, module: torch.nn.Module) -> bool:
        """False where the module was compiled, or compiled anew, since."""
        return module._compiled_call_impl is self.standing_outside

    def stand_outside(self, module: torch.nn.Module, answer: Callable[..., Any]) -> None:
        """Has `answer` called in place of what was compiled."""
        self.compiled = module._compiled_call_impl
        module._compiled_call_impl = self.standing_outside = answer

    def step_back(self, module: torch.nn.Module) -> None:
        """Undoes `stand_outside`."""
        if self.standing_outside is not None and self.is_outermost(module):
            module._compiled_call_impl = self.compiled
        self.compiled = self.standing_outside = None


class RootHook(OutsideHook):
    """Stands before the whole transformer: turns a forward into `engine.call`."""

    _is_stateful = True

    def __init__(self, engine: Engine, reader: Reader, module: torch.nn.Module) -> None:
        super().__init__()
        self.engine, self.reader = engine, reader
        self.state_manager = StateManager(_NoState)
        self.owner: Owner | None = None
        """The handle, which lives as long as the hook."""
        self._is_within = False
        """True while what is compiled runs, and this hook, in diffusers' registry, is a part of its graph."""
        self._signature = signature_of(module)
        self._forms: dict[tuple[str, bool], Form] = {}
        self._known_lengths: set[int] = set()
        self._has_told_half = False

    def new_forward(self, module: torch.nn.Module, *args: Any, **kwargs: Any) -> Any:
        return self.run(*args, **kwargs) if self._is_within else self.answer(*args, **kwargs)

    def run(self, *args: Any, **kwargs: Any) -> Any:
        """Runs the transformer itself."""
        if self.compiled is None or self._is_within:
            return self.fn_ref.original_forward(*args, **kwargs)
        self._is_within = True
        try:
            return self.compiled(*args, **kwargs)
        finally:
            self._is_within = False

    def follow_compilation(self, module: torch.nn.Module) -> None:
        """Stands around the transformer where it was compiled as a whole, or compiled anew, since."""
        if not self.is_outermost(module):
            self.stand_outside(module, self.answer)

    @torch.compiler.disable(reason=COMPILE_FIRST)  # type: ignore[untyped-decorator]
    def answer(self, *args: Any, **kwargs: Any) -> Any:
        """The output of one call of the transformer."""
        if self.owner is not None:
            self.owner.before_call(self.engine)
        named = named_arguments(self._signature, args, kwargs)
        returns_dict = bool(named.get("return_dict", True))
        try:
            info = self._read(named, returns_dict)
        except UnknownCallError as reason:
            self._notice_in_full(reason)
            self.engine.reset()
            return self.run(*args, **kwargs)
        self._notice_length(info.num_steps)
        latents = self.reader.latents(named)
        computed: list[Any] = []

        def compute() -> torch.Tensor:
            output = self.run(*args, **kwargs)
            form, packed = Form.packed(output, keeps_batch=bool(info.parts))
            self._forms[info.branch, returns_dict] = form
            kept = velocity_from_v(packed, latents, info.mix)
            computed.extend((kept, output))
            return kept

        kept = self.engine.call(info, compute, self._conditional_call(info, named))
        if computed and kept is computed[0]:
            return computed[1]
        return self._unpacked(v_from_velocity(kept, latents, info.mix), info.branch, returns_dict)

    def _read(self, arguments: dict[str, Any], returns_dict: bool) -> CallInfo:
        if torch.is_grad_enabled():
            raise UnknownCallError("gradients are on")
        info = self.reader.read(self.state_manager._context, arguments)
        if returns_dict and (info.branch, False) in self._forms and (info.branch, True) not in self._forms:
            raise UnknownCallError("return_dict=True after return_dict=False")
        return info

    def _conditional_call(self, info: CallInfo, named: dict[str, Any]) -> Callable[[], torch.Tensor] | None:
        """What runs the conditional part of a joined call alone, or None where that cannot be."""
        if not info.parts or not self.engine.keeps(Granularity.CFG):
            return None
        half = conditional_half(self.reader.row, named, batch=info.signature[0][0])
        if half is None:
            if not self._has_told_half:
                self._has_told_half = True
                logger.warning("an argument of the transformer may be batched or not: cfg steps are computed in full")
            return None

        def compute_conditional() -> torch.Tensor:
            packed = Form.packed(self.run(**half), keeps_batch=True)[1]
            return velocity_from_v(packed, self.reader.latents(half), info.mix)

        return compute_conditional

    def _unpacked(self, packed: torch.Tensor, branch: str, returns_dict: bool) -> Any:
        form = self._forms.get((branch, returns_dict))
        if form is not None:
            return form.unpack(packed)
        return self._forms[branch, True].unpack(packed).to_tuple()

    def _notice_length(self, num_steps: int) -> None:
        """Says once for each step count that the bounds leave nothing to cache."""
        policy = self.engine.policy
        if num_steps in self._known_lengths or not isinstance(policy, Bounded):
            return
        self._known_lengths.add(num_steps)
        if policy.leaves_nothing(num_steps):
            logger.warning(
                "%d steps are no more than the %d of the warm-up and the %d of the cool-down: everything is computed",
                num_steps,
                policy.num_warmup_steps,
                policy.num_cooldown_steps,
            )

    def _notice_in_full(self, reason: UnknownCallError) -> None:
        if not self.reader.num_calls_in_full:
            logger.warning("a call of the transformer is computed in full: %s", reason)
        self.reader.num_calls_in_full += 1

    def reset_state(self, module: torch.nn.Module) -> torch.nn.Module:
        self.engine.reset()
        self.reader.forget()
        return module


class SpanHook(OutsideHook):
    """Stands before one block: the first of the span, one in it, or the one after it."""

    def __init__(
        self, engine: Engine, streams: tuple[str, ...], block: torch.nn.Module, *, index: int, has_next: bool
    ) -> None:
        super().__init__()
        self.engine = engine
        self.is_first = index == engine.span.first
        self.is_after = index == engine.span.end
        self.is_very_last = index == engine.span.end - 1 and not has_next
        names = list(signature_of(block).parameters)
        self._places = [(name, names.index(name)) for name in streams if name in names]

    def run(self, *args: Any, **kwargs: Any) -> Any:
        """Runs the block itself."""
        return (self.compiled or self.fn_ref.original_forward)(*args, **kwargs)

    def put_on(self, block: torch.nn.Module) -> None:
        """Stands before the block: in diffusers' registry, or around the compiled block."""
        if block._compiled_call_impl is None:
            HookRegistry.check_if_exists_or_initialize(block).register_hook(self, HOOK)
            self.installed_forward = block.forward
            return
        self.stand_outside(block, functools.partial(self.new_forward, None))

    def take_off(self, block: torch.nn.Module) -> None:
        """Leaves the block as if this hook had never been there."""
        self.step_back(block)
        remove_hook(block)

    def new_forward(self, module: torch.nn.Module | None, *args: Any, **kwargs: Any) -> Any:
        engine = self.engine
        if engine.span_mode is SpanMode.RUN:
            return self.run(*args, **kwargs)
        values = [kwargs.get(name, args[place] if place < len(args) else None) for name, place in self._places]
        if self.is_first:
            engine.span_begins(tensors_in(values))
        if self.is_after:
            values = refilled(values, engine.span_ends(tensors_in(values)))
            args, kwargs = self._with_values(values, args, kwargs)
            return self.run(*args, **kwargs)
        if engine.span_mode is SpanMode.SKIP:
            output = tuple(values) if len(values) > 1 else values[0]
        else:
            output = self.run(*args, **kwargs)
        if not self.is_very_last:
            return output
        values = list(output) if isinstance(output, tuple) else [output]
        values = refilled(values, engine.span_ends(tensors_in(values)))
        return tuple(values) if isinstance(output, tuple) else values[0]

    def _with_values(
        self, values: list[Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The block's arguments with the streams replaced."""
        positional, named = list(args), dict(kwargs)
        for (name, place), value in zip(self._places, values, strict=True):
            if name in named:
                named[name] = value
            else:
                positional[place] = value
        return tuple(positional), named


def tensors_in(values: Sequence[Any]) -> Streams:
    """Those streams that this model call has; a sound that is not made is None."""
    return tuple(value for value in values if value is not None)


def refilled(values: Sequence[Any], streams: Streams) -> list[Any]:
    """`values` with its tensors replaced in order."""
    remaining = iter(streams)
    return [None if value is None else next(remaining) for value in values]


def remove_hook(module: torch.nn.Module) -> None:
    """Takes the hook out and, where it was the only one, every trace of the registry.

    `HookRegistry.remove_hook` of an inner hook overwrites the forward of the hook around it, which then never runs
    again (diffusers 0.42.1); the outer hook gets its own back here, over the forward that was under ours. Where
    something else, such as accelerate's offloading, has wrapped the module's forward since, its wrapper stays, and what
    it calls is then a link that passes everything through.
    """
    registry = getattr(module, "_diffusers_hook", None)
    if registry is None or HOOK not in registry.hooks:
        return
    index = registry._hook_order.index(HOOK)
    inner_forward = registry._fn_refs[index].original_forward
    outer = registry._fn_refs[index + 1] if index + 1 < len(registry._fn_refs) else None
    outer_forward = outer.forward if outer is not None and outer.original_forward is not None else None
    wrapper = module.forward
    is_wrapped = outer is None and wrapper is not registry.hooks[HOOK].installed_forward
    registry._fn_refs[index].forward = inner_forward
    registry.remove_hook(HOOK, recurse=False)
    if is_wrapped:
        module.forward = wrapper
    if outer is not None and outer_forward is not None:
        outer.forward, outer.original_forward = outer_forward, inner_forward
    if not registry.hooks:
        del module._diffusers_hook
        if module.__dict__.get("forward") == type(module).forward.__get__(module):
            del module.__dict__["forward"]
