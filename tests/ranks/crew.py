"""Processes that are the ranks of one gloo group, and do what they are told together."""

from __future__ import annotations

import multiprocessing
import tempfile
import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

TIMEOUT_SECONDS = 25
"""Of the group: a rank that waits longer for another one hangs, and its task fails."""
PRELOADED = [
    "diffusers.pipelines.wan.pipeline_wan",
    "diffusers.schedulers.scheduling_flow_match_euler_discrete",
    "mixcache.hosts.diffusers.attachment",
    "mixcache.hosts.ranks",
]
DEADLINE_SECONDS = 120
"""Of a task: a crew that is not done by then hangs somewhere else."""


class Crew:
    """So many ranks. A task is a function of a module that they can import, and its arguments."""

    def __init__(self, num_ranks: int, *, ends_on_error: bool = False) -> None:
        """If it `ends_on_error`, a rank's process is over with the first exception, as that of a script is."""
        context = multiprocessing.get_context("forkserver")  # what is slow to import is imported once
        context.set_forkserver_preload(PRELOADED)
        self._folder = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        store = str(Path(self._folder.name) / "store")
        self._pipes: list[Connection] = []
        self._processes = []
        for rank in range(num_ranks):
            mine, theirs = context.Pipe()
            process = context.Process(target=serve, args=(theirs, rank, num_ranks, store, ends_on_error), daemon=True)
            process.start()
            theirs.close()
            self._pipes.append(mine)
            self._processes.append(process)

    def __call__(self, task: Callable[..., Any], *args: Any, **kwargs: Any) -> list[Any]:
        """What each rank returned; an exception of a rank is its answer. TimeoutError for one that does not answer."""
        for pipe in self._pipes:
            pipe.send((task, args, kwargs))
        end = time.monotonic() + DEADLINE_SECONDS
        for rank, pipe in enumerate(self._pipes):
            if not pipe.poll(max(0.0, end - time.monotonic())):
                self.close()
                raise TimeoutError(f"rank {rank} does not answer within {DEADLINE_SECONDS} s")
        return [pipe.recv() for pipe in self._pipes]

    def close(self) -> None:
        for process in self._processes:
            process.terminate()
        for process in self._processes:
            process.join()
        self._folder.cleanup()


def serve(pipe: Connection, rank: int, num_ranks: int, store: str, ends_on_error: bool) -> None:
    """A rank: carries out tasks until the pipe is closed."""
    import logging

    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    # a machine without an accelerator has no device that diffusers would spread a clip over
    torch.accelerator.device_count = lambda: 1
    if not torch.accelerator.is_available():
        torch._C._get_accelerator = lambda: torch.device("cpu")
    dist.init_process_group(
        "gloo",
        init_method=f"file://{store}",
        rank=rank,
        world_size=num_ranks,
        timeout=timedelta(seconds=TIMEOUT_SECONDS),
    )
    while True:
        try:
            task, args, kwargs = pipe.recv()
        except EOFError:
            return
        try:
            answer = task(*args, **kwargs)
        except BaseException as error:  # an interrupt is one of the tasks
            answer = Failure(type(error).__name__, str(error), traceback.format_exc())
        pipe.send(answer)
        if ends_on_error and isinstance(answer, Failure):
            return


class Failure:
    """An exception of a rank."""

    def __init__(self, kind: str, text: str, where: str) -> None:
        self.kind, self.text, self.where = kind, text, where

    def __repr__(self) -> str:
        return f"{self.kind}: {self.text}\n{self.where}"
