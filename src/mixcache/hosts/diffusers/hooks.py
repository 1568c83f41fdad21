"""What stands around a transformer and its blocks: turns their calls into what the engine is asked, and back.

Both cover `__call__` (`overlay.py`), outside of whatever else hooks, offloads or compiles the module: python that
changes with every step has no place in a graph, and a call that is left out loads no weights.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from types import SimpleNamespace
from typing import Any, Protocol

import torch

from mixcache.core.agreement import AloneError
from mixcache.core.calls import CallInfo, End, Span
from mixcache.core.observer import Observer
from mixcache.core.run import Streams
from mixcache.core.seen import version_of
from mixcache.hosts.diffusers.clock import UnknownCallError
from mixcache.hosts.diffusers.packing import Form, conditional_half, named_arguments, signature_of
from mixcache.hosts.diffusers.reader import Reader

Inner = Callable[..., Any]
COMPILE_FIRST = "mixcache decides outside of what is compiled; compile in place: transformer.compile()"


class Cell:
    """What one run keeps of one transformer."""

    def __init__(self, engine: Observer, reader: Reader, on_answer: Callable[[Cell], None]) -> None:
        self.engine, self.reader, self.on_answer = engine, reader, on_answer
        self.forms: dict[tuple[str, bool], Form] = {}
        """Of each branch's output, as a dataclass and not."""


class Owner(Protocol):
    """Knows which run a call belongs to: the handle."""

    def cell_for_call(self, attribute: str) -> Cell:
        """What the run under way keeps of the transformer; UnknownCallError where the run cannot be told."""

    def computed_in_full(self, reason: str, *, on_all_ranks: bool = False) -> None:
        """Told of a call that said too little, here or on another rank."""

    def tell_once(self, text: str) -> None:
        """One line of the log, the first time."""

    def loop_is_over(self) -> None:
        """Told by the pipeline that its loop is done with the transformer."""


class SpanGate:
    """What the span of blocks does in one call: it is recorded, or replaced by residuals that are given."""

    def __init__(self, residuals: Streams = ()) -> None:
        self.residuals = residuals
        """Added in place of the span; without them it runs."""
        self.recorded: Streams = ()
        self._begun: Streams = ()
        self._versions: list[int] = []

    @property
    def skips(self) -> bool:
        return bool(self.residuals)

    def begins(self, streams: Streams) -> None:
        """Told what goes into the span's first block."""
        self._begun, self._versions = streams, [*map(version_of, streams)]

    def ends(self, streams: Streams) -> Streams:
        """Told what comes out of the span; returns what goes on to the next block.

        A span left out is replaced by what went into it plus its residual, whatever the model added on the way: that is
        in the residual.
        """
        begun, self._begun = self._begun, ()
        if not begun:
            return streams
        if self.skips:
            return tuple(begin + residual for begin, residual in zip(begun, self.residuals, strict=True))
        if [*map(version_of, begun)] == self._versions:  # else a block has written to what it was given
            self.recorded = tuple((end - begin).detach() for begin, end in zip(begun, streams, strict=True))
        return streams


class TransformerHook:
    """Stands around the whole transformer: turns a call into `engine.call`."""

    def __init__(self, owner: Owner, attribute: str, module: torch.nn.Module, span: Span) -> None:
        self.owner, self.attribute, self.span = owner, attribute, span
        self.covers = tuple(
            name for name in ("__call__", "cache_context", "_reset_stateful_cache") if hasattr(type(module), name)
        )
        self.signature = signature_of(module)
        self._now = _Now()

    @property
    def gate(self) -> SpanGate | None:
        """Of the call that this thread is in, if its span is looked at."""
        return self._now.gate

    @contextmanager
    def gated(self, gate: SpanGate) -> Iterator[SpanGate]:
        before, self._now.gate = self._now.gate, gate
        try:
            yield gate
        finally:
            self._now.gate = before

    @contextmanager
    def cache_context(self, module: Any, inner: Inner, name: str, *args: Any, **kwargs: Any) -> Iterator[Any]:
        """The pipeline names its next call; each thread has its own."""
        before, self._now.context = self._now.context, SimpleNamespace(name=name, **kwargs)
        try:
            with inner(name, *args, **kwargs) as entered:
                yield entered
        finally:
            self._now.context = before

    def _reset_stateful_cache(self, module: Any, inner: Inner, *args: Any, **kwargs: Any) -> Any:
        self.owner.loop_is_over()
        return inner(*args, **kwargs)

    @torch.compiler.disable(reason=COMPILE_FIRST)  # type: ignore[untyped-decorator]
    def call(self, module: torch.nn.Module, inner: Inner, *args: Any, **kwargs: Any) -> Any:
        """The output of one call of the transformer."""
        named = named_arguments(self.signature, args, kwargs)
        cell = None
        try:
            if torch.is_grad_enabled():
                raise UnknownCallError("gradients are on")
            cell = self.owner.cell_for_call(self.attribute)
            info = cell.reader.read(self._now.context, named)
            returns_dict = bool(named.get("return_dict", True))
            if returns_dict and (info.branch, False) in cell.forms and (info.branch, True) not in cell.forms:
                raise UnknownCallError("return_dict=True after return_dict=False")
        except UnknownCallError as reason:
            if cell is not None:
                cell.engine.end(End.INTERRUPTED)
            self.owner.computed_in_full(str(reason))
            return inner(*args, **kwargs)
        run = TransformerCall(self, cell, info, inner, args, kwargs, named)
        try:
            packed = cell.engine.call(info, run)
        except AloneError as reason:
            self.owner.computed_in_full(str(reason), on_all_ranks=True)
            return inner(*args, **kwargs)
        except BaseException as error:
            if cell.engine.agreement is not None:
                cell.engine.agreement.fail(error)
            raise
        if run.packed is packed:
            output = run.output
        elif (info.branch, returns_dict) in cell.forms:
            output = cell.forms[info.branch, returns_dict].unpack(packed)
        else:
            output = cell.forms[info.branch, True].unpack(packed).to_tuple()
        cell.on_answer(cell)
        return output


class _Now(threading.local):
    """Where each thread stands."""

    context: Any = None
    gate: SpanGate | None = None


class TransformerCall:
    """One call of the transformer. An `engine.Run`."""

    def __init__(
        self,
        hook: TransformerHook,
        cell: Cell,
        info: CallInfo,
        inner: Inner,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        named: dict[str, Any],
    ) -> None:
        self._hook, self._cell, self._info = hook, cell, info
        self._inner, self._args, self._kwargs, self._named = inner, args, kwargs, named
        self.output: Any = None
        """What the transformer gave."""
        self.packed: torch.Tensor | None = None
        """The same as one tensor."""

    @property
    def latents(self) -> torch.Tensor:
        return self._cell.reader.latents(self._named)

    def full(self, *, records: bool) -> tuple[torch.Tensor, Streams]:
        if not records:
            return self._run(), ()
        with self._hook.gated(SpanGate()) as gate:
            output = self._run()
            return output, gate.recorded

    def without_span(self, residuals: Streams) -> torch.Tensor:
        with self._hook.gated(SpanGate(residuals)):
            return self._run()

    def conditional(self) -> torch.Tensor | None:
        half = conditional_half(self._cell.reader.row, self._named, batch=self._info.signature[0][0])
        if half is None:
            self._hook.owner.tell_once(
                "an argument of the transformer may be batched or not: cfg steps are computed in full"
            )
            return None
        return Form.packed(self._inner(**half), keeps_batch=True)[1]

    def _run(self) -> torch.Tensor:
        self.output = self._inner(*self._args, **self._kwargs)
        form, self.packed = Form.packed(self.output, keeps_batch=bool(self._info.parts))
        returns_dict = bool(self._named.get("return_dict", True))
        self._cell.forms[self._info.branch, returns_dict] = form
        return self.packed


class BlockHook:
    """Stands around one block. All of them have one, since blocks of one class share what is compiled."""

    covers = ("__call__",)

    def __init__(
        self, root: TransformerHook, streams: tuple[str, ...], block: torch.nn.Module, *, index: int, has_next: bool
    ) -> None:
        self._root = root
        span = root.span
        self.is_outside = not span.first <= index <= span.end
        self.is_first = index == span.first
        self.is_after = index == span.end
        self.is_very_last = index == span.end - 1 and not has_next
        names = list(signature_of(block).parameters)
        self._places = [(name, names.index(name)) for name in streams if name in names]

    def call(self, module: torch.nn.Module, inner: Inner, *args: Any, **kwargs: Any) -> Any:
        """The output of the block, or what stands in for it."""
        gate = self._root.gate
        if gate is None or self.is_outside:
            return inner(*args, **kwargs)
        values = [kwargs.get(name, args[place] if place < len(args) else None) for name, place in self._places]
        if self.is_first:
            gate.begins(tensors_in(values))
        if self.is_after:
            args, kwargs = self._with_values(refilled(values, gate.ends(tensors_in(values))), args, kwargs)
            return inner(*args, **kwargs)
        passed_on = tuple(values) if len(values) > 1 else values[0]
        output = passed_on if gate.skips else inner(*args, **kwargs)
        if not self.is_very_last:
            return output
        values = list(output) if isinstance(output, tuple) else [output]
        values = refilled(values, gate.ends(tensors_in(values)))
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


class PipelineOwner(Protocol):
    """Told of runs: the handle."""

    def running(self, pipeline: Any) -> AbstractContextManager[None]:
        """A run of the pipeline, from its first line to its end."""


class PipelineHook:
    """Stands around a pipeline's `__call__`: a run begins and ends with it, whatever it ends with."""

    covers = ("__call__",)

    def __init__(self, owner: PipelineOwner) -> None:
        self.owner = owner

    def call(self, pipeline: Any, inner: Inner, *args: Any, **kwargs: Any) -> Any:
        with self.owner.running(pipeline):
            return inner(*args, **kwargs)


def tensors_in(values: Sequence[Any]) -> Streams:
    """Those streams that this model call has; a sound that is not made is None."""
    return tuple(value for value in values if value is not None)


def refilled(values: Sequence[Any], streams: Streams) -> list[Any]:
    """`values` with its tensors replaced in order."""
    remaining = iter(streams)
    return [None if value is None else next(remaining) for value in values]
