"""`mixcache batch` on the built-in model: what it makes, what it says, and how it ends."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import pytest
from test_jobs import copied_model
from test_runs import films, left_over, write_jobs
from typer.testing import CliRunner

from mixcache import cli
from mixcache.batch.folder import Folder, Standing, Task
from mixcache.batch.jobs import Batch, Job
from mixcache.batch.work import Worker, run

CAPTION = "a large red circle moving left on a plain white background"
TINY = ["--size", "32x32", "--frames", "5", "--devices", "cpu"]
runner = CliRunner()


def invoked(*arguments: object) -> Any:
    return runner.invoke(cli.app, ["batch", *map(str, arguments)])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--runner", "slurm"], "unknown runner 'slurm'"),
        (["--address", "auto"], "--address is of a Ray cluster; add --runner ray"),
        (["--runner", "ray", "--devices", "cpu"], "--devices is for the local runner"),
        (["--model", "shapes-won"], "did you mean 'shapes-wan'?"),
        (["--policy", "hindsigth"], "did you mean 'hindsight'?"),
        (["--size", "big"], "--size 'big' is not WIDTHxHEIGHT"),
        (["--speedup", "2", "--profile", "none.json"], "none.json cannot be read"),
        (["--devices", "toaster"], "device 'toaster' is not on this machine"),
        (["--quality", "hihg"], "unknown quality 'hihg'; did you mean 'high'?"),
    ],
)
def test_bad_input_is_one_clear_error(arguments: list[str], message: str, tmp_path: Path) -> None:
    result = invoked(write_jobs(tmp_path, CAPTION), "--out", tmp_path / "out", *arguments)
    assert result.exit_code == 2, result.output
    assert message in result.stderr
    assert result.stderr.startswith("mixcache: ")
    assert result.stderr.count("\n") == 1


def test_a_file_without_a_job(tmp_path: Path) -> None:
    jobs = tmp_path / "jobs.jsonl"
    for text, message in (("", "there is no job in the file"), ("{\n", "line 1: is not JSON")):
        jobs.write_text(text)
        result = invoked(jobs, "--out", tmp_path / "out")
        assert result.exit_code == 2
        assert message in result.stderr
    assert "cannot be read" in invoked(tmp_path / "none.jsonl", "--out", tmp_path / "out").stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(importlib.util.find_spec("ray") is not None, reason="Ray is installed")
def test_ray_is_not_installed(tmp_path: Path) -> None:
    result = invoked(write_jobs(tmp_path, CAPTION), "--out", tmp_path / "out", "--runner", "ray")
    assert result.exit_code == 2
    assert "--runner ray needs Ray: pip install 'mixcache[ray]'" in result.stderr


def test_pyarrow_is_not_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    result = invoked(tmp_path / "jobs.parquet", "--out", tmp_path / "out")
    assert result.exit_code == 2
    assert "needs pyarrow, which is not installed: pip install pyarrow" in result.stderr


def test_a_model_that_is_gone_or_another_on_one_worker(tmp_path: Path) -> None:
    model = copied_model(tmp_path, "model")
    folder = Folder.open(tmp_path / "out", Batch.of(str(model), "hindsight", {}), {})
    config = model / "scheduler" / "scheduler_config.json"
    config.write_text(config.read_text() + "\n")
    with pytest.raises(ValueError, match=r"the model .*model is not the one that the driver has; copy it anew"):
        Worker(folder, "cpu")
    model.rename(tmp_path / "gone")
    with pytest.raises(ValueError, match="unknown model or folder"):
        Worker(folder, "cpu")
    folder.close()
    with pytest.raises(ValueError, match=r"is not the one that the driver sees; put it on a shared disk"):
        Worker(folder, "cpu")


@pytest.mark.slow
def test_a_batch_from_beginning_to_end(tmp_path: Path) -> None:
    jobs, out = tmp_path / "jobs.jsonl", tmp_path / "out"
    rows = [{"prompt": CAPTION, "seed": seed} for seed in (1, 2, 1)]
    jobs.write_text("\n".join([*map(json.dumps, rows), "no JSON", json.dumps({"prompt": CAPTION, "size": "40x40"})]))
    command = (jobs, "--out", out, *TINY, "--steps", 8, "--set", "error=1", "--verify", 1)
    result = invoked(*command)
    assert result.exit_code == 1, result.output
    assert "clips     2 of 3 are done, 1 failed" in result.stdout
    assert "verified  1 clips: lowest PSNR" in result.stdout
    assert "line 4    is not JSON" in result.stderr
    assert "`height` and `width` have to be divisible by 16 but are 40 and 40" in result.stderr
    made = films(out)
    assert len(made) == 2
    assert left_over(out) == []
    for name in made:
        record = json.loads((out / "jobs" / name[:2] / f"{name}.json").read_text())
        assert record["id"] == name
        assert record["job"]["prompt"] == CAPTION
        assert len(record["trace"]) == len(record["timeline"]) == record["summary"]["num_steps"] == 8
        assert record["summary"]["num_generations"] == 1
        assert record["saving"] == pytest.approx(1 - record["summary"]["computed_share"])
        assert 0 < record["saving"] < 1
        assert record["settings"]["error"] == 1
        assert record["versions"]["mixcache"]
        assert made[name][4:8] == b"ftyp"
        assert (out / "jobs" / name[:2] / f"{name}.jpg").read_bytes()[:2] == b"\xff\xd8"
    rerun = invoked(*command[:-2])
    assert "clips     2 of 3 are done, 1 failed" in rerun.stdout
    assert films(out) == made
    other = invoked(*command, "--seed", 3, "--steps", 9)
    assert other.exit_code == 2
    assert "is of a batch with another num_inference_steps (8, not 9)" in other.stderr


@pytest.mark.slow
def test_verifying_goes_by_the_trace_of_the_clip_and_not_by_the_clock(tmp_path: Path) -> None:
    batch = Batch.of("shapes-wan", "hold", {"speedup": 2.0})
    folder = Folder.open(tmp_path / "out", batch, {})
    worker = Worker(folder, "cpu")
    size = {"width": 32, "height": 32, "num_frames": 5, "num_inference_steps": 20}
    job, other = (Job(batch=batch.key, prompt=CAPTION, seed=seed, **size) for seed in (1, 2))
    for each in (job, other):
        assert run(Task(job=each), folder, worker).standing is Standing.DONE
    found = worker.verify(job)
    assert found["is_same"]
    assert found["psnr_db"] < 90
    record = folder.file(job.id, ".json")
    facts = json.loads(record.read_text())
    assert found["cached_seconds"] == facts["seconds"]["denoising"]
    for entry in facts["trace"]:
        entry["granularity"] = "compute"
    record.write_text(json.dumps(facts))
    found = worker.verify(job)
    assert not found["is_same"]
    assert found["psnr_db"] is None  # this trace leaves nothing out


@pytest.mark.slow
def test_clips_are_those_that_generate_makes(tmp_path: Path) -> None:
    jobs, single = write_jobs(tmp_path, CAPTION), tmp_path / "clip.mp4"
    shared = ["--steps", "8", "--set", "error=1", "--size", "32x32", "--frames", "5", "--seed", "4"]
    assert invoked(jobs, "--out", tmp_path / "out", *shared, "--devices", "cpu").exit_code == 0
    generated = runner.invoke(cli.app, ["generate", CAPTION, "--out", str(single), *shared])
    assert generated.exit_code == 0, generated.output
    assert list(films(tmp_path / "out").values()) == [single.read_bytes()]
