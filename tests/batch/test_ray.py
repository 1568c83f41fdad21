"""The Ray runner does what the local one does. Skipped where Ray is not installed."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from drive import drive
from test_runs import begun, films, left_over, started, wait_for, write_jobs

from mixcache.batch.cluster import RayPool
from mixcache.batch.folder import Folder
from mixcache.batch.jobs import Batch

os.environ["RAY_AUTH_MODE"] = "disabled"  # read when Ray is imported; else whoever joins needs the cluster's token
ray = pytest.importorskip("ray", reason="Ray is not installed: pip install 'mixcache[ray]'")
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*:FutureWarning:ray"),
    pytest.mark.filterwarnings("ignore:.*:ResourceWarning"),
    pytest.mark.filterwarnings("ignore:.*:DeprecationWarning:ray"),
]


KEEPER = """
import sys, ray
ray.init(num_cpus=2, include_dashboard=False, object_store_memory=100 * 2**20, logging_level="ERROR")
print(ray.get_runtime_context().gcs_address, flush=True)
sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def _actors_find_faults(monkeypatch: pytest.MonkeyPatch) -> None:
    paths = [str(Path(__file__).parent), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(path for path in paths if path))


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    """The address of a cluster of two CPUs."""
    environment = os.environ | {"RAY_USAGE_STATS_ENABLED": "0"}
    keeper = subprocess.Popen(
        [sys.executable, "-c", KEEPER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    )
    with keeper:
        assert keeper.stdout is not None
        yield keeper.stdout.readline().strip()
        keeper.communicate()


def test_raising_killing_and_verifying(cluster: str, tmp_path: Path) -> None:
    good = [f"clip {number}" for number in range(12)]
    jobs = write_jobs(tmp_path, *good[:5], "raise hell", "kill", *good[5:], "clip 0")
    result = drive(jobs, tmp_path / "out", address=cluster, num_verified=2)
    assert (result.num_jobs, result.num_done) == (14, 12)
    times = begun(tmp_path)
    assert times.pop("kill") == 3
    assert times.pop("raise hell") == 1
    assert sorted(times.values()) == [1] * 10 + [2] * 2  # two again, to verify them
    assert {job.prompt: message for job, message in result.failures}["kill"] == (
        "its worker died at each of 3 attempts"
    )
    assert left_over(tmp_path / "out") == []


@pytest.mark.slow
def test_the_same_on_the_built_in_model(cluster: str, tmp_path: Path) -> None:
    jobs = write_jobs(tmp_path, "a red circle", "raise hell", "kill", "a blue cross", "a red circle")
    result = drive(jobs, tmp_path / "out", "FaultyWorker", cluster)
    assert (result.num_jobs, result.num_done) == (4, 2)
    assert begun(tmp_path) == {"a red circle": 1, "a blue cross": 1, "raise hell": 1, "kill": 3}
    again = drive(jobs, tmp_path / "local", "FaultyWorker")
    assert again.num_done == 2
    assert films(tmp_path / "out") == films(tmp_path / "local")


def test_a_driver_that_is_killed_half_way(cluster: str, tmp_path: Path) -> None:
    jobs, out = write_jobs(tmp_path, *[f"wait 0.2 {number}" for number in range(16)]), tmp_path / "out"
    process = started(jobs, out, cluster)
    wait_for(lambda: len(films(out)) >= 3)
    process.kill()
    process.communicate()
    before = films(out)
    result = drive(jobs, out, address=cluster)
    assert (result.num_done, result.num_failed) == (16, 0)
    assert before.items() <= films(out).items()
    assert sum(begun(tmp_path).values()) <= 16 + 2  # two were in hand


def test_an_interruption_is_not_held_against_the_jobs_in_hand(cluster: str, tmp_path: Path) -> None:
    jobs, out = write_jobs(tmp_path, "wait 120", "wait 121"), tmp_path / "out"
    process = started(jobs, out, cluster)
    wait_for(lambda: len(list(out.glob("jobs/??/*.attempt-1"))) == 2)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert left_over(out) == [], errors


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("127.0.0.1:PORT", r"no Ray cluster answers at 127.0.0.1:\d+: .*refused"),
        ("ray://127.0.0.1:PORT", r"no Ray cluster answers at ray://127.0.0.1:\d+: .*refused"),
        ("nowhere", r"--address 'nowhere' is not HOST:PORT"),
    ],
)
def test_an_address_that_nobody_answers(address: str, message: str, tmp_path: Path) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = address.replace("PORT", str(unused.getsockname()[1]))
        folder = Folder.open(tmp_path / "out", Batch.of("shapes-wan", "hindsight", {}), {})
        start = time.monotonic()
        with pytest.raises(ValueError, match=message):
            RayPool(folder, 1, address)
        assert time.monotonic() - start < 30


def test_more_workers_than_the_cluster_has(tmp_path: Path) -> None:
    folder = Folder.open(tmp_path / "out", Batch.of("shapes-wan", "hindsight", {}), {})
    with pytest.raises(ValueError, match=r"--workers 5000 wants a CPU each, and the cluster has \d+"):
        RayPool(folder, 5000, None)
    assert not ray.is_initialized()


def test_records_are_those_of_the_local_runner(cluster: str, tmp_path: Path) -> None:
    jobs, places = write_jobs(tmp_path, "clip 1", "clip 2"), (tmp_path / "local", tmp_path / "ray")
    for place, address in zip(places, (None, cluster), strict=True):
        drive(jobs, place, address=address)
    names = [sorted(path.relative_to(place) for path in place.rglob("*.json")) for place in places]
    assert names[0] == names[1]
    assert len(names[0]) == 3
    records = [json.loads((place / names[0][-1]).read_text()) for place in places]
    assert records[0].keys() == records[1].keys()
    assert records[0]["job"] == records[1]["job"]
