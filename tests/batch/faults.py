"""Workers that do what the caption says: raise, kill themselves, wait, find the disk full."""

from __future__ import annotations

import errno
import os
import signal
import time
from pathlib import Path
from typing import Any

from mixcache.batch.folder import Folder
from mixcache.batch.jobs import Job
from mixcache.batch.work import Worker, still_of, write_film


def obey(prompt: str, folder: Folder) -> None:
    """Notes that the job is begun, and does what its caption says."""
    with (folder.path.parent / "begun").open("a") as file:
        file.write(f"{prompt}\n")
    word, _, number = prompt.partition(" ")
    if word == "raise":
        raise RuntimeError(f"told to {prompt}")
    if word == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if word == "wait":
        time.sleep(float(number.split()[0]))
    if word == "full" and (folder.path.parent / "full").exists():
        raise OSError(errno.ENOSPC, "No space left on device")


class FakeWorker:
    """Without a model: a clip is its caption."""

    def __init__(self, folder: Folder, device: str | None) -> None:
        self.folder, self.sound = folder, True
        if device == "none":
            raise ValueError("device 'none' is not on this machine")
        if device == "deadly":
            os._exit(1)

    def clip(self, job: Job, film: Path) -> dict[str, Any]:
        film.write_text(f"half of {job.prompt}")
        obey(job.prompt, self.folder)
        film.write_text(f"{job.prompt}, {job.seed}, made by {os.getpid()} at {time.time_ns()}")
        still_of(film).write_text("a picture")
        facts = {"saving": 0.5, "timeline": "#s", "speedup": 2.0, "wished_speedup": None, "pixels": job.id}
        return facts | {"seconds": {"denoising": 1.0}, "pid": os.getpid()}

    def verify(self, job: Job) -> dict[str, Any]:
        obey(job.prompt, self.folder)
        return {"psnr_db": 30.0 + job.seed, "ssim": 0.9, "is_same": True}

    def is_sound(self) -> bool:
        return not (self.folder.path.parent / "unsound").exists()


class FilmWorker(FakeWorker):
    """Writes real films, of noise, without a model."""

    def clip(self, job: Job, film: Path) -> dict[str, Any]:
        import numpy as np  # here: the other workers start sooner without it

        record = super().clip(job, film)
        write_film(np.random.default_rng(job.seed).random((8, 64, 64, 3), dtype=np.float32), film)
        return record


class FaultyWorker(Worker):
    """A worker of the real kind that does as it is told before it begins."""

    def clip(self, job: Job, film: Path) -> dict[str, Any]:
        obey(job.prompt, self.folder)
        return super().clip(job, film)
