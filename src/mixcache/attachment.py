"""enable() and disable(): puts the engine behind diffusers' hooks and takes it away again, leaving nothing.

One root hook on the transformer owns context, decision and state; block hooks, on the span only and only where the
policy may choose `block`, ask the engine. The only room that imports diffusers' hooks.
"""

from __future__ import annotations

import functools
import inspect
import logging
import weakref
from collections import OrderedDict
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any

import torch
from diffusers import HookRegistry
from diffusers.hooks import ModelHook
from diffusers.hooks.hooks import BaseState, StateManager

from mixcache.calls import CallInfo, Span, SpanMode
from mixcache.config import BOUNDS, MixCacheConfig, default_policy, setting_names
from mixcache.decision import Granularity
from mixcache.engine import Engine, Streams
from mixcache.host import Form, Reader, UnknownCallError, conditional_half, signature_of
from mixcache.models import COMPILE, ModelRow, row_for
from mixcache.planning import Planner
from mixcache.policies import Bounded, Policy
from mixcache.profiles import Profile, ProfileError, profile_for
from mixcache.trace import Trace

logger = logging.getLogger("mixcache")
HOOK = "mixcache"
COMPILE_FIRST = "mixcache decides outside of what is compiled; compile before mixcache.enable"
EXPERTS = ("transformer", "transformer_2")
"""Attributes under which pipelines keep their denoisers."""
# The hook on the transformer keeps its handle alive; this table keeps neither, or no enabled model would ever be freed.
_HANDLES: weakref.WeakKeyDictionary[torch.nn.Module, weakref.ref[Handle]] = weakref.WeakKeyDictionary()


class _NoState(BaseState):
    """The state manager is here for its context alone."""

    def reset(self, *args: Any, **kwargs: Any) -> None:
        """Holds nothing."""


class RootHook(ModelHook):
    """Stands before the whole transformer: turns a forward into `engine.call`."""

    _is_stateful = True

    def __init__(self, engine: Engine, reader: Reader, module: torch.nn.Module) -> None:
        super().__init__()
        self.engine, self.reader = engine, reader
        self.state_manager = StateManager(_NoState)
        self.owner: Handle | None = None
        """The handle, which lives as long as the hook."""
        self.installed_forward: Any = None
        self.compiled: Callable[..., Any] | None = None
        """What runs the transformer where it is compiled as a whole; this hook then stands around it."""
        self.standing_outside: Callable[..., Any] | None = None
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
        """Stands around the transformer where it was compiled as a whole, or compiled anew, since: python that changes
        with every step has no place in a graph."""
        if module._compiled_call_impl is not self.standing_outside:
            self.compiled = module._compiled_call_impl
            module._compiled_call_impl = self.standing_outside = self.answer

    def step_back(self, module: torch.nn.Module) -> None:
        """Undoes `follow_compilation`."""
        if self.standing_outside is not None and module._compiled_call_impl is self.standing_outside:
            module._compiled_call_impl = self.compiled
        self.compiled = self.standing_outside = None

    @torch.compiler.disable(reason=COMPILE_FIRST)  # type: ignore[untyped-decorator]
    def answer(self, *args: Any, **kwargs: Any) -> Any:
        """The output of one call of the transformer."""
        bound = self._signature.bind(*args, **kwargs)
        returns_dict = bool(bound.arguments.get("return_dict", True))
        try:
            info = self._read(bound.arguments, returns_dict)
        except UnknownCallError as reason:
            self._notice_in_full(reason)
            self.engine.reset()
            return self.run(*args, **kwargs)
        self._notice_length(info.num_steps)
        for denoiser in self.owner.denoisers if self.owner else ():
            if denoiser.engine is self.engine:
                denoiser.follow_compilation()
            else:
                denoiser.engine.settle()
        computed: list[Any] = []

        def compute() -> torch.Tensor:
            output = self.run(*args, **kwargs)
            form = self._forms[info.branch, returns_dict] = Form(output, keeps_batch=bool(info.parts))
            computed.extend((form.pack(output), output))
            return computed[0]

        packed = self.engine.call(info, compute, self._conditional_call(info, bound))
        if computed and packed is computed[0]:
            return computed[1]
        return self._unpacked(packed, info.branch, returns_dict)

    def _read(self, arguments: dict[str, Any], returns_dict: bool) -> CallInfo:
        if torch.is_grad_enabled():
            raise UnknownCallError("gradients are on")
        info = self.reader.read(self.state_manager._context, arguments)
        if returns_dict and (info.branch, False) in self._forms and (info.branch, True) not in self._forms:
            raise UnknownCallError("return_dict=True after return_dict=False")
        return info

    def _conditional_call(self, info: CallInfo, bound: inspect.BoundArguments) -> Callable[[], torch.Tensor] | None:
        """What runs the conditional part of a joined call alone, or None where that cannot be."""
        if not info.parts or not self.engine.keeps(Granularity.CFG):
            return None
        half = conditional_half(self.reader.row, bound.arguments, batch=info.signature[0][0])
        if half is None:
            if not self._has_told_half:
                self._has_told_half = True
                logger.warning("an argument of the transformer may be batched or not: cfg steps are computed in full")
            return None
        arguments = inspect.BoundArguments(self._signature, OrderedDict(half))

        def compute_conditional() -> torch.Tensor:
            output = self.run(*arguments.args, **arguments.kwargs)
            return Form(output, keeps_batch=True).pack(output)

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


class SpanHook(ModelHook):
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
        self.installed_forward: Any = None
        self.compiled: Callable[..., Any] | None = None
        """What runs the block where it is compiled on its own; this hook then stands around it."""
        self.standing_outside: Callable[..., Any] | None = None

    def run(self, *args: Any, **kwargs: Any) -> Any:
        """Runs the block itself."""
        return (self.compiled or self.fn_ref.original_forward)(*args, **kwargs)

    def put_on(self, block: torch.nn.Module) -> None:
        """Stands before the block: in diffusers' registry, or around the compiled block, since python that changes
        with every step has no place in a graph."""
        if block._compiled_call_impl is None:
            HookRegistry.check_if_exists_or_initialize(block).register_hook(self, HOOK)
            self.installed_forward = block.forward
            return
        self.compiled = block._compiled_call_impl
        self.standing_outside = functools.partial(self.new_forward, None)
        block._compiled_call_impl = self.standing_outside

    def is_on(self, block: torch.nn.Module) -> bool:
        """False where the block was compiled, or compiled anew, since."""
        return block._compiled_call_impl is self.standing_outside

    def take_off(self, block: torch.nn.Module) -> None:
        """Leaves the block as if this hook had never been there."""
        if self.standing_outside is not None and self.is_on(block):
            block._compiled_call_impl = self.compiled
        self.compiled = self.standing_outside = None
        _remove_hook(block)

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


class Denoiser:
    """One transformer of a pipeline with the cache attached: its engine, its root hook and the hooks of its blocks.

    Modules own their hooks, and the hooks own the handle; nothing here keeps a module, so that a stage that is over can
    be freed.
    """

    def __init__(
        self,
        pipeline: weakref.ref[Any],
        attribute: str,
        row: ModelRow,
        config: MixCacheConfig,
        trace: Trace,
        engine_class: type[Engine],
    ) -> None:
        transformer: torch.nn.Module = getattr(pipeline(), attribute)
        self._pipeline, self._attribute = pipeline, attribute
        self._transformer: Callable[[], torch.nn.Module | None] = weakref.ref(transformer)
        self.row, self.policy = row, config.build()
        num_blocks = len(blocks_of(transformer, row))
        trace.num_blocks = num_blocks
        self.reader = reader = Reader(row, pipeline, attribute)
        self.engine = engine_class(
            self.policy,
            _span(row, config, self.policy, transformer, num_blocks),
            lambda: reader.guidance,
            trace,
            granularities=row.granularities,
        )
        self._hooked: list[tuple[weakref.ref[torch.nn.Module], weakref.ref[SpanHook]]] = []
        self._root: Callable[[], RootHook | None] = lambda: None
        self._has_told_wrapped = False

    @property
    def transformer(self) -> torch.nn.Module | None:
        """The module while it is attached and alive."""
        return self._transformer()

    def attach(self, owner: Handle) -> None:
        transformer = self._transformer()
        if transformer is None:
            return
        registry = HookRegistry.check_if_exists_or_initialize(transformer)
        root = RootHook(self.engine, self.reader, transformer)
        root.owner = owner
        registry.register_hook(root, HOOK)
        root.installed_forward = registry._module_ref.forward
        self._root = weakref.ref(root)
        if self.engine.keeps(Granularity.BLOCK):
            span, blocks = self.engine.span, blocks_of(transformer, self.row)
            for index, block in enumerate(blocks[span.first : span.end + 1], start=span.first):
                hook = SpanHook(self.engine, self.row.streams, block, index=index, has_next=span.end < len(blocks))
                hook.put_on(block)
                self._hooked.append((weakref.ref(block), weakref.ref(hook)))
        self.follow_compilation()
        registry.invalidate_child_registries_cache()

    def _hooks(self) -> list[tuple[torch.nn.Module, SpanHook]]:
        """Blocks and their hooks, those that are alive."""
        pairs = ((block(), hook()) for block, hook in self._hooked)
        return [(block, hook) for block, hook in pairs if block is not None and hook is not None]

    def follow_compilation(self) -> None:
        """Moves the hooks of what was compiled since out of what is compiled."""
        transformer, root = self._transformer(), self._root()
        if transformer is None or root is None:
            return
        root.follow_compilation(transformer)
        if root.compiled is not None and self.engine.keeps(Granularity.BLOCK):
            self._leave_block_out()
        if not self._has_told_wrapped and hasattr(getattr(self._pipeline(), self._attribute, None), "_orig_mod"):
            self._has_told_wrapped = True
            logger.warning("torch.compile(transformer) came after mixcache.enable and compiles nothing; %s", COMPILE)
        for block, hook in self._hooks():
            if not hook.is_on(block):
                hook.take_off(block)
                hook.put_on(block)

    def _leave_block_out(self) -> None:
        """Computes in full what the policy would do by `block`: blocks of one graph cannot be left out."""
        logger.warning("the transformer is compiled as a whole: no blocks are left out; %s", COMPILE)
        self.engine.leave_out(Granularity.BLOCK)
        for block, hook in self._hooks():
            hook.take_off(block)
        self._hooked.clear()

    def detach(self) -> None:
        transformer, self._transformer = self._transformer(), lambda: None
        if transformer is None:
            return
        try:
            self.engine.reset()
        finally:
            for block, hook in self._hooks():
                hook.take_off(block)
            if (root := self._root()) is not None:
                root.step_back(transformer)
            _remove_hook(transformer)
            transformer_registry = getattr(transformer, "_diffusers_hook", None)
            if transformer_registry is not None:
                transformer_registry.invalidate_child_registries_cache()
            _HANDLES.pop(transformer, None)


class Handle:
    """A pipeline with the cache attached. Also a context manager, which detaches at its end."""

    def __init__(
        self, pipeline: Any, config: MixCacheConfig, row: ModelRow, engine_class: type[Engine] = Engine
    ) -> None:
        self.config, self.row = config, row
        self.trace = Trace()
        reference = weakref.ref(pipeline)
        self.denoisers = [
            Denoiser(reference, attribute, row, config, self.trace, engine_class) for attribute in experts_of(pipeline)
        ]
        self.engine, self.policy = self.denoisers[0].engine, self.denoisers[0].policy

    def _attach(self) -> None:
        for denoiser in self.denoisers:
            denoiser.attach(self)

    @property
    def is_enabled(self) -> bool:
        return any(denoiser.transformer is not None for denoiser in self.denoisers)

    def disable(self) -> None:
        """Detaches and frees all memory; the transformer's forward is what it was. Twice does nothing more."""
        for denoiser in self.denoisers:
            denoiser.detach()

    @property
    def plan(self) -> Any:
        """The `Plan` in force under policy "planned": choices, predicted speed-up and PSNR; None before the first step
        and under other policies."""
        return getattr(self.engine.policy_state, "plan", None)

    @property
    def settings(self) -> dict[str, Any]:
        """Every setting in force, those that were not given too: of the policy, of its bounds and of the block span."""
        bounds = {name: getattr(self.policy, name) for name in BOUNDS}
        own = {name: getattr(self.policy.policy, name) for name in setting_names(type(self.policy.policy))}
        for name in ("trace", "planner", "profile"):
            own.pop(name, None)
        span = self.engine.span
        return own | bounds | {"span_first": span.first, "span_after": span.num_blocks - span.end}

    @property
    def planner(self) -> Any:
        """The `mixcache.planning.Planner` of policy "planned"; None under other policies."""
        return getattr(self.policy.policy, "planner", None)

    def summary(self) -> dict[str, Any]:
        """What the cache did, over the generations in the trace (the newest 100).

        Keys: policy, num_generations, num_steps, granularity_counts, computed_share (block work that ran, of the work
        of the same calls in full), ideal_speedup (its inverse: overhead zero), num_non_finite (calls),
        num_calls_in_full (calls that said too little to cache them), held_bytes (of all histories now) and peak_bytes
        (the most that histories and the values set aside for them ever took).
        """
        share = self.trace.computed_share()
        return {
            "policy": self.config.policy_name,
            "num_generations": self.trace.num_generations,
            "num_steps": len(self.trace),
            "granularity_counts": self.trace.counts(),
            "computed_share": share,
            "ideal_speedup": 1 / share if share else None,
            "num_non_finite": sum(entry.non_finite for entry in self.trace),
            "num_calls_in_full": sum(denoiser.reader.num_calls_in_full for denoiser in self.denoisers),
            "held_bytes": sum(denoiser.engine.held_bytes for denoiser in self.denoisers),
            "peak_bytes": sum(denoiser.engine.peak_bytes for denoiser in self.denoisers),
        }

    def __enter__(self) -> Handle:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.disable()


def blocks_of(transformer: torch.nn.Module, row: ModelRow) -> list[torch.nn.Module]:
    """All blocks in the order in which they run."""
    lists = [list(getattr(transformer, attribute)) for attribute in row.blocks]
    if row.interleaved:
        return [block for group in zip(*lists, strict=True) for block in group]
    return [block for blocks in lists for block in blocks]


def experts_of(pipeline: Any) -> dict[str, torch.nn.Module]:
    """The pipeline's denoisers by attribute; one module under two names is one."""
    found: dict[str, torch.nn.Module] = {}
    for name in EXPERTS:
        module = getattr(pipeline, name, None)
        if module is not None and not any(module is other for other in found.values()):
            found[name] = module
    return found


def _span(row: ModelRow, config: MixCacheConfig, policy: Policy, transformer: torch.nn.Module, num_blocks: int) -> Span:
    """Blocks F to L-B; ValueError where nothing is left of them."""
    width = len(row.blocks) if row.interleaved else 1
    first = width * config.span.get("span_first", row.span_first)
    after = width * config.span.get("span_after", row.span_after)
    if row.tail:
        # what leaves the span goes in where the next block takes it in: still a block of the same kind
        after = max(after, 1) + int(transformer.config[row.tail] or 0)
    if Granularity.BLOCK in policy.granularities and first + after >= num_blocks:
        raise ValueError(
            f"span_first={first} and span_after={after} leave none of the {num_blocks} blocks to skip; "
            "take smaller numbers"
        )
    start = min(first, num_blocks)
    return Span(start, max(start, num_blocks - after), num_blocks)


def _remove_hook(module: torch.nn.Module) -> None:
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


def enable(pipeline: Any, policy: str | Policy | MixCacheConfig | None = None, **settings: Any) -> Handle:
    """Makes a diffusers pipeline cache, until `disable`.

    `policy` is a name of `mixcache.POLICIES`, a policy object, or a whole `MixCacheConfig`; `settings` are those of
    the policy, of the bounds around it and of the block span (see `MixCacheConfig`). Without a policy it is "planned"
    where `speedup=` or `quality=` is asked for, which takes a profile, and else "hindsight". Returns the handle:
    `.summary()`, `.trace`, `.disable()`; it is also a context manager. What a policy takes from a profile and is not
    given comes from the one that mixcache ships for this model.

    Raises ValueError for an unknown or wrong setting and for a pipeline that is enabled already, TypeError for one
    that is not supported. Nothing is attached then.
    """
    if policy is None:
        policy = default_policy(settings)
    config = policy if isinstance(policy, MixCacheConfig) else MixCacheConfig(policy=policy, settings=settings)
    if isinstance(policy, MixCacheConfig) and settings:
        raise ValueError(f"settings {', '.join(settings)} beside a MixCacheConfig; put them in its settings")
    experts = list(experts_of(pipeline).values())
    if not experts:
        raise TypeError(
            f"{type(pipeline).__name__} has no transformer to attach to; mixcache takes a diffusers video pipeline"
        )
    rows = [row_for(expert, pipeline) for expert in experts]
    row = rows[0]
    if row.unsafe:
        raise TypeError(f"{type(pipeline).__name__} cannot be cached: {row.unsafe}")
    if getattr(pipeline, "_all_hooks", None):
        raise ValueError(
            "this pipeline offloads its models already, and would drop the cache after the first clip; call "
            "mixcache.enable before pipe.enable_model_cpu_offload"
        )
    if any(expert in _HANDLES for expert in experts):
        raise ValueError(
            "mixcache is enabled on this transformer already; call handle.disable() or mixcache.disable(pipe) first"
        )
    handle = Handle(pipeline, _with_profile(config, experts[0]), row)
    try:
        handle._attach()
    except BaseException:
        handle.disable()
        raise
    for expert in experts:
        _HANDLES[expert] = weakref.ref(handle)
    return handle


def disable(pipeline: Any) -> None:
    """Detaches what `enable` attached to this pipeline's transformer; ValueError if nothing is."""
    references = [_HANDLES.get(expert) for expert in experts_of(pipeline).values()]
    handles = [handle for reference in references if reference is not None and (handle := reference()) is not None]
    if not handles:
        raise ValueError("mixcache is not enabled on this pipeline")
    for handle in handles:
        handle.disable()


def _with_profile(config: MixCacheConfig, transformer: torch.nn.Module) -> MixCacheConfig:
    """Adds what the policy takes from the model's profile and was not given."""
    settings = dict(config.settings)
    if config.policy == "mixcache" and "impacts" not in settings:
        profile = profile_for(transformer)
        if profile is None:
            logger.info("no profile for this %s: the impact of every granularity is 1", type(transformer).__name__)
            return config
        return MixCacheConfig(policy=config.policy, settings=settings | {"impacts": dict(profile.impacts)})
    if config.policy == "planned" and "planner" not in settings:
        policy = config.build().policy
        given = {name: getattr(policy, name) for name in ("speedup", "quality", "order", "choices")}
        planner = Planner(profile=_profile_of(settings, transformer), **given)
        return MixCacheConfig(policy=config.policy, settings=settings | {"planner": planner})
    return config


def _profile_of(settings: dict[str, Any], transformer: torch.nn.Module) -> Profile:
    """The profile given by path or object, else the shipped one; ProfileError where there is none that fits."""
    given = settings.get("profile")
    if given is None:
        profile = profile_for(transformer)
        if profile is None:
            raise ProfileError(
                f"no profile for this {type(transformer).__name__}: make one with `mixcache calibrate` and give it as "
                'profile=, or use policy "hindsight", which needs none'
            )
        return profile
    profile = given if isinstance(given, Profile) else Profile.load(given)
    misfit = profile.misfit(transformer)
    if misfit is not None and not settings.get("force_profile"):
        raise ProfileError(f"the profile does not fit this model: {misfit}; force_profile=True takes it all the same")
    return profile
