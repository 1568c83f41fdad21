"""enable() and disable(): puts the engine behind diffusers' hooks (`hooks.py`) and takes it away again, leaving
nothing."""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable
from types import TracebackType
from typing import Any

import torch
from diffusers import HookRegistry

from mixcache.calls import Span
from mixcache.config import BOUNDS, MixCacheConfig, default_policy, setting_names
from mixcache.decision import Granularity
from mixcache.engine import Engine
from mixcache.experts import planner_for
from mixcache.hooks import HOOK, RootHook, SpanHook, remove_hook
from mixcache.host import Reader
from mixcache.models import COMPILE, COMPILE_BLOCKS, ModelRow, row_for
from mixcache.policies import Policy
from mixcache.profiles import Profile, ProfileError, profile_for
from mixcache.schedulers import SchedulerHook, is_repeatable
from mixcache.trace import Trace

logger = logging.getLogger("mixcache")
EXPERTS = ("transformer", "transformer_2")
"""Attributes under which pipelines keep their denoisers."""
# The hook on the transformer keeps its handle alive; this table keeps neither, or no enabled model would ever be freed.
_HANDLES: weakref.WeakKeyDictionary[torch.nn.Module, weakref.ref[Handle]] = weakref.WeakKeyDictionary()


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
        present = getattr(self._pipeline(), self._attribute, None)
        if present is not transformer and hasattr(present, "_orig_mod") and not self._has_told_wrapped:
            self._has_told_wrapped = True
            logger.warning("torch.compile(transformer) came after mixcache.enable and compiles nothing; %s", COMPILE)
        for block, hook in self._hooks():
            if not hook.is_outermost(block):
                hook.take_off(block)
                hook.put_on(block)

    def _leave_block_out(self) -> None:
        """Computes in full what the policy would do by `block`: blocks of one graph cannot be left out."""
        logger.warning("the transformer is compiled as a whole: no blocks are left out; %s", COMPILE_BLOCKS)
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
            remove_hook(transformer)
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
        self._pipeline = reference = weakref.ref(pipeline)
        self._scheduler_hook: SchedulerHook | None = None
        self.denoisers = [
            Denoiser(reference, attribute, row, config, self.trace, engine_class) for attribute in experts_of(pipeline)
        ]
        self.engine, self.policy = self.denoisers[0].engine, self.denoisers[0].policy

    def _attach(self) -> None:
        for denoiser in self.denoisers:
            denoiser.attach(self)

    def _follow_scheduler(self) -> None:
        """Moves the hook to the scheduler that the pipeline has now, where policy and scheduler allow corrections."""
        hook, scheduler = self._scheduler_hook, getattr(self._pipeline(), "scheduler", None)
        if not self.policy.corrects or (hook is not None and hook.scheduler is scheduler):
            return
        if hook is not None:
            hook.take_off()
        self._scheduler_hook = SchedulerHook(scheduler) if is_repeatable(scheduler) else None
        if self._scheduler_hook is not None:
            self._scheduler_hook.put_on()

    def before_call(self, engine: Engine) -> None:
        """Told of every call of one of the transformers before it is decided."""
        self._follow_scheduler()
        if self._scheduler_hook is not None:
            self._scheduler_hook.engine = engine
        for denoiser in self.denoisers:
            if denoiser.engine is engine:
                denoiser.follow_compilation()
            else:
                denoiser.engine.reset()  # its range of noise levels is over

    @property
    def is_enabled(self) -> bool:
        return any(denoiser.transformer is not None for denoiser in self.denoisers)

    def disable(self) -> None:
        """Detaches and frees all memory; the transformer's forward is what it was. Twice does nothing more."""
        for denoiser in self.denoisers:
            denoiser.detach()
        if self._scheduler_hook is not None:
            self._scheduler_hook.take_off()
            self._scheduler_hook = None

    @property
    def plan(self) -> Any:
        """The `Plan` in force under policy "planned": choices, predicted speed-up and PSNR; None before the first step
        and under other policies. With two experts it is that of both once the second is at work."""
        plans = [getattr(denoiser.engine.policy_state, "plan", None) for denoiser in self.denoisers]
        known = [plan for plan in plans if plan is not None]
        return self.planner.together(known) if len(known) > 1 else next(iter(known), None)

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
        num_calls_in_full (calls that said too little to cache them), num_corrected (cached steps taken again with what
        the next computed one showed), held_bytes (of all histories now) and peak_bytes
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
            "num_corrected": sum(entry.num_corrected for entry in self.trace),
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
    if any(handle_of(expert) for expert in experts):
        raise ValueError(
            "mixcache is enabled on this transformer already; call handle.disable() or mixcache.disable(pipe) first"
        )
    handle = Handle(pipeline, _with_profile(config, pipeline, experts), row)
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
    handles = [handle for expert in experts_of(pipeline).values() if (handle := handle_of(expert)) is not None]
    if not handles:
        raise ValueError("mixcache is not enabled on this pipeline")
    for handle in handles:
        handle.disable()


def handle_of(transformer: torch.nn.Module) -> Handle | None:
    """The handle on a transformer, or on the one inside of `torch.compile(transformer)`."""
    reference = _HANDLES.get(getattr(transformer, "_orig_mod", transformer))
    return reference() if reference is not None else None


def _with_profile(config: MixCacheConfig, pipeline: Any, experts: list[torch.nn.Module]) -> MixCacheConfig:
    """Adds what the policy takes from the model's profile and was not given."""
    settings = dict(config.settings)
    if config.policy == "mixcache" and "impacts" not in settings:
        profile = profile_for(*experts)
        if profile is None:
            logger.info("no profile for this %s: the impact of every granularity is 1", type(experts[0]).__name__)
            return config
        return MixCacheConfig(policy=config.policy, settings=settings | {"impacts": dict(profile.impacts)})
    if config.policy == "planned" and "planner" not in settings:
        policy = config.build().policy
        given = {name: getattr(policy, name) for name in ("speedup", "quality", "order", "choices")}
        corrects = policy.corrects and is_repeatable(getattr(pipeline, "scheduler", None))
        planner = planner_for(_profile_of(settings, experts), corrects=corrects, **given)
        return MixCacheConfig(policy=config.policy, settings=settings | {"planner": planner})
    return config


def _profile_of(settings: dict[str, Any], experts: list[torch.nn.Module]) -> Profile:
    """The profile given by path or object, else the shipped one; ProfileError where there is none that fits."""
    given = settings.get("profile")
    if given is None:
        profile = profile_for(*experts)
        if profile is None:
            raise ProfileError(
                f"no profile for this {type(experts[0]).__name__}: make one with `mixcache calibrate` and give it as "
                'profile=, or use policy "hindsight", which needs none'
            )
        return profile
    profile = given if isinstance(given, Profile) else Profile.load(given)
    misfit = profile.misfit(*experts)
    if misfit is not None and not settings.get("force_profile"):
        raise ProfileError(f"the profile does not fit this model: {misfit}; force_profile=True takes it all the same")
    return profile
