"""A run of a batch: hands out what is missing, counts, and reports.

What is done is asked of the disk, never remembered, so the driver's memory does not grow with the clips.
"""

from __future__ import annotations

import heapq
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from statistics import median

from mixcache.batch.crew import Crew
from mixcache.batch.folder import CLIP, VERIFY, Folder, Standing, Task
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

    def count(self, outcome: Outcome) -> None:
        if outcome.task.kind != CLIP:
            return
        self.num_done += outcome.standing is Standing.DONE
        self.num_failed += outcome.standing in (Standing.FAILED, Standing.GIVEN_UP)
        if outcome.is_new and outcome.saving is not None:
            self.num_made += 1
            self.saving_sum += outcome.saving


@dataclass(frozen=True, kw_only=True, slots=True)
class Verified:
    """How near the clips that were made plain too came to these."""

    num_clips: int
    lowest_db: float
    """Infinite where every one is the same to the last value."""
    median_db: float


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
    for line in _once(jobs()):
        if isinstance(line, BadLine):
            num_bad_lines += 1
            bad_lines += [line] if num_bad_lines <= MAX_TOLD else []
            continue
        progress.total += 1
        progress.num_done += folder.has(line.id)
        if again:
            folder.file(line.id, ".failed.json").unlink(missing_ok=True)
    on_progress(progress)
    try:
        _work_off(crew, lambda: (Task(job=job) for job in _each(jobs)), folder, progress, on_progress)
        # by their names, which is by chance
        sample = heapq.nsmallest(
            num_verified, (job for job in _each(jobs) if folder.has(job.id)), key=lambda job: job.id
        )
        _work_off(crew, lambda: (Task(job=job, kind=VERIFY) for job in sample), folder, progress, on_progress)
    finally:
        crew.close()
        warnings = [*crew.messages, *_write_wall(folder)]
    verified, unlike = _verified(folder, sample)
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
        verified=verified,
        warnings=warnings + unlike,
    )


def check_some(lines: Iterator[Job | BadLine]) -> None:
    """ValueError where not one line is a job."""
    first = next(lines, None)
    if first is None:
        raise ValueError("there is no job in the file; write one a line")
    if isinstance(first, BadLine) and all(isinstance(line, BadLine) for line in lines):
        raise ValueError(f"line {first.number}: {first.message}; no line is a job")


def _once(lines: Iterator[Job | BadLine]) -> Iterator[Job | BadLine]:
    """Every job once, however often its line stands in the file."""
    seen: set[bytes] = set()
    for line in lines:
        if isinstance(line, BadLine):
            yield line
        elif (name := bytes.fromhex(line.id)) not in seen:
            seen.add(name)
            yield line


def _each(jobs: Jobs) -> Iterator[Job]:
    return (line for line in _once(jobs()) if isinstance(line, Job))


def _work_off(
    crew: Crew,
    tasks: Callable[[], Iterator[Task]],
    folder: Folder,
    progress: Progress,
    on_progress: Callable[[Progress], None],
) -> None:
    """Until none of them is missing, by us or by others that are at work on the same folder."""
    wall_at = time.monotonic() + WALL_SECONDS
    num_busy = 1
    while num_busy:
        num_busy = 0
        for outcome in crew.outcomes(task for task in tasks() if folder.standing(task.name) is None):
            if outcome.standing is None:
                raise StoppedError(outcome.message)
            num_busy += outcome.standing is Standing.BUSY
            progress.count(outcome)
            on_progress(progress)
            if time.monotonic() >= wall_at:
                start = time.monotonic()
                _write_wall(folder)
                wall_at = time.monotonic() + max(WALL_SECONDS, WALL_SHARE * (time.monotonic() - start))
        time.sleep(BUSY_SECONDS if num_busy else 0)


def _write_wall(folder: Folder) -> list[str]:
    """Warns where the disk is full: the clips are there all the same."""
    try:
        write_wall(folder)
    except OSError as error:
        return [f"the wall in {folder.path} cannot be written: {error.strerror}"]
    return []


def _verified(folder: Folder, sample: list[Job]) -> tuple[Verified | None, list[str]]:
    """What was found, and warnings of what it does not tell."""
    values, warnings = [], []
    for job in sample:
        record = folder.verified(job.id)
        if record is None:
            failure = folder.failure(Task(job=job, kind=VERIFY).name)
            warnings.append(f"{job.id} could not be verified: {failure['error'] if failure else 'it is not done'}")
            continue
        values.append(math.inf if record["psnr_db"] is None else record["psnr_db"])
        if not record["is_same"]:
            warnings.append(f"{job.id} made again for --verify is another clip; its PSNR is of that one")
    if not values:
        return None, warnings
    return Verified(num_clips=len(values), lowest_db=min(values), median_db=median(values)), warnings
