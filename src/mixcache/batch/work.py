"""One task, from claim to record: the same `run` for every runner; and the worker, a pipeline with a handle on it."""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import math
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mixcache.batch.attempts import MAX_ATTEMPTS, Attempt, begin, forget_all
from mixcache.batch.folder import CLIP, Folder, Standing, Task, scratch, settle
from mixcache.batch.jobs import Job, model_digest
from mixcache.config import SPAN

if TYPE_CHECKING:
    from mixcache.generation import Generated
    from mixcache.hosts.diffusers.handle import Handle

FORMAT = 1
MAX_STILL = 320
"""Pixels of a picture's longer side."""
ROOM_BYTES = 1 << 20
"""A disk with less is full."""
FULL = (errno.ENOSPC, errno.EDQUOT)
QUIET = {
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "DIFFUSERS_VERBOSITY": "error",
    "TRANSFORMERS_VERBOSITY": "error",
    "TQDM_DISABLE": "1",
}
"""Environment of workers: the terminal is the driver's."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """How a task ended."""

    task: Task
    standing: Standing | None
    """None where the whole run must stop, for `message`."""
    message: str = ""
    is_new: bool = False
    """Whether it was done now, and not found done."""
    saving: float | None = None
    """Share of the block work that was left out."""
    is_sound: bool = True
    """False where the worker must be started anew."""


def run(task: Task, folder: Folder, worker: Worker) -> Outcome:
    """Does a task, unless it is done, given up, or another is at work on it."""
    try:
        attempt = begin(folder, task.name)
        if isinstance(attempt, Attempt):
            return _done(task, folder, worker, attempt)
        if attempt is Standing.GIVEN_UP:
            _fail(task, folder, f"its worker died at each of {MAX_ATTEMPTS} attempts", str(os.getpid()), given_up=True)
            forget_all(folder, task.name)
        return Outcome(task=task, standing=attempt)
    except OSError as error:
        message = f"the folder {folder.path} cannot be written: {error.strerror}"
        return Outcome(task=task, standing=None, message=message)


def _done(task: Task, folder: Folder, worker: Worker, attempt: Attempt) -> Outcome:
    mark = str(attempt.number)
    with attempt.under_way():
        start = time.perf_counter()
        try:
            if task.kind == CLIP:
                film = folder.file(task.name, ".mp4")
                beside = scratch(film, mark)
                made = worker.clip(task.job, beside)
                still_of(beside).replace(still_of(film))
                settle(beside, film)
            else:
                made = worker.verify(task.job)
            made |= {"wall_seconds": time.perf_counter() - start, "attempt": attempt.number}
            folder.keep(task.name, _about(task) | made, mark)
            outcome = Outcome(task=task, standing=Standing.DONE, is_new=True, saving=made.get("saving"))
        except Exception as error:  # of a pipeline, in as many ways as there are pipelines
            if getattr(error, "errno", None) in FULL:
                raise
            if shutil.disk_usage(folder.path).free < ROOM_BYTES:  # the encoder, a program of its own, does not say so
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from error
            lines = str(error).strip().splitlines()
            told = f"{type(error).__name__}: {lines[0][:500]}" if lines else type(error).__name__
            _fail(task, folder, told, mark, given_up=False)
            outcome = Outcome(task=task, standing=Standing.FAILED, is_new=True, is_sound=worker.is_sound())
    forget_all(folder, task.name, attempt.number - 1)
    return outcome


def _fail(task: Task, folder: Folder, message: str, mark: str, *, given_up: bool) -> None:
    folder.keep(task.name, _about(task) | {"error": message, "given_up": given_up}, mark, ".failed.json")


def _about(task: Task) -> dict[str, Any]:
    """What is in every record."""
    written = datetime.now(UTC).isoformat(timespec="seconds")
    return {"format": FORMAT, "id": task.job.id, "job": asdict(task.job), "written": written}


class Worker:
    """A pipeline, loaded once, with one handle on it.

    ValueError where the model is not here or is not the batch's, or the out folder is not that of the driver.
    """

    def __init__(self, folder: Folder, device: str | None) -> None:
        batch = folder.batch
        if not folder.is_shared:
            raise ValueError(f"the folder {folder.path} is not the one that the driver sees; put it on a shared disk")
        if model_digest(batch.model) != batch.digests["model"]:
            raise ValueError(f"the model {batch.model} is not the one that the driver has; copy it anew")
        logging.getLogger("mixcache").addHandler(logging.NullHandler())  # what it says stands in the records
        from mixcache import generation

        self.folder = folder
        self.pipeline, self.defaults = generation.open_model(batch.model, dtype=batch.dtype, device=device)
        self.handle = self._enabled()
        self.facts = {
            "model": batch.model,
            "policy": batch.policy,
            "settings": self.handle.settings,
            "dtype": str(self.pipeline.dtype).removeprefix("torch."),
            "versions": generation.versions(),
            "machine": generation.machine(self.pipeline._execution_device),
        }

    def _enabled(self) -> Handle:
        from mixcache.hosts.diffusers.attachment import enable

        return enable(self.pipeline, self.folder.batch.policy, **self.folder.batch.settings)

    def clip(self, job: Job, film: Path) -> dict[str, Any]:
        from mixcache.report.frontier import LETTERS

        num_before = self.handle.summary().num_calls_in_full
        made = self._generated(job)
        self.handle.trace.keep_generations(1)  # so that the summary is of this clip
        summary = self.handle.summary()
        start = time.perf_counter()
        write_film(made.clip, film)
        film_seconds = time.perf_counter() - start
        return {
            "saving": 1 - summary.computed_share,
            "timeline": "".join(LETTERS[entry.granularity] for entry in self.handle.trace),
            "speedup": summary.speedup,
            "wished_speedup": summary.wished_speedup,
            "seconds": {n: getattr(made, f"{n}_seconds") for n in ("encoding", "denoising", "decoding", "total")},
            "film_seconds": film_seconds,
            "pixels": _pixels(made.clip),
            "peak_memory_bytes": made.peak_memory_bytes,
            **self.facts,
            "summary": summary.to_dict() | {"num_calls_in_full": summary.num_calls_in_full - num_before},
            "trace": [entry.to_json() for entry in self.handle.trace],
        }

    def verify(self, job: Job) -> dict[str, Any]:
        """Holds the job's clip against the plain one. The clip is made again by its trace, for the policy might go by
        the clock; `is_same` says whether it came out as it was."""
        from mixcache.hosts.diffusers.attachment import enable
        from mixcache.metrics import video_psnr, video_ssim
        from mixcache.trace import Trace, TraceEntry

        record = json.loads(self.folder.file(job.id, ".json").read_text())
        span = {name: record["settings"][name] for name in SPAN}
        self.handle.disable()
        try:
            plain = self._generated(job)
            with enable(self.pipeline, "replay", trace=Trace(map(TraceEntry.from_json, record["trace"])), **span):
                cached = self._generated(job)
        finally:
            self.handle = self._enabled()
        psnr = video_psnr(cached.clip, plain.clip)
        return {
            "psnr_db": psnr if math.isfinite(psnr) else None,
            "ssim": video_ssim(cached.clip, plain.clip),
            "plain_seconds": plain.denoising_seconds,
            "cached_seconds": record["seconds"]["denoising"],
            "is_same": _pixels(cached.clip) == record["pixels"],
        }

    def _generated(self, job: Job) -> Generated:
        from mixcache import generation
        from mixcache.arguments import call_arguments

        arguments = call_arguments(self.pipeline, self.defaults, job.arguments)
        return generation.generate(self.pipeline, job.prompt, seed=job.seed, **arguments)

    def is_sound(self) -> bool:
        """False after an error that an accelerator does not come back from."""
        import torch

        try:
            return bool(torch.ones(1, device=self.pipeline._execution_device).sum().item() == 1)
        except RuntimeError:
            return False


OpenWorker = Callable[[Folder, str | None], Worker]
"""Makes a worker for a folder on a device; None leaves that to the machine."""


def still_of(film: Path) -> Path:
    """Where the picture of a film lies: a page of pictures is quicker to draw than one of players."""
    return film.with_suffix(".jpg")


def write_film(clip: Any, film: Path) -> None:
    """The film and its picture; OSError where they were not written whole."""
    from PIL import Image

    from mixcache.report.video import to_bytes, write_mp4

    write_mp4(clip, film)
    if not _is_whole(film):  # the encoder is a program of its own, and does not say that the disk was full
        raise OSError(errno.EIO, "the film was not written whole")
    picture = Image.fromarray(to_bytes(clip[len(clip) // 2 :][:1])[0])
    picture.thumbnail((MAX_STILL, MAX_STILL))
    picture.save(still_of(film), format="JPEG", quality=85)


def _is_whole(film: Path) -> bool:
    """Whether the boxes of an MP4 fill it to its end, and its table of frames is among them."""
    size, place, kinds = film.stat().st_size, 0, set()
    with film.open("rb") as file:
        while place < size:
            file.seek(place)
            head = file.read(16)
            length = int.from_bytes(head[:4], "big")
            if length == 1:
                length = int.from_bytes(head[8:], "big")
            if length < 8:
                return False
            kinds.add(head[4:8])
            place += length
    return place == size and {b"ftyp", b"moov", b"mdat"} <= kinds


def _pixels(clip: Any) -> str:
    """Hash of what was seen, before the film's encoding."""
    from mixcache.report.video import to_bytes

    return hashlib.sha256(to_bytes(clip).tobytes()).hexdigest()[:16]
