"""The Ray runner: an actor for each worker, on this machine or on a cluster (extra `ray`)."""

from __future__ import annotations

import os
import socket
from typing import Any

from mixcache.batch.attempts import this_process
from mixcache.batch.crew import Ready, Report, Unusable
from mixcache.batch.folder import Folder, Task
from mixcache.batch.work import QUIET, OpenWorker, Outcome, Worker, run

SECONDS_TO_ANSWER = 5.0


class RayPool:
    """Workers as actors, with a GPU each where the cluster has GPUs. ValueError where Ray is not installed, nobody
    answers at the address, or the cluster is too small."""

    def __init__(
        self, folder: Folder, num_workers: int | None, address: str | None, open_worker: OpenWorker = Worker
    ) -> None:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is told to anybody
        try:
            import ray
        except ImportError:
            raise ValueError("--runner ray needs Ray: pip install 'mixcache[ray]'") from None
        if address is not None:
            _check_answers(address)
        self._ray, self.folder, self.open_worker = ray, folder, open_worker
        try:
            new = {"include_dashboard": False} if address is None else {"address": address}
            # so that actors on this machine import what the driver does
            path = {name: value for name, value in os.environ.items() if name == "PYTHONPATH"}
            environment = {"env_vars": QUIET | path}
            ray.init(log_to_driver=False, logging_level="ERROR", runtime_env=environment, **new)
        except Exception as error:  # ConnectionError, RuntimeError, and what its client makes of them
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise ValueError(f"no Ray cluster answers at {address or 'this machine'}: {reason}") from error
        has = ray.cluster_resources()
        kind, total = ("GPU", int(has["GPU"])) if has.get("GPU") else ("CPU", int(has.get("CPU", 1)))
        self.num_workers = num_workers or (total if kind == "GPU" else 1)
        if self.num_workers > total:
            self.close()
            raise ValueError(f"--workers {self.num_workers} wants a {kind} each, and the cluster has {total}")
        self._share = {"num_gpus": 1} if kind == "GPU" else {"num_cpus": total // self.num_workers}
        self._device = "cuda" if kind == "GPU" else "cpu"
        self._actors: dict[int, Any] = {}
        self._replies: dict[Any, int] = {}

    def start(self, place: int) -> None:
        self._end(place)
        actor = self._ray.remote(_Actor).options(max_restarts=0, **self._share).remote()
        self._actors[place] = actor
        self._replies[actor.load.remote(self.open_worker, self.folder, self._device)] = place

    def send(self, place: int, task: Task) -> None:
        self._replies[self._actors[place].run.remote(task)] = place

    def wait(self) -> list[tuple[int, Report]]:
        ready, _ = self._ray.wait(list(self._replies), num_returns=1, timeout=1.0)
        reports: list[tuple[int, Report]] = []
        for reply in ready:
            place = self._replies.pop(reply)
            try:
                reports.append((place, self._ray.get(reply)))
            except self._ray.exceptions.RayError:
                reports.append((place, None))
        return reports

    def _end(self, place: int) -> None:
        if place in self._actors:
            self._replies = {reply: other for reply, other in self._replies.items() if other != place}
            self._ray.kill(self._actors.pop(place), no_restart=True)

    def close(self) -> None:
        self._ray.shutdown()


class _Actor:
    """A worker, in a process of Ray's."""

    def load(self, open_worker: OpenWorker, folder: Folder, device: str) -> Report:
        self.folder = folder
        try:
            self.worker = open_worker(folder, device)
        except Exception as error:  # a broken folder or device fails in many ways
            return Unusable(message=f"{socket.gethostname()}: {error}")
        return Ready(process=this_process())

    def run(self, task: Task) -> Outcome:
        return run(task, self.folder, self.worker)


def _check_answers(address: str) -> None:
    """Ray itself waits a minute and more for a port where nobody is."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not port.isdigit():
        if address not in ("auto", "local"):
            raise ValueError(f"--address {address!r} is not HOST:PORT, ray://HOST:PORT or auto")
        return
    try:
        socket.create_connection((host or "127.0.0.1", int(port)), timeout=SECONDS_TO_ANSWER).close()
    except (OSError, OverflowError) as error:
        raise ValueError(f"no Ray cluster answers at {address}: {error}") from error
