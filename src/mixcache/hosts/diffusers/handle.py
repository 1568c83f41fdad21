"""The handle on a pipeline with the cache attached: its hooks go on and come off here, and it answers for them."""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from os import PathLike
from types import TracebackType
from typing import Any, cast

import torch

from mixcache.config import BOUNDS, MixCacheConfig, setting_names
from mixcache.core.agreement import Agreement
from mixcache.core.calls import End
from mixcache.core.engine import Engine
from mixcache.core.observer import Observer
from mixcache.decision import Granularity
from mixcache.hosts.diffusers.callers import calling_pipeline
from mixcache.hosts.diffusers.denoisers import blocks_of, experts_of, span_of
from mixcache.hosts.diffusers.hooks import BlockHook, Cell, PipelineHook, TransformerHook
from mixcache.hosts.diffusers.overlay import hooks_on, put_on, take_off
from mixcache.hosts.diffusers.parallel import check_span, group_of
from mixcache.hosts.diffusers.reader import Reader
from mixcache.hosts.diffusers.reasons import NO_BLOCKS, why_not, without_numbers
from mixcache.hosts.diffusers.rows import COMPILE, ModelRow, row_for
from mixcache.hosts.diffusers.sessions import Session, Sessions
from mixcache.profiles import Profile, ProfileError, profile_of
from mixcache.summary import Summary
from mixcache.trace import Trace, TraceWriter

logger = logging.getLogger("mixcache")
TABLES = ("trace", "profile")
"""Fields of policies that are too large to be told as settings."""


class Denoiser:
    """One transformer of a pipeline with the cache attached.

    Modules own their hooks, and the hooks own the handle; nothing here keeps a module, so that a stage that is over can
    be freed.
    """

    def __init__(self, handle: Handle, attribute: str, transformer: torch.nn.Module) -> None:
        self._handle = handle
        self.attribute = attribute
        self._transformer: Callable[[], torch.nn.Module | None] = weakref.ref(transformer)
        num_blocks = len(blocks_of(transformer, handle.row))
        handle.trace.num_blocks = num_blocks
        self.span = span_of(handle.row, handle.config, handle.policy, transformer, num_blocks)
        self._hooked: list[tuple[weakref.ref[torch.nn.Module], TransformerHook | BlockHook]] = []

    @property
    def transformer(self) -> torch.nn.Module | None:
        """The module while it is attached and alive."""
        return self._transformer()

    @property
    def _cell(self) -> Cell:
        return self._handle.sessions.latest.cells[self.attribute]

    @property
    def engine(self) -> Observer:
        """Of the run that began last."""
        return self._cell.engine

    @property
    def reader(self) -> Reader:
        """Of the run that began last."""
        return self._cell.reader

    def attach(self) -> None:
        transformer = self._transformer()
        if transformer is None:
            return
        root = TransformerHook(self._handle, self.attribute, transformer, self.span)
        self._put_on(transformer, root)
        if self.engine.keeps(Granularity.BLOCK) and transformer._compiled_call_impl is None:
            span, blocks = self.span, blocks_of(transformer, self._handle.row)
            for index, block in enumerate(blocks):
                has_next = span.end < len(blocks)
                self._put_on(block, BlockHook(root, self._handle.row.streams, block, index=index, has_next=has_next))

    def _put_on(self, module: torch.nn.Module, hook: TransformerHook | BlockHook) -> None:
        put_on(module, hook)
        self._hooked.append((weakref.ref(module), hook))

    def leave_blocks(self) -> None:
        """Takes the hooks off the blocks, which then all run."""
        for module, hook in list(self._hooked):
            if isinstance(hook, BlockHook):
                self._take_off(module(), hook)
        self._hooked = [(module, hook) for module, hook in self._hooked if not isinstance(hook, BlockHook)]

    def detach(self) -> None:
        for module, hook in reversed(self._hooked):
            self._take_off(module(), hook)
        self._hooked.clear()
        self._transformer = lambda: None

    def _take_off(self, module: torch.nn.Module | None, hook: TransformerHook | BlockHook) -> None:
        if module is not None:
            take_off(module, hook)


class Handle:
    """A pipeline with the cache attached, from its making on (see `attachment.attach`). Also a context manager, which
    detaches at its end."""

    def __init__(
        self,
        pipeline: Any,
        config: MixCacheConfig,
        row: ModelRow,
        engine_class: type[Observer] = Engine,
        group: Any = None,
    ) -> None:
        self.config, self.row, self.policy = config, row, config.build()
        self.trace = Trace()
        self._pipeline: Callable[[], Any] = weakref.ref(pipeline)
        self._name = type(pipeline).__name__
        self._engine_class = engine_class
        self._group = group
        self._ranks: Any = None
        self._leaves_blocks = False
        self.denoisers = [Denoiser(self, name, module) for name, module in experts_of(pipeline).items()]
        self.sessions = Sessions(self._new_session, self._row_of)
        self._pipeline_hook = PipelineHook(self)
        self._num_calls_in_full = 0
        self._told: set[str] = set()
        self._is_disabled = False
        self._delivered: float | None = None
        self.why_not: str | None = None
        """Why the newest run was not made faster, or not as much as was asked for; None where it was."""
        try:
            self._attach()
        except BaseException:
            self.disable()
            raise

    def _new_session(self) -> Session:
        names = [denoiser.attribute for denoiser in self.denoisers]
        return Session(names, self._new_engine, self.row, self.trace, self._run_is_over, self._agreement)

    def _new_engine(self, attribute: str, guidance: Callable[[], float | None], trace: TraceWriter) -> Observer:
        span = next(denoiser.span for denoiser in self.denoisers if denoiser.attribute == attribute)
        engine = self._engine_class(self.policy, span, guidance, trace, granularities=self.row.granularities)
        if self._leaves_blocks:
            engine.leave_out(Granularity.BLOCK)
        return engine

    def _agreement(self) -> Agreement | None:
        """With the other ranks that a run which begins now is shared with; None where there are none."""
        transformers = [transformer for d in self.denoisers if (transformer := d.transformer) is not None]
        group = group_of(transformers, self._group)
        if group is None:
            return None
        from mixcache.hosts.ranks import Ranks, versions

        if self._ranks is None or not self._ranks.is_of(group):
            for denoiser in self.denoisers:
                if (transformer := denoiser.transformer) is not None and denoiser.engine.keeps(Granularity.BLOCK):
                    check_span(transformer, denoiser.span)
            alike = {"policy": self.config.policy_name} | self.settings | {"needs": self.policy.needs}
            self._ranks = Ranks(group, versions() | alike)
        return self._ranks

    def _row_of(self, pipeline: Any) -> ModelRow:
        if pipeline is self._pipeline():
            return self.row
        return row_for(next(t for d in self.denoisers if (t := d.transformer) is not None), pipeline)

    def _attach(self) -> None:
        for denoiser in self.denoisers:
            denoiser.attach()
        try:
            put_on(self._pipeline(), self._pipeline_hook)
        except TypeError:  # its class has a layout of its own; runs then end with their last step
            logger.debug("%s does not announce its runs", self._name)

    # ------------------------------------------------------------------------------------------------ runs and calls

    @contextmanager
    def running(self, pipeline: Any) -> Iterator[None]:
        """A run of the pipeline, from its first line to its end."""
        self._look_at_transformers(pipeline)
        with self.sessions.announced(pipeline):
            yield

    def cell_for_call(self, attribute: str) -> Cell:
        """What the run under way keeps of the transformer; UnknownCallError where the run cannot be told."""
        session = self.sessions.of_call(calling_pipeline(), self._pipeline())
        cell = session.cells[attribute]
        self._follow_compilation(attribute)
        session.before_call(cell)
        return cell

    def loop_is_over(self) -> None:
        """Told by the pipeline that its loop is done with the transformer."""
        self.sessions.loop_is_over(calling_pipeline(), self._pipeline())

    def computed_in_full(self, reason: str, *, on_all_ranks: bool = False) -> None:
        """Told of a call that said too little, here or on another rank; RuntimeError where another one has failed."""
        if (agreement := self.sessions.latest.agreement) is not None and not on_all_ranks:
            agreement.in_full(reason)
        if not self._num_calls_in_full:
            logger.warning("a call of the transformer is computed in full: %s", reason)
        self._num_calls_in_full += 1
        self.sessions.latest.in_full.append(reason)

    def tell_once(self, text: str, key: str | None = None) -> None:
        """One line of the log, the first time for each text, or each `key`."""
        if not self._told & {text, key}:
            self._told |= {text, key or text}
            logger.warning("%s", text)

    def _run_is_over(self, session: Session, reason: End) -> None:
        """Says why a run was not made faster, or less than was asked for."""
        if reason is End.DONE:
            run = Trace(session.entries, num_blocks=self.trace.num_blocks)
            self.why_not = why_not(run, session.in_full, self.policy, leaves_blocks=self._leaves_blocks)
            if self.why_not is not None:
                self.tell_once(self.why_not, key=without_numbers(self.why_not))
            self._delivered = session.speedup
            if (learnt := getattr(self.policy.policy, "learnt", None)) is not None:
                learnt.num_generations += 1

    def _look_at_transformers(self, pipeline: Any) -> None:
        """Says that a transformer has been put in place of one that has the cache."""
        for denoiser in self.denoisers:
            present = getattr(pipeline, denoiser.attribute, None)
            inner = getattr(present, "_orig_mod", present)
            if present is None or (present is inner and self._covers(inner)):
                continue
            if self._covers(inner):
                self.tell_once(f"torch.compile(transformer) came after mixcache.enable and compiles nothing; {COMPILE}")
            else:
                self.tell_once(
                    f"pipe.{denoiser.attribute} was replaced after mixcache.enable, and is not cached; call "
                    "mixcache.disable(pipe), then mixcache.enable(pipe, ...) again"
                )

    def _covers(self, transformer: Any) -> bool:
        hooks = hooks_on(transformer)
        return any(isinstance(hook, TransformerHook) and hook.owner is self for hook in hooks)

    def _follow_compilation(self, attribute: str) -> None:
        """Computes in full what the policy would do by `block` where the transformer was compiled as a whole: blocks of
        one graph cannot be left out."""
        denoiser = next(d for d in self.denoisers if d.attribute == attribute)
        transformer = denoiser.transformer
        if transformer is None or transformer._compiled_call_impl is None:
            return
        if self._leaves_blocks or not denoiser.engine.keeps(Granularity.BLOCK):
            return
        self._leaves_blocks = True
        self.tell_once(NO_BLOCKS)
        for other in self.denoisers:
            other.leave_blocks()
        for session in self.sessions.all:
            for cell in session.cells.values():
                cell.engine.leave_out(Granularity.BLOCK)

    # ------------------------------------------------------------------------------------------------ what users ask

    @property
    def engine(self) -> Observer:
        """Of the first transformer, in the run that began last."""
        return self.denoisers[0].engine

    @property
    def is_enabled(self) -> bool:
        """True while one of the pipeline's transformers has the cache."""
        return any(self._serves(denoiser) for denoiser in self.denoisers)

    def _serves(self, denoiser: Denoiser) -> bool:
        transformer, pipeline = denoiser.transformer, self._pipeline()
        if transformer is None:
            return False
        present = transformer if pipeline is None else getattr(pipeline, denoiser.attribute, None)
        return getattr(present, "_orig_mod", present) is transformer

    def disable(self) -> None:
        """Detaches and frees all memory; every object is what it was. Twice does nothing more."""
        self._is_disabled = True
        try:
            self.sessions.end()
        finally:
            for denoiser in self.denoisers:
                denoiser.detach()
            if (pipeline := self._pipeline()) is not None:
                take_off(pipeline, self._pipeline_hook)

    @property
    def profile(self) -> Profile | None:
        """What is known of this model by now: the profile given or shipped, and what the generations since have taught.
        None under policies that learn nothing, and before anything is known."""
        learnt = getattr(self.policy.policy, "learnt", None)
        if learnt is None or not learnt.log_rates:
            return None
        given = getattr(self.policy.policy, "profile", None)
        if given is None:
            transformers = [t for d in self.denoisers if (t := d.transformer) is not None]
            given = profile_of(self._name, transformers)
        return cast(Profile, given).with_learnt(learnt)

    def save_profile(self, path: str | PathLike[str]) -> None:
        """Writes `profile` as JSON, whole or not at all; ValueError where nothing was learnt, OSError where the file
        cannot be written."""
        profile = self.profile
        if profile is None:
            raise ValueError("nothing was learnt yet: generate a clip with policy hold first")
        profile.save(path)

    @property
    def settings(self) -> dict[str, Any]:
        """Every setting in force, those that were not given too: of the policy, of its bounds and of the block span."""
        bounds = {name: getattr(self.policy, name) for name in BOUNDS}
        span = self.denoisers[0].span
        return self._own_settings | bounds | {"span_first": span.first, "span_after": span.num_blocks - span.end}

    @property
    def _own_settings(self) -> dict[str, Any]:
        """Those of the policy, without what is no setting but a whole table."""
        names = setting_names(type(self.policy.policy))
        return {name: getattr(self.policy.policy, name) for name in names if name not in TABLES}

    def summary(self) -> Summary:
        """What the cache did, over the generations in the trace (the newest 100)."""
        share = self.trace.computed_share()
        return Summary(
            policy=self.config.policy_name,
            num_generations=self.trace.num_generations,
            num_steps=len(self.trace),
            granularity_counts=self.trace.counts(),
            computed_share=share,
            ideal_speedup=1 / share if share else None,
            num_non_finite=sum(entry.non_finite for entry in self.trace),
            num_calls_in_full=self._num_calls_in_full,
            wished_speedup=getattr(self.policy.policy, "speedup", None),
            speedup=self._delivered,
            estimate=self._estimate(),
            num_corrected=sum(entry.num_corrected for entry in self.trace),
            why_not=self.why_not,
            held_bytes=sum(engine.held_bytes for engine in self._engines),
            peak_bytes=sum(engine.peak_bytes for engine in self._engines),
        )

    def _estimate(self) -> str | None:
        """Of the PSNR that was asked for."""
        policy = self.policy.policy
        quality, profile = getattr(policy, "quality", None), getattr(policy, "profile", None)
        if profile is None or quality is None or isinstance(quality, str) or not len(self.trace):
            return None
        try:
            return str(profile.estimate(quality, self.trace[-1].num_steps))
        except ProfileError as error:  # of so many steps
            return str(error)

    def __repr__(self) -> str:
        settings = ", ".join(f"{name}={value!r}" for name, value in self._own_settings.items())
        state = "enabled" if self.is_enabled else "not enabled"
        return f"<Handle: {self._name} with {self.config.policy_name}({settings}), {state}, {len(self.trace)} steps>"

    @property
    def _engines(self) -> list[Observer]:
        return [cell.engine for session in self.sessions.all for cell in session.cells.values()]

    def __enter__(self) -> Handle:
        if self._is_disabled:
            raise ValueError("this handle is disabled, and nothing would be cached; call mixcache.enable(pipe) again")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.disable()
