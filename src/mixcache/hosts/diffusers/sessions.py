"""Runs of pipelines on transformers that have the cache: each has a state of its own.

A run that a pipeline's `__call__` announced is known from its first line to its end, by return or by exception. Other
calls (another pipeline that shares the transformer, a loop of the user's own) belong to the session of their thread and
pipeline, which ends with the loop's last step, when the pipeline says that its loop is over, or when another begins.
"""

from __future__ import annotations

import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from mixcache.core.agreement import Agreement
from mixcache.core.calls import End
from mixcache.core.observer import Observer
from mixcache.hosts.diffusers.clock import UnknownCallError
from mixcache.hosts.diffusers.hooks import Cell
from mixcache.hosts.diffusers.reader import Reader
from mixcache.hosts.diffusers.rows import ModelRow
from mixcache.hosts.diffusers.scheduler import SchedulerHook, is_repeatable
from mixcache.trace import MAX_RUN, Trace, TraceEntry, TraceWriter

MakeEngine = Callable[[str, Callable[[], float | None], TraceWriter], Observer]
"""An engine for the transformer under an attribute of the pipeline."""


class Session:
    """One run of one pipeline: what it keeps of each transformer, and its scheduler."""

    def __init__(
        self,
        attributes: list[str],
        make_engine: MakeEngine,
        row: ModelRow,
        trace: Trace,
        on_end: Callable[[Session, End], None],
        agreement: Callable[[], Agreement | None],
    ) -> None:
        self.pipeline: Callable[[], Any] = lambda: None
        self.is_announced = False
        self.in_full: deque[str] = deque(maxlen=MAX_RUN)
        """Why calls of this run were computed in full, one for each of them."""
        self._writer = writer = TraceWriter(trace)
        self.cells: dict[str, Cell] = {}
        for attribute in attributes:
            reader = Reader(row, lambda: self.pipeline(), attribute)
            engine = make_engine(attribute, self._guidance_of(attribute), writer)
            self.cells[attribute] = Cell(engine, reader, self.after_call)
        self._solver: SchedulerHook | None = None
        self._on_end, self._agreement_of = on_end, agreement
        self.agreement: Agreement | None = None
        """With the other ranks that run this clip."""

    def _guidance_of(self, attribute: str) -> Callable[[], float | None]:
        return lambda: self.cells[attribute].reader.guidance

    def begin(self, pipeline: Any, row: ModelRow, *, is_announced: bool) -> None:
        """A run of this pipeline begins."""
        self.pipeline, self.is_announced = weakref.ref(pipeline), is_announced
        self._start_afresh()
        self.agreement = self._agreement_of()
        if self.agreement is not None:
            self.agreement.begin()
        for attribute, cell in self.cells.items():
            cell.engine.agreement = self.agreement
            cell.engine.times.clear()
            cell.reader = Reader(row, self.pipeline, attribute)
            cell.engine.begin()
            cell.forms.clear()

    def _start_afresh(self) -> None:
        self.in_full.clear()
        self._writer.entries.clear()

    @property
    def entries(self) -> list[TraceEntry]:
        """What the steps of this run did so far."""
        return list(self._writer.entries)

    @property
    def speedup(self) -> float | None:
        """Of this run's steps, had all taken what a computed one took; None where that is not known."""
        times = [cell.engine.times for cell in self.cells.values()]
        plain, spent = (sum(getattr(time, name) for time in times) for name in ("plain_seconds", "seconds"))
        return plain / spent if plain and spent else None

    def before_call(self, cell: Cell) -> None:
        """Told of every call before it is decided."""
        self._follow_scheduler(cell.engine)
        if self._solver is not None:
            self._solver.engine = cell.engine
        for other in self.cells.values():
            if other is not cell:
                other.engine.end(End.DONE)  # its range of noise levels is over

    def after_call(self, cell: Cell) -> None:
        """Told when a call is answered, or the scheduler's step is done: a run that nobody announced ends here."""
        if not self.is_announced and cell.engine.is_over:
            self.done()

    def _follow_scheduler(self, engine: Observer) -> None:
        """Moves the hook to the scheduler that the pipeline has now, where policy and scheduler allow corrections."""
        hook, scheduler = self._solver, getattr(self.pipeline(), "scheduler", None)
        if (hook is not None and hook.scheduler is scheduler) or not engine.policy.needs.correction:
            return
        if hook is not None:
            hook.take_off()
        self._solver = None
        if is_repeatable(scheduler):
            self._solver = hook = SchedulerHook(scheduler, self._after_step)
            hook.put_on()

    def _after_step(self) -> None:
        for cell in self.cells.values():
            self.after_call(cell)

    def done(self) -> None:
        """Ends a run of calls that nobody announced, on all ranks; RuntimeError where it failed on another one."""
        self.meet_at_end()
        self.end(End.DONE)

    def meet_at_end(self) -> None:
        """The run is done here; RuntimeError where it failed on another rank."""
        if self.agreement is not None:
            self.agreement.end()

    def fail(self, error: BaseException) -> None:
        """The run failed here, which the other ranks are to know; RuntimeError where it failed on another one first."""
        if self.agreement is not None:
            self.agreement.fail(error)

    def end(self, reason: End) -> None:
        """Ends the run: nothing of it is held, and the scheduler is as it was."""
        if self._solver is not None:
            self._solver.take_off()
            self._solver = None
        for cell in self.cells.values():
            cell.engine.end(reason)
            cell.reader.forget()
        if self.entries or self.in_full:
            self._on_end(self, reason)
            self._start_afresh()


class Sessions:
    """The sessions of one handle: those under way, and idle ones to be used again."""

    def __init__(self, make: Callable[[], Session], row_of: Callable[[Any], ModelRow]) -> None:
        self._make, self._row_of = make, row_of
        self.latest = make()
        """That of the run that began last."""
        self.all = [self.latest]
        self._idle = [self.latest]
        self._announced = _Announced()
        self._others: list[_Other] = []
        self._lock = threading.Lock()

    @contextmanager
    def announced(self, pipeline: Any) -> Iterator[Session]:
        """The session of a run that the pipeline itself announced."""
        with self._lock:
            mine = [other for other in self._others if other.is_of(pipeline)]
        for other in mine:
            self._forget(other)
        session = self._begun(pipeline, is_announced=True)
        self._announced.stack.append(session)
        reason = End.FAILED
        try:
            yield session
            session.meet_at_end()
            reason = End.DONE
        except BaseException as error:
            session.fail(error)
            raise
        finally:
            self._announced.stack.remove(session)
            self._over(session, reason)

    def of_call(self, caller: Any | None, own: Any | None) -> Session:
        """The session that a call belongs to: of the pipeline `caller` that makes it, or, where that is unknown, of the
        handle's `own`. UnknownCallError where the run cannot be told."""
        for session in reversed(self._announced.stack):
            if caller is None or session.pipeline() is caller:
                return session
        pipeline = own if caller is None else caller
        if pipeline is None:
            raise UnknownCallError("the pipeline that mixcache was enabled on is gone; enable it on this one")
        with self._lock:
            others = list(self._others)
        for other in others:
            if other.is_of(pipeline):
                return other.session
        for other in others:
            if other.is_gone:
                self._forget(other)
        session = self._begun(pipeline, is_announced=False)
        with self._lock:
            self._others.append(_Other(weakref.ref(threading.current_thread()), session))
        return session

    def loop_is_over(self, caller: Any | None, own: Any | None) -> None:
        """The pipeline said that its loop is done."""
        for other in list(self._others):
            if other.is_of(own if caller is None else caller):
                other.session.done()

    def end(self) -> None:
        """Ends all of them."""
        for session in list(self.all):
            session.end(End.INTERRUPTED)

    def _begun(self, pipeline: Any, *, is_announced: bool) -> Session:
        try:
            row = self._row_of(pipeline)
        except TypeError as error:
            raise UnknownCallError(str(error)) from error
        if row.unsafe:
            raise UnknownCallError(row.unsafe)
        with self._lock:
            session = self._idle.pop(0) if self._idle else self._make()
            if session not in self.all:
                self.all.append(session)
            self.latest = session
        session.begin(pipeline, row, is_announced=is_announced)
        return session

    def _forget(self, other: _Other) -> None:
        with self._lock:
            if other not in self._others:
                return
            self._others.remove(other)
        self._over(other.session, End.INTERRUPTED)

    def _over(self, session: Session, reason: End) -> None:
        try:
            session.end(reason)
        finally:
            with self._lock:
                self._idle.append(session)
                self._idle.sort(key=self.all.index)


@dataclass(frozen=True, eq=False, slots=True)
class _Other:
    """The session of calls that nobody announced."""

    thread: weakref.ref[threading.Thread]
    session: Session

    def is_of(self, pipeline: Any) -> bool:
        return self.thread() is threading.current_thread() and self.session.pipeline() is pipeline

    @property
    def is_gone(self) -> bool:
        thread = self.thread()
        return thread is None or not thread.is_alive() or self.session.pipeline() is None


class _Announced(threading.local):
    """The announced runs that this thread is in, the innermost last."""

    def __init__(self) -> None:
        self.stack: list[Session] = []
