"""A driver in a process of its own, to be killed: drive.py JOBS OUT KIND [ADDRESS OF A RAY CLUSTER]."""

from __future__ import annotations

import signal
import sys
from pathlib import Path

import faults

from mixcache.batch.crew import Crew
from mixcache.batch.driver import Result, run_batch
from mixcache.batch.folder import Folder
from mixcache.batch.jobs import Batch, Job, read_jobs
from mixcache.batch.local import LocalPool

TINY = {"width": 32, "height": 32, "num_frames": 5, "num_inference_steps": 2}


def drive(
    jobs: Path, out: Path, kind: str = "FakeWorker", address: str | None = None, num_workers: int = 2, **options: object
) -> Result:
    """On the cluster at that address, or else on this machine."""
    batch = Batch.of("shapes-wan", "hindsight", {})
    folder = Folder.open(out, batch, TINY)
    open_worker = getattr(faults, kind)
    if address is not None:
        from mixcache.batch.cluster import RayPool

        pool = RayPool(folder, num_workers, address, open_worker)
    else:
        pool = LocalPool(folder, num_workers, ("cpu",), open_worker)
    try:
        return run_batch(lambda: read_jobs(jobs, Job(batch=batch.key, **TINY)), Crew(pool, folder), folder, **options)
    finally:
        folder.close()


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # else ignored where the tests run in a shell's background
    result = drive(Path(sys.argv[1]), Path(sys.argv[2]), *sys.argv[3:])
    print(result.num_done, result.num_failed)
