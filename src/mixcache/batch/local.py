"""The local runner: a process for each worker, and a pipe to it; no package is needed."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from typing import Any

from mixcache.batch.attempts import this_process
from mixcache.batch.crew import Ready, Report, Unusable
from mixcache.batch.folder import Folder, Task
from mixcache.batch.work import QUIET, OpenWorker, Worker, run


class LocalPool:
    """Workers on this machine, on the given devices in turn."""

    def __init__(
        self, folder: Folder, num_workers: int, devices: tuple[str, ...], open_worker: OpenWorker = Worker
    ) -> None:
        self.folder, self.num_workers, self.devices, self.open_worker = folder, num_workers, devices, open_worker
        self._context = multiprocessing.get_context("spawn")
        _start_tracker()
        self._workers: dict[int, tuple[Any, Connection]] = {}

    def start(self, place: int) -> None:
        self._end(place)
        ours, theirs = self._context.Pipe()
        device = self.devices[place % len(self.devices)]
        threads = max(1, (os.cpu_count() or 1) // self.num_workers)
        process = self._context.Process(target=_serve, args=(theirs, self.open_worker, self.folder, device, threads))
        process.daemon = False  # it ends when the pipe does, and first finishes what it is at
        process.start()
        theirs.close()
        self._workers[place] = (process, ours)

    def send(self, place: int, task: Task) -> None:
        with contextlib.suppress(OSError):  # it has just died, as `wait` will find
            self._workers[place][1].send(task)

    def wait(self) -> list[tuple[int, Report]]:
        ready = wait([pipe for _, pipe in self._workers.values()], timeout=1.0)
        reports: list[tuple[int, Report]] = []
        for place, (_, pipe) in list(self._workers.items()):
            if pipe not in ready:
                continue
            try:
                reports.append((place, pipe.recv()))
            except (EOFError, OSError):
                self._end(place)
                reports.append((place, None))
        return reports

    def _end(self, place: int) -> None:
        """Until it is dead, and no zombie either: so its attempts are seen to be over."""
        if place in self._workers:
            process, pipe = self._workers.pop(place)
            process.kill()
            process.join()
            pipe.close()

    def close(self) -> None:
        for place in list(self._workers):
            self._end(place)


def _serve(pipe: Connection, open_worker: OpenWorker, folder: Folder, device: str | None, num_threads: int) -> None:
    """The life of a worker."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the driver's to answer
    os.environ.update(QUIET)
    os.environ.setdefault("OMP_NUM_THREADS", str(num_threads))
    try:
        try:
            worker = open_worker(folder, device)
        except Exception as error:  # a broken folder or device fails in many ways
            pipe.send(Unusable(message=str(error)))
            return
        pipe.send(Ready(process=this_process()))
        while True:
            pipe.send(run(pipe.recv(), folder, worker))
    except (EOFError, OSError):
        return  # the driver is gone


def _start_tracker() -> None:
    """Python's tracker of semaphores, without its warnings: those of a worker that was killed are cleaned up by it."""
    before = {name: value for name, value in os.environ.items() if name == "PYTHONWARNINGS"}
    os.environ["PYTHONWARNINGS"] = "ignore:resource_tracker"
    resource_tracker.ensure_running()
    del os.environ["PYTHONWARNINGS"]
    os.environ.update(before)


def local_devices() -> tuple[str, ...]:
    """Every GPU here, or else the CPU."""
    import torch

    return tuple(f"cuda:{index}" for index in range(torch.cuda.device_count())) or ("cpu",)
