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


class StepTimes:
    """Marks the beginning of each step, and tells the medians of those that are over."""

    def __init__(self) -> None:
        self._open: deque[tuple[Granularity, Any, Any]] = deque(maxlen=NUM_REMEMBERED)
        """Granularity, beginning and end of steps whose events may not have passed yet."""
        self._last: tuple[Granularity, Any] | None = None
        self._seconds: dict[Granularity, deque[float]] = {}

    def begin(self, granularity: Granularity, device: torch.device) -> None:
        """A step begins, on `device`, with which the one before it ends."""
        mark = _mark(device)
        if self._last is not None and type(self._last[1]) is type(mark):
            self._open.append((*self._last, mark))
        self._last = granularity, mark

    def interrupt(self) -> None:
        """What comes next does not follow on: the step under way is not counted."""
        self._last = None

    def medians(self) -> Mapping[Granularity, float]:
        """Seconds of a step of each granularity that was seen."""
        while self._open and _has_passed(self._open[0][2]):
            granularity, begun, ended = self._open.popleft()
            self._seconds.setdefault(granularity, deque(maxlen=NUM_REMEMBERED)).append(_seconds(begun, ended))
        return {granularity: median(seconds) for granularity, seconds in self._seconds.items()}


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
