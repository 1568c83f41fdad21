"""One timed generation, and several ways of caching that take turns with the plain pipeline."""

from __future__ import annotations

import gc
import itertools
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import torch

from mixcache import generation
from studies.full_size.compiling import num_graphs
from studies.full_size.families import FAMILIES, Family
from studies.full_size.models import FullSizeModel
from studies.full_size.schedules import Schedule

WARM_UP_STEPS = 6
MAX_WARM_UPS = 3


@dataclass(kw_only=True, slots=True)
class Subject:
    """A pipeline on its device, and the call that is timed."""

    model: FullSizeModel
    pipeline: Any
    arguments: dict[str, Any]
    """Of the call, without the generator."""
    device: torch.device
    schedule: Schedule = field(default_factory=list)
    """What the policy of the built-in model would do at this call's noise levels."""
    placed: Schedule = field(default_factory=list)
    """What it would do at the same places of the loop."""
    backend: str = "inductor"
    """Of torch.compile."""
    is_compiled: bool = False

    @property
    def num_steps(self) -> int:
        return int(self.arguments["num_inference_steps"])

    @property
    def family(self) -> Family:
        return FAMILIES[self.model.family]

    def call(self, on_step: generation.OnStep | None = None, *, num_steps: int | None = None) -> float:
        """Milliseconds of the denoising loop."""
        arguments = self.arguments | ({"num_inference_steps": num_steps} if num_steps else {})
        with generation.watched_loop(self.pipeline, on_step) as clock:
            self.pipeline(generator=torch.Generator(self.device).manual_seed(0), **arguments)
        return 1000 * clock.seconds


Account = Callable[[], dict[str, Any]]
"""Asked after a generation: `steps`, the name under which each step is timed, and what else is to be kept."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Way:
    """One way to run the pipeline."""

    name: str
    attached: Callable[[Subject], AbstractContextManager[Account]]
    warms_up: bool = False
    """True where attaching it makes torch.compile begin anew."""


class StepMarks:
    """When each step was over: on the device's own clock, so that the host is not held up; on a CPU on the host's."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._marks: list[Any] = []

    def mark(self, num_done: int, total: int) -> None:
        """Told at the loop's start and after every step."""
        if self._device.type != "cuda":
            self._marks.append(time.perf_counter())
            return
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self._device))
        self._marks.append(event)

    def step_ms(self) -> list[float]:
        """Milliseconds of each step; the device must have been synchronised."""
        pairs = itertools.pairwise(self._marks)
        if self._device.type != "cuda":
            return [1000 * (end - begin) for begin, end in pairs]
        return [begin.elapsed_time(end) for begin, end in pairs]


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """One generation."""

    loop_ms: float
    step_ms: list[float]
    peak_bytes: int | None
    """Highest memory of a CUDA device while it ran; None elsewhere."""
    num_graphs: int
    """What torch.compile made meanwhile: its time is in the loop's."""
    account: dict[str, Any]


def run_once(subject: Subject, account: Account) -> Run:
    """A timed generation with whatever is attached now."""
    is_cuda = subject.device.type == "cuda"
    if is_cuda:
        torch.cuda.synchronize(subject.device)
        torch.cuda.reset_peak_memory_stats(subject.device)
    marks, graphs = StepMarks(subject.device), num_graphs()
    loop_ms = subject.call(marks.mark)
    peak = int(torch.cuda.max_memory_allocated(subject.device)) if is_cuda else None
    return Run(
        loop_ms=loop_ms,
        step_ms=marks.step_ms(),
        peak_bytes=peak,
        num_graphs=num_graphs() - graphs,
        account=account(),
    )


def _warm_up(subject: Subject) -> None:
    """Short generations until torch.compile has nothing more to do, or does not come to an end."""
    for _ in range(MAX_WARM_UPS):
        graphs = num_graphs()
        subject.call(num_steps=min(WARM_UP_STEPS, subject.num_steps))
        if num_graphs() == graphs:
            return


def mirrored(subject: Subject, ways: Sequence[Way], repeats: int) -> dict[str, list[Run]]:
    """Every way once a repeat, in turn, forth and back (plain, cached, cached, plain), so that a drift falls on all
    alike. Two turns of a way that follow each other share one attachment.
    """
    runs: dict[str, list[Run]] = {way.name: [] for way in ways}
    order = [way for turn in range(repeats) for way in (reversed(ways) if turn % 2 else ways)]
    for _, group in itertools.groupby(order, key=lambda way: way.name):
        turns = list(group)
        way = turns[0]
        with way.attached(subject) as account:
            if way.warms_up and subject.is_compiled:
                _warm_up(subject)
            for _ in turns:
                runs[way.name].append(run_once(subject, account))
    return runs


def release(device: torch.device) -> None:
    """Frees what nothing holds any more."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
