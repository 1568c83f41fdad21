"""A run of a batch: hands out what is missing, counts, and reports.

What is done is asked of the disk, never remembered, so the driver's memory does not grow with the clips.
"""

from __future__ import annotations

import contextlib
import heapq
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from statistics import median

from mixcache.batch.attempts import Standing
from mixcache.batch.crew import Crew
from mixcache.batch.folder import CLIP, VERIFY, Folder, Task
from mixcache.batch.jobs import BadLine, Job
from mixcache.batch.wall import write_wall
from mixcache.batch.work import Outcome

Jobs = Callable[[], Iterator[Job | BadLine]]
"""Reads the job file from its beginning."""
BUSY_SECONDS = 1.0
"""Until it is looked again at what others are at work on."""
MAX_TOLD = 20
"""Bad lines, and failures, that are listed."""
WALL_SECONDS, WALL_SHARE = 60.0, 50
"""The wall is written anew after so many seconds, or so many times the time that it takes."""


class StoppedError(Exception):
    """The run cannot go on; what is done stays done, and the message says why it stopped."""


@dataclass(kw_only=True)
class Progress:
    """What a run has done so far."""

    total: int = 0
    num_done: int = 0
    """With those of earlier runs."""
    num_made: int = 0
    """In this run."""
    num_failed: int = 0
    """In this run."""
    saving_sum: float = 0.0
    began: float = field(default_factory=time.monotonic)

    @property
    def clips_a_minute(self) -> float:
        return 60 * self.num_made / max(1e-9, time.monotonic() - self.began)

    @property
    def mean_saving(self) -> float | None:
        return self.saving_sum / self.num_made if self.num_made else None


@dataclass(frozen=True, kw_only=True, slots=True)
class Verified:
    """How near the clips that were made plain too came to these."""

    num_clips: int
    lowest_db: float | None
    """None where every one is the same to the last value."""
    median_db: float | None


@dataclass(frozen=True, kw_only=True)
class Result:
    """What the disk says at the end of a run."""

    num_jobs: int
    num_done: int
    num_bad_lines: int
    bad_lines: list[BadLine]
    """The first `MAX_TOLD`."""
    failures: list[tuple[Job, str]]
    """The same; the wall has all."""
    verified: Verified | None
    warnings: list[str]

    @property
    def num_failed(self) -> int:
        return self.num_jobs - self.num_done


def run_batch(
    jobs: Jobs,
    crew: Crew,
    folder: Folder,
    *,
    num_verified: int = 0,
    again: bool = False,
    on_progress: Callable[[Progress], None] = lambda progress: None,
) -> Result:
    """Makes what is missing; `again` also what was given up. What is finished stays as it is, also where this raises:
    NoWorkersError, StoppedError, KeyboardInterrupt.
    """
    progress = Progress()
    bad_lines: list[BadLine] = []
    num_bad_lines = 0

    def on_bad(line: BadLine) -> None:
        nonlocal num_bad_lines
        num_bad_lines += 1
        if num_bad_lines <= MAX_TOLD:
            bad_lines.append(line)

    for job in _each(jobs, on_bad):
        progress.total += 1
        progress.num_done += folder.has(job.id)
        if again:
            folder.file(job.id, ".failed.json").unlink(missing_ok=True)
    on_progress(progress)
    try:
        _work_off(crew, lambda: _missing(jobs, folder, CLIP), folder, progress, on_progress)
        sample = heapq.nsmallest(num_verified, (job.id for job in _each(jobs) if folder.has(job.id)))
        _work_off(crew, lambda: _missing(jobs, folder, VERIFY, set(sample)), folder, progress, on_progress)
    except BaseException:
        crew.close()
        with contextlib.suppress(OSError):  # a full disk, which has been said
            write_wall(folder)
        raise
    crew.close()
    warnings = [*crew.messages, *_verify_failures(folder, sample)]
    try:
        write_wall(folder)
    except OSError as error:
        warnings.append(f"the wall in {folder.path} cannot be written: {error.strerror}")
    failures: list[tuple[Job, str]] = []
    num_done = 0
    for job in _each(jobs):
        if folder.has(job.id):
            num_done += 1
        elif len(failures) < MAX_TOLD:
            failures.append((job, (folder.failure(job.id) or {"error": "is not done"})["error"]))
    return Result(
        num_jobs=progress.total,
        num_done=num_done,
        num_bad_lines=num_bad_lines,
        bad_lines=bad_lines,
        failures=failures,
        verified=_verified(folder, sample),
        warnings=warnings,
    )


def check_some(lines: Iterator[Job | BadLine]) -> None:
    """ValueError where not one line is a job."""
    first = next(lines, None)
    if first is None:
        raise ValueError("there is no job in the file; write one a line")
    if isinstance(first, BadLine) and all(isinstance(line, BadLine) for line in lines):
        raise ValueError(f"line {first.number}: {first.message}; no line is a job")


def _each(jobs: Jobs, on_bad: Callable[[BadLine], None] = lambda line: None) -> Iterator[Job]:
    """Every job once, however often its line stands in the file."""
    seen: set[bytes] = set()
    for job in jobs():
        if isinstance(job, BadLine):
            on_bad(job)
        elif (name := bytes.fromhex(job.id)) not in seen:
            seen.add(name)
            yield job


def _missing(jobs: Jobs, folder: Folder, kind: str, chosen: set[str] | None = None) -> Iterator[Task]:
    for job in _each(jobs):
        task = Task(job=job, kind=kind)
        is_chosen = chosen is None or job.id in chosen
        if is_chosen and not folder.has(task.name) and folder.failure(task.name) is None:
            yield task


def _work_off(
    crew: Crew,
    missing: Callable[[], Iterator[Task]],
    folder: Folder,
    progress: Progress,
    on_progress: Callable[[Progress], None],
) -> None:
    """Until nothing is missing, by us or by others that are at work on the same folder."""
    wall_at = time.monotonic() + WALL_SECONDS
    while True:
        num_busy = 0
        for outcome in crew.outcomes(missing()):
            if outcome.standing is None:
                raise StoppedError(outcome.message)
            num_busy += outcome.standing is Standing.BUSY
            _count(progress, outcome)
            on_progress(progress)
            if time.monotonic() >= wall_at:
                start = time.monotonic()
                write_wall(folder)
                wall_at = time.monotonic() + max(WALL_SECONDS, WALL_SHARE * (time.monotonic() - start))
        if not num_busy:
            return
        time.sleep(BUSY_SECONDS)


def _count(progress: Progress, outcome: Outcome) -> None:
    if outcome.task.kind != CLIP:
        return
    progress.num_done += outcome.standing is Standing.DONE
    progress.num_failed += outcome.standing in (Standing.FAILED, Standing.GIVEN_UP)
    if outcome.is_new and outcome.saving is not None:
        progress.num_made += 1
        progress.saving_sum += outcome.saving


def _verified(folder: Folder, sample: list[str]) -> Verified | None:
    records = [record for name in sample if (record := folder.verified(name)) is not None]
    if not records:
        return None
    values = sorted(record["psnr_db"] for record in records if record["psnr_db"] is not None)
    # identical clips stand above all others
    middle = median([*values, *[float("inf")] * (len(records) - len(values))])
    return Verified(
        num_clips=len(records),
        lowest_db=values[0] if values else None,
        median_db=middle if middle != float("inf") else None,
    )


def _verify_failures(folder: Folder, sample: list[str]) -> list[str]:
    warnings = []
    for name in sample:
        record, failure = folder.verified(name), folder.failure(f"{name}.{VERIFY}")
        if record is not None and not record["is_same"]:
            warnings.append(f"{name} made again for --verify is another clip; its PSNR is of that one")
        if record is None:
            warnings.append(f"{name} could not be verified: {failure['error'] if failure else 'it is not done'}")
    return warnings
