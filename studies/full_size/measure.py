"""Measures one model: what of its modes is not in its file yet, without compilation and then with it."""

from __future__ import annotations

import contextlib
import datetime
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from mixcache import generation
from mixcache.attachment import enable
from mixcache.bench.run import reason_of
from mixcache.calibration.schedules import trace_of
from mixcache.policies import Replay
from mixcache.report.frontier import letters
from mixcache.trace import Trace
from studies.full_size.compiling import compiled_blocks
from studies.full_size.families import FAMILIES, build_pipeline, call_arguments
from studies.full_size.medians import told
from studies.full_size.models import FullSizeModel
from studies.full_size.modes import ENOUGH_STEPS, MODES, tour
from studies.full_size.results import Entry, Results
from studies.full_size.runs import Subject, mirrored, release
from studies.full_size.schedules import carried, levels_of, placed

TRIED_STEPS = 2
"""Steps of the generation that finds out whether a number of frames fits."""
TOUR_STEPS = 7
"""Steps in which a compiled model meets every kind of step before it is timed."""
Tell = Callable[[str], None]


@dataclass(frozen=True, kw_only=True, slots=True)
class Options:
    """How all models are measured."""

    out: Path
    trace: Trace
    """The schedule that is carried over."""
    device: torch.device
    dtype: torch.dtype
    num_steps: int | None = None
    """The model's own unless told."""
    repeats: int = 2
    phases: Sequence[str] = ("eager", "compiled")
    modes: Sequence[str] = tuple(MODES)
    backend: str = "inductor"
    retries_failed: bool = False


def header_of(model: FullSizeModel, options: Options) -> dict[str, Any]:
    """All that entries of one file have in common."""
    family = FAMILIES[model.family]
    return {
        "model": model.name,
        "source": model.source,
        "weights": "random",
        "pipeline": family.pipeline,
        "transformer": family.transformer,
        "config": dict(model.config),
        "scheduler": {"class": family.scheduler, **model.scheduler},
        "size": [model.width, model.height],
        "guidance_scale": model.guidance_scale,
        "num_steps": options.num_steps or model.num_steps,
        "repeats": options.repeats,
        "dtype": str(options.dtype).removeprefix("torch."),
        "compile_backend": options.backend,
        "schedule": letters([(entry.granularity, entry.order) for entry in options.trace]),
        "versions": generation.versions(),
        "machine": generation.machine(options.device),
    }


def measure(model: FullSizeModel, options: Options, tell: Tell) -> Results:
    """Measures what is missing; what fails is an entry that says why, and the next one is measured."""
    results = Results(options.out, header_of(model, options))
    missing = {
        phase: [
            mode
            for mode in options.modes
            if not results.is_done(f"{phase}/{mode}", retries_failed=options.retries_failed)
        ]
        for phase in options.phases
    }
    names = [f"{phase}/{mode}" for phase, modes in missing.items() for mode in modes]
    if not names:
        tell(f"{model.name}: nothing is missing")
        return results
    tell(f"{model.name}: {len(names)} to measure")
    with _failing(results, names, options.device, tell):
        subject = prepared(model, options, results)
        for phase, modes in missing.items():
            if modes:
                _phase(subject, phase, modes, options, results, tell)
    release(options.device)
    return results


def prepared(model: FullSizeModel, options: Options, results: Results) -> Subject:
    """The pipeline with the largest number of frames that fits, once warm; MemoryError where none does."""
    pipeline = build_pipeline(model, options.device, options.dtype)
    arguments = call_arguments(model, options.device, options.dtype)
    arguments["num_inference_steps"] = options.num_steps or model.num_steps
    subject = Subject(
        model=model, pipeline=pipeline, arguments=arguments, device=options.device, backend=options.backend
    )
    too_many = list(results.found.get("num_frames_too_many", []))
    for num_frames in model.num_frames:
        if num_frames in too_many:
            continue
        arguments["num_frames"] = num_frames
        try:
            subject.call(num_steps=TRIED_STEPS)
        except torch.OutOfMemoryError:
            too_many.append(num_frames)
        else:
            break
        release(options.device)  # outside of the handler, whose error holds the tensors
    else:
        raise MemoryError(f"not even {model.num_frames[-1]} frames fit")
    results.found = {"num_frames": num_frames, "num_frames_too_many": too_many}
    subject.schedule = carried(options.trace, levels_of(pipeline, arguments))
    subject.placed = placed(options.trace, subject.num_steps)
    return subject


def _phase(subject: Subject, phase: str, modes: Sequence[str], options: Options, results: Results, tell: Tell) -> None:
    """Measures modes, compiled or not."""
    with (
        _failing(results, [f"{phase}/{mode}" for mode in modes], options.device, tell),
        contextlib.ExitStack() as stack,
    ):
        if phase == "compiled":
            stack.enter_context(_compiled(subject))
        for mode in modes:
            name = f"{phase}/{mode}"
            with _failing(results, [name], options.device, tell):
                release(options.device)
                start = time.perf_counter()
                results.keep(name, _measured(subject, mode, options.repeats))
                tell(f"{subject.model.name}: {name} ({time.perf_counter() - start:.1f} s)")


def _measured(subject: Subject, mode: str, repeats: int) -> Entry:
    """The entry of one mode, in no more steps than it needs."""
    num_steps = min(subject.num_steps, ENOUGH_STEPS.get(mode, subject.num_steps))
    subject = replace(subject, arguments=subject.arguments | {"num_inference_steps": num_steps})
    return {
        "date": datetime.date.today().isoformat(),
        "num_steps": num_steps,
        "ways": told(mirrored(subject, MODES[mode], repeats), plain="plain"),
    }


@contextlib.contextmanager
def _compiled(subject: Subject) -> Iterator[None]:
    """The transformer's blocks are compiled, each one graph, and have met every kind of step."""
    with compiled_blocks(subject.pipeline, fullgraph=True, backend=subject.backend):
        subject.is_compiled = True
        try:
            subject.call(num_steps=TRIED_STEPS)
            with enable(subject.pipeline, Replay(trace=trace_of(tour(subject, TOUR_STEPS)))):
                subject.call(num_steps=TOUR_STEPS)
            subject.call(num_steps=TRIED_STEPS)
            yield
        finally:
            subject.is_compiled = False


@contextlib.contextmanager
def _failing(results: Results, names: Sequence[str], device: torch.device, tell: Tell) -> Iterator[None]:
    """An error becomes the entry of those of `names` that have none, in place of a crash."""
    reason = None
    try:
        yield
    except Exception as error:  # whatever a model, a compiler or a device may raise is a result here
        reason = reason_of(error)
    if reason is None:
        return
    release(device)
    for name in names:
        if not results.is_done(name, retries_failed=True):
            results.keep(name, {"date": datetime.date.today().isoformat(), "failed": reason})
            tell(f"{results.header['model']}: {name} failed: {reason}")
