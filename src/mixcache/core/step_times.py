"""What steps take, by what was done in them, without a sync of its own.

A step lasts from its first call to that of the next: the solver and whatever the pipeline does between them count. On
an accelerator the marks are events of its stream, and are read once they have passed; elsewhere they are the clock.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping
from statistics import median
from typing import Any

import torch

from mixcache.decision import Granularity

NUM_REMEMBERED = 32
"""Steps of each granularity."""
MAX_OPEN = 1000
"""Steps whose ends have not passed."""


class StepTimes:
    """Marks the beginning of each step, and tells the medians of those that are over."""

    def __init__(self) -> None:
        self._open: deque[tuple[Granularity, Any, Any]] = deque(maxlen=MAX_OPEN)
        """Granularity, beginning and end of steps whose events may not have passed yet."""
        self._last: tuple[Granularity, Any] | None = None
        self._seconds: dict[Granularity, deque[float]] = {}
        self._medians: dict[Granularity, float] = {}
        self._run: dict[Granularity, list[float]] = {}
        """Seconds of the steps of the run under way."""

    def begin(self, granularity: Granularity, device: torch.device) -> None:
        """A step begins, on `device`, with which the one before it ends."""
        mark = _mark(device)
        if self._last is not None and type(self._last[1]) is type(mark):
            self._open.append((*self._last, mark))
        self._last = granularity, mark

    def end(self) -> None:
        """The loop is over: its last step, of which nobody knows when it was done, is not counted."""
        self._last = None

    def clear(self) -> None:
        """Another run begins: the sums are of it alone, and the medians go on."""
        self._last = None
        self._open.clear()
        self._run.clear()

    @property
    def seconds(self) -> float:
        """Of all steps of this run that are over."""
        self._read()
        return sum(map(sum, self._run.values()))

    @property
    def plain_seconds(self) -> float:
        """What they would have taken at the median of the computed ones; 0 where none was computed."""
        self._read()
        computed = self._run.get(Granularity.COMPUTE)
        return median(computed) * sum(map(len, self._run.values())) if computed else 0.0

    def medians(self) -> Mapping[Granularity, float]:
        """Seconds of a step of each granularity that was seen."""
        self._read()
        return dict(self._medians)

    def _read(self) -> None:
        """Takes in the steps whose ends have passed since."""
        while self._open and _has_passed(self._open[0][2]):
            granularity, begun, ended = self._open.popleft()
            seconds = _seconds(begun, ended)
            remembered = self._seconds.setdefault(granularity, deque(maxlen=NUM_REMEMBERED))
            remembered.append(seconds)
            self._medians[granularity] = median(remembered)
            self._run.setdefault(granularity, []).append(seconds)


def _mark(device: torch.device) -> Any:
    if device.type in ("cpu", "meta"):
        return time.perf_counter()
    event = torch.Event(device=device, enable_timing=True)
    event.record()
    return event


def _has_passed(mark: Any) -> bool:
    return isinstance(mark, float) or bool(mark.query())


def _seconds(begun: Any, ended: Any) -> float:
    return ended - begun if isinstance(ended, float) else float(begun.elapsed_time(ended)) / 1000
