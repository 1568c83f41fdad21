"""enable() and disable(): puts the engine behind diffusers' hooks and takes it away again, leaving nothing.

One root hook on the transformer owns context, decision and state; block hooks, on the span only and only where the
policy may choose `block`, ask the engine. The only room that imports diffusers' hooks.
"""

from __future__ import annotations

import logging
import weakref
from types import TracebackType
from typing import Any

import torch
from diffusers import HookRegistry
from diffusers.hooks import ModelHook
from diffusers.hooks.hooks import BaseState, StateManager

from mixcache.calls import CallInfo, Span, SpanMode
from mixcache.config import BOUNDS, MixCacheConfig, setting_names
from mixcache.decision import Granularity
from mixcache.engine import Engine
from mixcache.models import ModelRow, row_for
from mixcache.policies import Bounded, Policy
from mixcache.profiles import impacts_for
from mixcache.trace import Trace

logger = logging.getLogger("mixcache")
HOOK = "mixcache"
# The hook on the transformer keeps its handle alive; this table keeps neither, or no enabled model would ever be freed.
_HANDLES: weakref.WeakKeyDictionary[torch.nn.Module, weakref.ref[Handle]] = weakref.WeakKeyDictionary()


class _NoState(BaseState):
    """The state manager is here for its context alone."""

    def reset(self, *args: Any, **kwargs: Any) -> None:
        """Holds nothing."""


class RootHook(ModelHook):
    """Stands before the whole transformer: turns a forward into `engine.call`."""

    _is_stateful = True

    def __init__(self, engine: Engine) -> None:
        super().__init__()
        self.engine = engine
        self.state_manager = StateManager(_NoState)
        self.num_calls_without_step = 0
        self.installed_forward: Any = None
        self._known_lengths: set[int] = set()

    def new_forward(self, module: torch.nn.Module, *args: Any, **kwargs: Any) -> Any:
        context = self.state_manager._context
        told = (context.step_index, context.num_inference_steps, context.sigma) if context is not None else (None,)
        if None in told or torch.is_grad_enabled():
            reason = "no cache context with step_index, num_inference_steps and sigma, or gradients are on"
            return self._plain(args, kwargs, reason)
        hidden = kwargs["hidden_states"] if "hidden_states" in kwargs else args[0]
        self._notice_length(context.num_inference_steps)
        info = CallInfo(
            branch=context.name,
            step=context.step_index,
            num_steps=context.num_inference_steps,
            sigma=context.sigma,
            signature=(hidden.shape, hidden.dtype, hidden.device),
        )
        forms: list[Any] = []

        def compute() -> torch.Tensor:
            forms.append(self.fn_ref.original_forward(*args, **kwargs))
            return forms[0][0]

        sample = self.engine.call(info, compute)
        if forms and sample is forms[0][0]:
            return forms[0]
        return (sample,) if _wants_tuple(args, kwargs) else _model_output(sample)

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

    def _plain(self, args: tuple[Any, ...], kwargs: dict[str, Any], reason: str) -> Any:
        if not self.num_calls_without_step:
            logger.warning("a call of the transformer is computed in full: %s", reason)
        self.num_calls_without_step += 1
        return self.fn_ref.original_forward(*args, **kwargs)

    def reset_state(self, module: torch.nn.Module) -> torch.nn.Module:
        self.engine.reset()
        return module


def _wants_tuple(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """`return_dict` of a diffusers transformer: a keyword, or the fifth argument of WanTransformer3DModel."""
    return not (args[4] if len(args) > 4 else kwargs.get("return_dict", True))


def _model_output(sample: torch.Tensor) -> Any:
    from diffusers.models.modeling_outputs import Transformer2DModelOutput

    return Transformer2DModelOutput(sample=sample)


class SpanHook(ModelHook):
    """Stands before one block of the span: runs it, records around it, or leaves it out."""

    def __init__(self, engine: Engine, row: ModelRow, *, is_first: bool, is_last: bool) -> None:
        super().__init__()
        self.engine, self.row, self.is_first, self.is_last = engine, row, is_first, is_last
        self.name = row.hidden_argument
        self.installed_forward: Any = None

    def new_forward(self, module: torch.nn.Module, *args: Any, **kwargs: Any) -> Any:
        hidden = kwargs[self.name] if self.name in kwargs else args[0]
        if self.engine.span_mode is SpanMode.SKIP:
            return self.engine.span_begins(hidden) if self.is_first else hidden
        if self.is_first:
            self.engine.span_begins(hidden)
        output = self.fn_ref.original_forward(*args, **kwargs)
        return self.engine.span_ends(output) if self.is_last else output


class Handle:
    """A pipeline with the cache attached. Also a context manager, which detaches at its end."""

    def __init__(
        self, pipeline: Any, config: MixCacheConfig, row: ModelRow, engine_class: type[Engine] = Engine
    ) -> None:
        self.config, self.row = config, row
        self._pipeline = weakref.ref(pipeline)
        self._transformer: torch.nn.Module | None = pipeline.transformer
        self._hooked: list[torch.nn.Module] = []
        self.policy = config.build()
        blocks = getattr(pipeline.transformer, row.blocks)
        self.trace = Trace(num_blocks=len(blocks))
        self.engine = engine_class(
            self.policy,
            _span(row, config, self.policy, len(blocks)),
            self._guidance_scale,
            self.trace,
            granularities=row.granularities,
        )
        self._root = RootHook(self.engine)

    def _guidance_scale(self) -> float | None:
        pipeline = self._pipeline()
        scale = getattr(pipeline, "guidance_scale", None)
        return float(scale) if scale is not None else None

    def _attach(self) -> None:
        transformer = self._transformer
        registry = HookRegistry.check_if_exists_or_initialize(transformer)
        registry.register_hook(self._root, HOOK)
        self._root.installed_forward = registry._module_ref.forward
        if Granularity.BLOCK in self.policy.granularities and Granularity.BLOCK.value in self.row.granularities:
            span, blocks = self.engine.span, getattr(transformer, self.row.blocks)
            for index in range(span.first, span.end):
                is_first, is_last = index == span.first, index == span.end - 1
                hook = SpanHook(self.engine, self.row, is_first=is_first, is_last=is_last)
                HookRegistry.check_if_exists_or_initialize(blocks[index]).register_hook(hook, HOOK)
                hook.installed_forward = blocks[index].forward
                self._hooked.append(blocks[index])
        registry.invalidate_child_registries_cache()

    @property
    def is_enabled(self) -> bool:
        return self._transformer is not None

    def disable(self) -> None:
        """Detaches and frees all memory; the transformer's forward is what it was. Twice does nothing more."""
        transformer, self._transformer = self._transformer, None
        if transformer is None:
            return
        try:
            self.engine.reset()
        finally:
            for module in [*self._hooked, transformer]:
                _remove_hook(module)
            transformer_registry = getattr(transformer, "_diffusers_hook", None)
            if transformer_registry is not None:
                transformer_registry.invalidate_child_registries_cache()
            _HANDLES.pop(transformer, None)

    @property
    def settings(self) -> dict[str, Any]:
        """Every setting in force, those that were not given too: of the policy, of its bounds and of the block span."""
        bounds = {name: getattr(self.policy, name) for name in BOUNDS}
        own = {name: getattr(self.policy.policy, name) for name in setting_names(type(self.policy.policy))}
        own.pop("trace", None)
        span = self.engine.span
        return own | bounds | {"span_first": span.first, "span_after": span.num_blocks - span.end}

    def summary(self) -> dict[str, Any]:
        """What the cache did, over the generations in the trace (the newest 100).

        Keys: policy, num_generations, num_steps, granularity_counts, computed_share (block work that ran, of the work
        of the same calls in full), ideal_speedup (its inverse: overhead zero), num_non_finite (calls),
        num_calls_without_step (calls that did not say their step, computed in full), held_bytes (of all histories now)
        and peak_bytes (the most that histories and the values set aside for them ever took).
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
            "num_calls_without_step": self._root.num_calls_without_step,
            "held_bytes": self.engine.held_bytes,
            "peak_bytes": self.engine.peak_bytes,
        }

    def __enter__(self) -> Handle:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.disable()


def _span(row: ModelRow, config: MixCacheConfig, policy: Policy, num_blocks: int) -> Span:
    """Blocks F to L-B; ValueError where nothing is left of them."""
    first = config.span.get("span_first", row.span_first)
    after = config.span.get("span_after", row.span_after)
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


def enable(pipeline: Any, policy: str | Policy | MixCacheConfig = "mixcache", **settings: Any) -> Handle:
    """Makes a diffusers pipeline cache, until `disable`.

    `policy` is a name of `mixcache.POLICIES`, a policy object, or a whole `MixCacheConfig`; `settings` are those of
    the policy, of the bounds around it and of the block span (see `MixCacheConfig`). Returns the handle: `.summary()`,
    `.trace`, `.disable()`; it is also a context manager. Impacts that are not given come from the model's profile,
    where mixcache ships one.

    Raises ValueError for an unknown or wrong setting and for a pipeline that is enabled already, TypeError for one
    that is not supported. Nothing is attached then.
    """
    config = policy if isinstance(policy, MixCacheConfig) else MixCacheConfig(policy=policy, settings=settings)
    if isinstance(policy, MixCacheConfig) and settings:
        raise ValueError(f"settings {', '.join(settings)} beside a MixCacheConfig; put them in its settings")
    transformer = getattr(pipeline, "transformer", None)
    if transformer is None:
        raise TypeError(
            f"{type(pipeline).__name__} has no transformer to attach to; mixcache takes a diffusers video pipeline"
        )
    row = row_for(transformer, pipeline)
    if getattr(pipeline, "transformer_2", None) is not None:
        raise TypeError(
            f"this {type(pipeline).__name__} has two experts (transformer and transformer_2), which is not supported "
            "yet; a pipeline with one transformer is"
        )
    if getattr(pipeline, "_all_hooks", None):
        raise ValueError(
            "this pipeline offloads its models already, and would drop the cache after the first clip; call "
            "mixcache.enable before pipe.enable_model_cpu_offload"
        )
    if transformer in _HANDLES:
        raise ValueError(
            "mixcache is enabled on this transformer already; call handle.disable() or mixcache.disable(pipe) first"
        )
    handle = Handle(pipeline, _with_profile(config, transformer), row)
    try:
        handle._attach()
    except BaseException:
        handle.disable()
        raise
    _HANDLES[transformer] = weakref.ref(handle)
    return handle


def disable(pipeline: Any) -> None:
    """Detaches what `enable` attached to this pipeline's transformer; ValueError if nothing is."""
    transformer = getattr(pipeline, "transformer", None)
    reference = _HANDLES.get(transformer) if transformer is not None else None
    handle = reference() if reference is not None else None
    if handle is None:
        raise ValueError("mixcache is not enabled on this pipeline")
    handle.disable()


def _with_profile(config: MixCacheConfig, transformer: torch.nn.Module) -> MixCacheConfig:
    """Adds the profile's impacts where the policy takes impacts and none are given."""
    if config.policy != "mixcache" or "impacts" in config.settings:
        return config
    impacts = impacts_for(transformer)
    if impacts is None:
        logger.info("no profile for this %s: the impact of every granularity is 1", type(transformer).__name__)
        return config
    return MixCacheConfig(policy=config.policy, settings={**config.settings, "impacts": impacts})
