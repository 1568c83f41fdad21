"""Nothing lost, nothing twice, nothing for ever: runs of workers that raise, die and are interrupted."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from drive import drive
from faults import FakeWorker

from mixcache.batch import attempts
from mixcache.batch.attempts import Attempt, begin
from mixcache.batch.crew import Crew, NoWorkersError
from mixcache.batch.driver import StoppedError, run_batch
from mixcache.batch.folder import Folder, Standing
from mixcache.batch.jobs import Batch, Job, read_jobs
from mixcache.batch.local import LocalPool
from mixcache.batch.work import _is_whole, write_film

DRIVE = Path(__file__).with_name("drive.py")


def write_jobs(folder: Path, *prompts: str) -> Path:
    path = folder / "jobs.jsonl"
    path.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in prompts))
    return path


def films(out: Path) -> dict[str, bytes]:
    """Name and bytes of every finished clip."""
    return {path.stem: path.read_bytes() for path in out.glob("jobs/??/*.mp4") if path.with_suffix(".json").exists()}


def begun(folder: Path) -> Counter[str]:
    """How often each job was begun."""
    return Counter((folder / "begun").read_text().splitlines())


def left_over(out: Path) -> list[str]:
    """Files that no finished run leaves."""
    return [path.name for path in out.rglob("*") if any(w in path.name for w in ("attempt", "writing", ".run-"))]


def started(jobs: Path, out: Path, *address: str) -> subprocess.Popen[str]:
    command = [sys.executable, str(DRIVE), str(jobs), str(out), "FakeWorker", *address]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for(condition: object, seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < end, "it did not come to pass"
        time.sleep(0.02)


def test_a_job_that_raises_and_one_that_kills_its_worker(tmp_path: Path) -> None:
    good = [f"clip {number}" for number in range(12)]
    jobs = write_jobs(tmp_path, *good[:5], "raise hell", "kill", *good[5:], "clip 0")
    result = drive(jobs, tmp_path / "out")
    assert (result.num_jobs, result.num_done) == (14, 12)
    assert begun(tmp_path) == {**dict.fromkeys(good, 1), "raise hell": 1, "kill": 3}
    told = {job.prompt: message for job, message in result.failures}
    assert told == {
        "raise hell": "RuntimeError: told to raise hell",
        "kill": "its worker died at each of 3 attempts",
    }
    assert left_over(tmp_path / "out") == []


@pytest.mark.slow
def test_the_same_on_the_built_in_model(tmp_path: Path) -> None:
    jobs = write_jobs(tmp_path, "a red circle", "raise hell", "kill", "a blue cross", "a red circle")
    result = drive(jobs, tmp_path / "out", "FaultyWorker")
    assert (result.num_jobs, result.num_done) == (4, 2)
    assert begun(tmp_path) == {"a red circle": 1, "a blue cross": 1, "raise hell": 1, "kill": 3}
    assert all(film[4:8] == b"ftyp" for film in films(tmp_path / "out").values())
    assert left_over(tmp_path / "out") == []


def test_a_rerun_tries_again_what_raised_and_not_what_killed(tmp_path: Path) -> None:
    jobs, out = write_jobs(tmp_path, "clip", "raise hell", "kill"), tmp_path / "out"
    drive(jobs, out)
    before = films(out)
    result = drive(jobs, out)
    assert result.num_done == 1
    assert begun(tmp_path) == {"clip": 1, "raise hell": 2, "kill": 3}
    drive(jobs, out, again=True)
    assert begun(tmp_path) == {"clip": 1, "raise hell": 3, "kill": 6}
    assert films(out) == before


def test_a_driver_that_is_killed_half_way(tmp_path: Path) -> None:
    prompts = [f"wait 0.1 {number}" for number in range(20)]
    jobs, out = write_jobs(tmp_path, *prompts), tmp_path / "out"
    process = started(jobs, out)
    wait_for(lambda: len(films(out)) >= 4)
    process.kill()
    process.communicate()
    before = films(out)
    result = drive(jobs, out)
    assert (result.num_done, result.num_failed) == (20, 0)
    assert before.items() <= films(out).items()
    # those in hand when the driver was killed are finished by the workers that it leaves, and waited for
    assert set(begun(tmp_path).values()) == {1}
    assert [name for name in left_over(out) if not name.startswith(".run-")] == []


def test_a_worker_that_somebody_kills(tmp_path: Path) -> None:
    prompts = [f"wait 0.2 {number}" for number in range(8)]
    jobs, out = write_jobs(tmp_path, *prompts), tmp_path / "out"
    process = started(jobs, out)
    wait_for(lambda: any((out / "jobs").glob("??/*.attempt-1")))
    wait_for(lambda: films(out))
    (record, *_) = out.glob("jobs/??/*.json")
    os.kill(json.loads(record.read_text())["pid"], signal.SIGKILL)
    assert process.communicate(timeout=60)[0].split() == ["8", "0"]
    assert sorted(begun(tmp_path).values())[:7] == [1] * 7
    assert left_over(out) == []


def test_an_interruption_is_not_held_against_the_jobs_in_hand(tmp_path: Path) -> None:
    jobs, out = write_jobs(tmp_path, "wait 30", "wait 31", "clip"), tmp_path / "out"
    for _ in range(4):
        process = started(jobs, out)
        wait_for(lambda: len(list(out.glob("jobs/??/*.attempt-1"))) == 2)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=30)
        assert "KeyboardInterrupt" in errors
        assert left_over(out) == []
    assert (out / "index.html").exists()


def test_two_drivers_at_once_do_not_do_the_same(tmp_path: Path) -> None:
    prompts = [f"wait 0.05 {number}" for number in range(30)]
    jobs, out = write_jobs(tmp_path, *prompts, "raise hell", "kill"), tmp_path / "out"
    drivers = [started(jobs, out), started(jobs, out)]
    for driver in drivers:
        output, errors = driver.communicate(timeout=120)
        assert output.split() == ["30", "2"], errors
    assert begun(tmp_path) == {**dict.fromkeys(prompts, 1), "raise hell": 1, "kill": 3}
    makers = {
        json.loads(path.read_text())["pid"] for path in out.glob("jobs/??/*[0-9a-f].json") if "failed" not in path.name
    }
    assert len(makers) >= 3  # of both drivers
    assert left_over(out) == []


def test_a_full_disk_stops_the_run_and_a_rerun_completes_it(tmp_path: Path) -> None:
    jobs, out = write_jobs(tmp_path, "clip 1", "full", "clip 2"), tmp_path / "out"
    (tmp_path / "full").touch()
    with pytest.raises(StoppedError, match=r"out cannot be written: No space left on device"):
        drive(jobs, out, num_workers=1)
    assert len(films(out)) == 1
    before = films(out)
    (tmp_path / "full").unlink()
    result = drive(jobs, out, num_workers=1)
    assert (result.num_done, result.num_failed) == (3, 0)
    assert before.items() <= films(out).items()
    assert begun(tmp_path) == {"clip 1": 1, "full": 2, "clip 2": 1}


@contextmanager
def small_disk(tmp_path: Path, size: str) -> Iterator[Path]:
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(disk)]
    if subprocess.run(command, capture_output=True).returncode:
        pytest.skip("no tmpfs may be mounted here")
    try:
        yield disk
    finally:
        subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.parametrize(("kind", "size"), [("FakeWorker", "128k"), ("FilmWorker", "1100k")])
def test_a_real_small_disk(kind: str, size: str, tmp_path: Path) -> None:
    """Also where it is the encoder, a program of its own, that finds it full."""
    jobs = write_jobs(tmp_path, *[f"clip {number}" for number in range(40)])
    with small_disk(tmp_path, size) as disk:
        with pytest.raises(StoppedError, match="No space left on device"):
            drive(jobs, disk / "out", kind)
        before = films(disk / "out")
        assert 0 < len(before) < 40
        assert list(disk.glob("out/jobs/??/*.failed.json")) == []
        subprocess.run(["mount", "-o", "remount,size=64m", str(disk)], check=True)
        assert drive(jobs, disk / "out", kind).num_done == 40
        assert before.items() <= films(disk / "out").items()


def test_a_film_that_is_cut_off_is_no_film(tmp_path: Path) -> None:
    film = tmp_path / "film.mp4"
    write_film(np.zeros((4, 32, 32, 3), dtype=np.float32), film)
    content = film.read_bytes()
    for size in (0, 7, 40, len(content) // 2, len(content) - 1):
        film.write_bytes(content[:size])
        assert not _is_whole(film)
    film.write_bytes(content)
    assert _is_whole(film)


def crew_of(out: Path, jobs: Path, *devices: str) -> tuple[Crew, Folder]:
    folder = Folder.open(out, Batch.of("shapes-wan", "hindsight", {}), {})
    return Crew(LocalPool(folder, len(devices), devices, FakeWorker), folder), folder


def test_a_worker_that_cannot_load_is_left_out_and_said(tmp_path: Path) -> None:
    jobs = write_jobs(tmp_path, "wait 3", "clip")  # until the others have told
    crew, folder = crew_of(tmp_path / "out", jobs, "none", "cpu", "deadly")
    result = run_batch(lambda: read_jobs(jobs, Job(batch="")), crew, folder)
    assert result.num_done == 2
    assert "device 'none' is not on this machine" in result.warnings
    crew, folder = crew_of(tmp_path / "other", jobs, "deadly")
    with pytest.raises(NoWorkersError, match="a worker died 3 times while it loaded the model"):
        run_batch(lambda: read_jobs(jobs, Job(batch="")), crew, folder)


def test_a_worker_that_is_not_sound_any_more_is_started_anew(tmp_path: Path) -> None:
    (tmp_path / "unsound").touch()
    jobs = write_jobs(tmp_path, "raise hell", "clip 1", "clip 2")
    crew, folder = crew_of(tmp_path / "out", jobs, "cpu")
    assert run_batch(lambda: read_jobs(jobs, Job(batch="")), crew, folder).num_done == 2


def test_nothing_is_loaded_where_nothing_is_missing(tmp_path: Path) -> None:
    jobs = write_jobs(tmp_path, "clip")
    crew, folder = crew_of(tmp_path / "out", jobs, "cpu")
    run_batch(lambda: read_jobs(jobs, Job(batch="")), crew, folder)
    crew, folder = crew_of(tmp_path / "out", jobs, "deadly")
    assert run_batch(lambda: read_jobs(jobs, Job(batch="")), crew, folder).num_done == 1


def test_verify_tells_the_lowest_and_the_median(tmp_path: Path) -> None:
    jobs = tmp_path / "jobs.jsonl"
    jobs.write_text("".join(json.dumps({"prompt": "clip", "seed": seed}) + "\n" for seed in range(5)))
    for _ in range(2):  # the second time nothing is made
        result = drive(jobs, tmp_path / "out", num_verified=5)
        assert result.verified is not None
        assert (result.verified.num_clips, result.verified.lowest_db, result.verified.median_db) == (5, 30.0, 32.0)
    assert begun(tmp_path) == {"clip": 10}


def test_an_attempt_on_another_machine_lives_as_long_as_it_is_touched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Folder.open(tmp_path / "out", Batch.of("shapes-wan", "hindsight", {}), {})
    assert isinstance(begin(folder, "ab"), Attempt)
    assert begin(folder, "ab") is Standing.BUSY
    monkeypatch.setattr(attempts, "this_place", lambda: "elsewhere")
    assert begin(folder, "ab") is Standing.BUSY
    long_ago = time.time() - attempts.STALE_SECONDS - 5
    os.utime(folder.file("ab", ".attempt-1"), (long_ago, long_ago))
    second = begin(folder, "ab")
    assert isinstance(second, Attempt)
    assert second.number == 2


def test_an_attempt_of_a_process_that_is_gone_is_over_at_once(tmp_path: Path) -> None:
    folder = Folder.open(tmp_path / "out", Batch.of("shapes-wan", "hindsight", {}), {})
    for number in range(1, attempts.MAX_ATTEMPTS + 1):
        attempt = begin(folder, "ab")
        assert isinstance(attempt, Attempt)
        assert attempt.number == number
        note = folder.file("ab", f".attempt-{number}")
        note.write_text(json.dumps(json.loads(note.read_text()) | {"started": "1"}))  # of one that had our number
    assert begin(folder, "ab") is Standing.GIVEN_UP


def test_an_attempt_that_was_cut_off_as_it_began_keeps_nobody_waiting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class KilledError(BaseException):
        pass

    def killed() -> None:
        raise KilledError

    folder = Folder.open(tmp_path / "out", Batch.of("shapes-wan", "hindsight", {}), {})
    with monkeypatch.context() as patch:
        patch.setattr(attempts, "this_process", killed)
        with pytest.raises(KilledError):
            begin(folder, "ab")
    attempt = begin(folder, "ab")
    assert isinstance(attempt, Attempt)
    assert attempt.number == 1


@pytest.mark.parametrize("answer", [errno.EPERM, errno.EOPNOTSUPP, errno.EEXIST])
def test_disks_without_links_and_disks_that_say_so_of_those_they_made(
    answer: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    link = os.link

    def answered(source: Path, target: Path) -> None:
        if answer == errno.EEXIST:
            link(source, target)
        raise OSError(answer, os.strerror(answer))

    monkeypatch.setattr(os, "link", answered)
    folder = Folder.open(tmp_path / "out", Batch.of("shapes-wan", "hindsight", {}), {})
    attempt = begin(folder, "ab")
    assert isinstance(attempt, Attempt)
    assert json.loads(attempt.path.read_text()) == attempts.this_process()
    assert begin(folder, "ab") is Standing.BUSY
    assert set(left_over(tmp_path / "out")) == {folder.run, attempt.path.name}


def test_an_attempt_that_finds_the_disk_full_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    folder = Folder.open(tmp_path / "out", Batch.of("shapes-wan", "hindsight", {}), {})
    with monkeypatch.context() as patch:
        patch.setattr(os, "link", full)
        with pytest.raises(OSError, match="No space left"):
            begin(folder, "ab")
    assert left_over(tmp_path / "out") == [folder.run]
