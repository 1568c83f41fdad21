"""Hands tasks to workers as they come free, and starts those anew that die. What a worker is, is a `Pool`'s affair."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

from mixcache.batch.attempts import take_back
from mixcache.batch.folder import Folder, Task
from mixcache.batch.work import Outcome

MAX_DEATHS = 3
"""Of a worker in a row while it loads the model."""


class NoWorkersError(ValueError):
    """There is nobody left to do the work; the message says why."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Ready:
    """A worker has loaded the model."""

    process: dict[str, Any]
    """As its attempts name it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Unusable:
    """A worker cannot load the model."""

    message: str


Report = Ready | Unusable | Outcome | None
"""None where it is dead."""


class Pool(Protocol):
    """A runner: it has `num_workers` places, from 0, for a worker each."""

    num_workers: int

    def start(self, place: int) -> None:
        """Begins a worker there, in the stead of one that may be there."""

    def send(self, place: int, task: Task) -> None:
        """Gives it a task."""

    def wait(self) -> list[tuple[int, Report]]:
        """What workers have to say; waits until one has, for a second at most."""

    def close(self) -> None:
        """Ends all workers at once, and returns when they are dead."""


class Crew:
    """The workers of one run."""

    def __init__(self, pool: Pool, folder: Folder) -> None:
        self.pool, self.folder = pool, folder
        self.messages: list[str] = []
        """Why workers were left out."""
        self._idle: set[int] = set()
        self._at_work: dict[int, Task] = {}
        self._processes: dict[int, dict[str, Any]] = {}
        self._deaths: dict[int, int] = {}
        """In a row while loading, by place; a place that is not in it is not, or no longer, used."""

    def outcomes(self, tasks: Iterator[Task]) -> Iterator[Outcome]:
        """Of each task, as they end. NoWorkersError where all workers are unusable."""
        again: deque[Task] = deque()
        while True:
            waiting = self._handed_out(tasks, again)
            if not self._at_work and not waiting:
                return
            if not self._deaths:
                raise NoWorkersError(self.messages[-1])
            for place, report in self.pool.wait():
                if isinstance(report, Outcome):
                    self._at_work.pop(place, None)
                    if report.is_sound:
                        self._idle.add(place)
                    else:
                        self._start(place)
                    yield report
                elif isinstance(report, Ready):
                    self._processes[place] = report.process
                    self._deaths[place] = 0
                    self._idle.add(place)
                elif isinstance(report, Unusable):
                    self._leave(place, report.message)
                else:
                    again.extend(self._bury(place))

    def _handed_out(self, tasks: Iterator[Task], again: deque[Task]) -> bool:
        """Whether a task is left that waits for a worker."""
        while (task := again.popleft() if again else next(tasks, None)) is not None:
            if not self._idle:
                again.appendleft(task)
                if not self._deaths and not self.messages:
                    for place in range(self.pool.num_workers):
                        self._start(place)
                return True
            place = min(self._idle)
            self._idle.remove(place)
            self._at_work[place] = task
            self.pool.send(place, task)
        return False

    def _start(self, place: int) -> None:
        self._deaths.setdefault(place, 0)
        self._processes.pop(place, None)
        self.pool.start(place)

    def _leave(self, place: int, message: str) -> None:
        self._deaths.pop(place, None)
        self.messages.append(message)

    def _bury(self, place: int) -> list[Task]:
        """The tasks that a dead worker leaves; another is begun in its place."""
        if place not in self._deaths:
            return []  # it was left out
        self._idle.discard(place)
        task = self._at_work.pop(place, None)
        if task is not None:
            take_back(self.folder, task.name, self._processes[place], counts=True)
        elif place not in self._processes:
            self._deaths[place] += 1
            if self._deaths[place] >= MAX_DEATHS:
                self._leave(place, f"a worker died {MAX_DEATHS} times while it loaded the model")
                return []
        self._start(place)
        return [] if task is None else [task]

    def close(self) -> None:
        """Ends the workers. What they were at is not held against their tasks."""
        self.pool.close()
        for place, task in self._at_work.items():
            take_back(self.folder, task.name, self._processes[place], counts=False)
        self._at_work.clear()
