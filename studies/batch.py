"""What a batch costs: a thousand tiny jobs with failures, the time between clips, Ray beside the local runner, and ten
thousand clips by simulation. `make batch-bars` writes docs/results/batch.json; `--only` asks for one of them."""

from __future__ import annotations

import argparse
import json
import os
import resource
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

from mixcache.batch.crew import Crew, Pool, Ready
from mixcache.batch.driver import Progress, run_batch
from mixcache.batch.folder import Folder
from mixcache.batch.jobs import Batch, Job, read_jobs
from mixcache.batch.local import LocalPool
from mixcache.batch.wall import write_wall
from mixcache.batch.work import OpenWorker, Worker, still_of
from mixcache.generation import machine, versions
from mixcache.store import write_json

TINY = {"width": 32, "height": 32, "num_frames": 5, "num_inference_steps": 2}
NUM_WORKERS = 2


def note(folder: Folder, job: Job) -> None:
    """That the job was begun."""
    with (folder.path / ".begun").open("a") as file:
        file.write(f"{job.id}\n")


class Mortal(Worker):
    """Dies of captions that begin with "kill"."""

    def clip(self, job: Job, film: Path) -> dict[str, Any]:
        note(self.folder, job)
        if job.prompt.startswith("kill"):
            os.kill(os.getpid(), signal.SIGKILL)
        return super().clip(job, film)


class Together(Worker):
    """Waits until all are loaded, so that start-up is left out of the time."""

    def __init__(self, folder: Folder, device: str | None) -> None:
        super().__init__(folder, device)
        (folder.path / f".loaded-{os.getpid()}").touch()
        while len(list(folder.path.glob(".loaded-*"))) < NUM_WORKERS:
            time.sleep(0.01)


class Copying:
    """Without a model: each clip's film and record are those of one that was made."""

    def __init__(self, folder: Folder, device: str | None) -> None:
        pattern = folder.path.parent / "pattern"
        self.film, self.still = (pattern / "film.mp4").read_bytes(), (pattern / "film.jpg").read_bytes()
        self.record = json.loads((pattern / "record.json").read_text())

    def clip(self, job: Job, film: Path) -> dict[str, Any]:
        film.write_bytes(self.film)
        still_of(film).write_bytes(self.still)
        return dict(self.record)

    def verify(self, job: Job) -> dict[str, Any]:
        raise NotImplementedError

    def is_sound(self) -> bool:
        return True


class Watched:
    """A pool that notes when all of its workers were ready."""

    def __init__(self, pool: Pool) -> None:
        self.pool, self.num_workers, self.ready_at, self._ready = pool, pool.num_workers, 0.0, 0

    def wait(self) -> list[Any]:
        reports = self.pool.wait()
        self._ready += sum(isinstance(report, Ready) for _, report in reports)
        if self._ready == self.num_workers and not self.ready_at:
            self.ready_at = time.perf_counter()
        return reports

    def __getattr__(self, name: str) -> Any:
        return getattr(self.pool, name)


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def records(out: Path) -> Iterator[dict[str, Any]]:
    for path in out.glob("jobs/??/*.json"):
        if "failed" not in path.name:
            yield json.loads(path.read_text())


def run(
    out: Path, rows: list[dict[str, Any]], open_worker: OpenWorker, address: str | None = None, **shared: Any
) -> Any:
    """The result of a batch, and what was seen of it: seconds between start-up and the last clip, memory by clips."""
    out.parent.mkdir(parents=True, exist_ok=True)
    jobs = out.parent / f"{out.name}.jsonl"
    jobs.write_text("".join(json.dumps(row) + "\n" for row in rows))
    batch = Batch.of("shapes-wan", "hindsight", {})
    folder = Folder.open(out, batch, shared)
    memory: dict[int, int] = {}
    ended = 0.0

    def watch(progress: Progress) -> None:
        nonlocal ended
        ended = time.perf_counter()
        settled = progress.num_done + progress.num_failed
        if settled % max(1, len(rows) // 10) == 0 and settled:
            memory[settled] = resident_bytes()

    if address is None:
        pool = Watched(LocalPool(folder, NUM_WORKERS, ("cpu",), open_worker))
    else:
        from mixcache.batch.cluster import RayPool

        pool = Watched(RayPool(folder, NUM_WORKERS, address or None, open_worker))
    result = run_batch(
        lambda: read_jobs(jobs, Job(batch=batch.key, **shared)), Crew(pool, folder), folder, on_progress=watch
    )
    folder.close()
    return result, ended - pool.ready_at, memory


def thousand(out: Path, num_jobs: int) -> dict[str, Any]:
    """5 % raise, 1 % kill their worker."""
    rows = []
    for index in range(num_jobs):
        word = "kill" if index % 100 == 50 else "a red circle"
        rows.append({"prompt": f"{word} {index}", "seed": index, **({"size": "40x40"} if index % 20 == 7 else {})})
    start = time.perf_counter()
    result, _, memory = run(out, rows, Mortal, **TINY)
    seconds = time.perf_counter() - start
    begun = Counter((out / ".begun").read_text().split())
    done = list(records(out))
    failures = [json.loads(path.read_text()) for path in out.glob("jobs/??/*.failed.json")]
    killed = {failure["id"] for failure in failures if failure["given_up"]}
    assert result.num_done == len(done), "what is told is what is there"
    return {
        "jobs": num_jobs,
        "done": len(done),
        "raised": len(failures) - len(killed),
        "given_up": len(killed),
        "lost": num_jobs - len(done) - len(failures),
        "begun_twice": sum(times > 1 for name, times in begun.items() if name not in killed),
        "begun_of_given_up": sorted({begun[name] for name in killed}),
        "films": len(list(out.glob("jobs/??/*.mp4"))),
        "seconds": seconds,
        "driver_bytes_by_jobs": memory,
    }


def between_clips(out: Path, num_jobs: int) -> dict[str, Any]:
    """What a clip takes beside its generation and the encoding of its film."""
    rows = [{"prompt": "a red circle", "seed": index} for index in range(num_jobs)]
    _, seconds, _ = run(out, rows, Together, **TINY)
    found = list(records(out))
    inside = [record["wall_seconds"] - record["seconds"]["total"] - record["film_seconds"] for record in found]
    work = sum(record["seconds"]["total"] + record["film_seconds"] for record in found)
    return {
        "jobs": num_jobs,
        "median_ms_in_the_worker": 1000 * median(inside),
        "mean_ms_in_all": 1000 * (NUM_WORKERS * seconds - work) / num_jobs,
        "median_film_ms": 1000 * median(record["film_seconds"] for record in found),
        "median_generation_ms": 1000 * median(record["seconds"]["total"] for record in found),
    }


def beside_ray(out: Path, num_jobs: int) -> dict[str, Any]:
    """Seconds after start-up, in turn, so that a machine that is busy with something else is so for both."""
    rows = [{"prompt": "a red circle", "seed": index} for index in range(num_jobs)]
    seconds: dict[str, list[float]] = {"local": [], "ray": []}
    for turn in range(2):
        for name, address in (("local", None), ("ray", "")):
            _, taken, _ = run(out / f"{name}-{turn}", rows, Together, address, **{**TINY, "num_inference_steps": 8})
            seconds[name].append(taken)
    best = {name: min(taken) for name, taken in seconds.items()}
    return {"jobs": num_jobs, "seconds": seconds, "ray_over_local": best["ray"] / best["local"]}


def ten_thousand(out: Path, num_jobs: int) -> dict[str, Any]:
    """By simulation: the films and records of one clip of 50 steps, copied."""
    rows = [{"prompt": "a large red circle moving left on a plain white background"}]
    run(out / "one", rows, Worker, num_inference_steps=50)
    pattern = out / "pattern"
    pattern.mkdir(exist_ok=True)
    (record,) = records(out / "one")
    (pattern / "record.json").write_text(json.dumps(record))
    for ending in ("mp4", "jpg"):
        (film,) = (out / "one").glob(f"jobs/??/*.{ending}")
        (pattern / f"film.{ending}").write_bytes(film.read_bytes())
    rows = [{"prompt": f"a large red circle number {index}", "seed": index} for index in range(num_jobs)]
    start = time.perf_counter()
    _, seconds, memory = run(out / "many", rows, Copying, num_inference_steps=50)
    whole = time.perf_counter() - start
    start = time.perf_counter()
    run(out / "many", rows, Copying, num_inference_steps=50)
    rerun = time.perf_counter() - start
    many = out / "many"
    folder = Folder.open(many, Batch.of("shapes-wan", "hindsight", {}), {"num_inference_steps": 50})
    start = time.perf_counter()
    write_wall(folder)
    wall = time.perf_counter() - start
    folder.close()
    sizes = {ending: [p.stat().st_size for p in many.glob(f"jobs/??/*.{ending}")] for ending in ("json", "mp4", "jpg")}
    return {
        "jobs": num_jobs,
        "seconds": whole,
        "ms_a_clip_and_worker": 1000 * NUM_WORKERS * seconds / num_jobs,
        "driver_bytes_by_jobs": memory,
        "bytes_a_clip": {ending: sum(found) / len(found) for ending, found in sizes.items()},
        "most_files_in_a_folder": max(len(list(shard.iterdir())) for shard in many.glob("jobs/??")),
        "wall_js_bytes": (many / "wall.js").stat().st_size,
        "seconds_of_the_wall": wall,
        "seconds_of_a_rerun_with_nothing_to_do": rerun,
    }


BARS: dict[str, tuple[Callable[[Path, int], dict[str, Any]], int]] = {
    "thousand": (thousand, 1000),
    "between_clips": (between_clips, 100),
    "beside_ray": (beside_ray, 40),
    "ten_thousand": (ten_thousand, 10_000),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=BARS)
    parser.add_argument("--jobs", type=int)
    parser.add_argument("--out", type=Path, default=Path("docs/results/batch.json"))
    options = parser.parse_args()
    found = json.loads(options.out.read_text()) if options.out.exists() else {}
    for name, (measure, num_jobs) in BARS.items():
        if options.only in (None, name):
            with tempfile.TemporaryDirectory() as scratch:
                found[name] = measure(Path(scratch) / name, options.jobs or num_jobs)
            print(json.dumps({name: found[name]}, indent=1), flush=True)
            import torch

            found |= {"versions": versions(), "machine": machine(torch.device("cpu"))}
            write_json(options.out, found)


if __name__ == "__main__":
    main()
