"""The study of full-size models, with the same rows made tiny, and its rules in numbers."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from mixcache.bench.methods import PLAIN
from mixcache.bench.records import Record
from mixcache.decision import Granularity
from mixcache.hosts.diffusers.denoisers import blocks_of
from mixcache.hosts.diffusers.rows import row_for
from studies import full_size
from studies.full_size import FullSize, StepTimes, methods, page, replayed, row_of
from studies.random_models import MODELS, RandomModel, tiny

NAMES = ("wan-1.3b-480p", "hunyuan-720p", "cogvideox-5b")
ONCE = ("--blocks", "uncompiled", "--repeats", "1")


def run(folder: Path, *arguments: str, models: tuple[str, ...] = NAMES[:1]) -> int:
    folders = ["--out", str(folder), "--work", str(folder / "work")]
    return full_size.main(["--tiny", "--models", *models, *folders, *arguments])


def result_of(folder: Path, name: str = NAMES[0]) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / f"gpu-tiny-{name}.json").read_text())
    return found


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("full-size")
    assert run(folder, *ONCE, models=NAMES) == 0
    return folder


# ---------------------------------------------------------------------------------------------------------- whole runs


@pytest.mark.parametrize("name", NAMES)
def test_every_method_is_measured_on_every_model(measured: Path, name: str) -> None:
    result = result_of(measured, name)
    assert result["failures"] == {}
    assert result["header"]["frames"] == 9
    rows = {row["method"]: row for row in result["blocks"]["uncompiled"]["summary"]}
    has_two_branches = name != "hunyuan-720p"
    granularities = ["step", *(["cfg"] if has_two_branches else []), "block"]
    assert list(rows) == [method.name for method in methods(8, granularities)]
    assert len(result["blocks"]["uncompiled"]["records"]) == len(rows)
    for method in ("plain", "always_compute, defaults", "hindsight, error 1e-30"):
        assert (rows[method]["work"], rows[method]["ideal"], rows[method]["cached_ms"]) == ("########", 1.0, None)
    step = rows["replay step, 2 of 3 steps"]
    assert (step["work"], step["ideal"]) == ("##..#..#", 2.0)
    assert step["computed_ms"] > step["cached_ms"] > 0
    if has_two_branches:
        cfg = rows["replay cfg, 2 of 3 steps"]
        assert (cfg["work"], cfg["ideal"]) == ("##55#55#", pytest.approx(4 / 3))
    peer = rows["db-cache-mask, F1B0_SCM first 2, 1 of 3, last 0"]["work"]
    assert [digit == "#" for digit in peer] == [digit == "#" for digit in step["work"]]
    tries = f"hindsight, error 1e-30, granularities {granularities}"
    assert rows[tries]["added_mib"] > rows["hindsight, error 1e-30"]["added_mib"] > 0


def test_the_page_has_a_row_for_every_model_and_method(measured: Path) -> None:
    text = (measured / "gpu.md").read_text()
    for name in NAMES:
        assert f"\n| tiny-{name} | " in text
        assert f"\n## tiny-{name}, blocks uncompiled\n" in text
    assert text.count("\n| replay block, 2 of 3 steps | ") == 3
    assert "What failed" not in text


def test_what_is_finished_is_not_measured_again(measured: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = result_of(measured)
    monkeypatch.setattr(FullSize, "_loop", None)
    assert run(measured, *ONCE) == 0
    assert result_of(measured) == before


def test_other_settings_are_not_mixed_into_a_store(measured: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = result_of(measured)
    assert run(measured, *ONCE, "--steps", "9") == 2
    assert "holds measurements of another num_steps (8, not 9); --work names another folder" in capsys.readouterr().out
    assert result_of(measured) == before


def test_compiled_blocks_stay_compiled_while_they_are_timed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(full_size, "methods", lambda *of: [method for method in methods(*of) if not method.is_peer])
    assert run(tmp_path, "--blocks", "eager", "--repeats", "1") == 0  # the backend that compiles nothing but graphs
    result = result_of(tmp_path)
    assert result["failures"] == {}
    rows = {row["method"]: row for row in result["blocks"]["eager"]["summary"]}
    assert [row["num_graphs"] for row in rows.values()] == [0] * 7
    assert full_size.num_graphs() > 0


def test_a_failure_has_its_reason_and_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(full_size, "methods", lambda num_steps, usable: [PLAIN])
    few = ("--blocks", "uncompiled", "no-such-compiler", "--repeats", "1")
    assert run(tmp_path, *few) == 0
    result = result_of(tmp_path)
    assert [row["method"] for row in result["blocks"]["uncompiled"]["summary"]] == ["plain"]
    assert result["blocks"]["no-such-compiler"] == {"summary": [], "records": []}
    assert "no-such-compiler" in result["failures"]["run, no-such-compiler, plain, 0"]
    assert "- tiny-wan-1.3b-480p, run, no-such-compiler, plain, 0: " in (tmp_path / "gpu.md").read_text()
    monkeypatch.setattr(
        FullSize, "_timed", lambda *_: {"seconds": 1, "steps": [1] * 8, "peak_bytes": 2, "num_graphs": 0}
    )
    assert run(tmp_path, *few) == 0
    assert result_of(tmp_path)["failures"] == {}


def test_an_interruption_keeps_what_is_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, calls = FullSize._timed, []

    def interrupted(*arguments: Any) -> Any:
        calls.append(arguments)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(full_size, "methods", lambda num_steps, usable: [PLAIN, *methods(num_steps, ["step"])[1:2]])
    monkeypatch.setattr(FullSize, "_timed", interrupted)
    assert run(tmp_path, "--blocks", "uncompiled") == 130
    assert not (tmp_path / "gpu-tiny-wan-1.3b-480p.json").exists()
    assert run(tmp_path, "--blocks", "uncompiled") == 0
    assert len(calls) == 3 + 2  # plain and attached, the one that was cut off, then what was missing
    assert len(result_of(tmp_path)["blocks"]["uncompiled"]["records"]) == 4


def with_fewer_frames(model: RandomModel) -> RandomModel:
    return replace(tiny(model), num_frames=(13, 9, 5))


def test_fewer_frames_where_memory_is_short(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = FullSize._loop

    def short(study: FullSize, *arguments: Any, **more: Any) -> float:
        if study.arguments["num_frames"] > 5:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(study, *arguments, **more)

    monkeypatch.setattr(FullSize, "_loop", short)
    monkeypatch.setattr(full_size, "methods", lambda num_steps, usable: [PLAIN])
    monkeypatch.setattr(full_size, "tiny", with_fewer_frames)
    assert run(tmp_path, "--blocks", "uncompiled") == 0
    header = result_of(tmp_path)["header"]
    assert (header["frames"], header["too many"]) == (5, [13, 9])
    monkeypatch.setattr(full_size, "tiny", lambda model: replace(tiny(model), name="tiny-none", num_frames=(13,)))
    assert run(tmp_path, "--blocks", "uncompiled") == 0
    assert "- tiny-none, frames: MemoryError: not even 13 frames fit" in (tmp_path / "gpu.md").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--models", "wan-14b-480"], "invalid choice: 'wan-14b-480'"),
        (["--repeats", "0"], "--repeats 0 at least 1"),
        (["--steps", "2"], "--steps 2 must be over 2"),
    ],
)
def test_wrong_arguments_are_told(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        full_size.main(arguments)
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("name", [NAMES[0], *(pytest.param(name, marks=pytest.mark.slow) for name in NAMES[1:])])
def test_a_method_leaves_nothing_behind(tmp_path: Path, name: str) -> None:
    study = FullSize(tiny(MODELS[name]), tmp_path, blocks=("eager",))
    study.arguments["num_frames"] = 9

    def latents() -> torch.Tensor:
        made: torch.Tensor = study.pipeline(generator=torch.Generator().manual_seed(0), **study.arguments).frames
        return made

    transformer, plain = study.pipeline.transformer, latents()
    blocks = blocks_of(transformer, row_for(transformer, study.pipeline))
    for method in study.methods:
        study._timed(method, "eager")
        assert torch.equal(latents(), plain)
        assert not any("forward" in vars(block) or hasattr(block, "_diffusers_hook") for block in blocks)
        assert all(block._compiled_call_impl is None for block in blocks)


# ---------------------------------------------------------------------------------------------------------- arithmetic


def test_after_the_first_steps_two_of_three_are_cached() -> None:
    trace = replayed(Granularity.BLOCK, 9).settings["trace"]
    assert "".join(entry.granularity.value[0] for entry in trace) == "ccbbcbbcb"
    assert [entry.num_corrected for entry in trace] == [0, 0, 0, 0, 2, 0, 0, 2, 0]


def test_a_row_tells_the_medians_of_its_steps_and_the_memory_added(make_record: Any) -> None:
    record: Record = make_record(PLAIN, work="##.#")
    runs = [
        {"steps": [9.0, 0.5, 0.25, 0.75], "peak_bytes": 3 * 2**20, "num_graphs": 1},
        {"steps": [9.0, 0.25, 0.5, 0.125], "peak_bytes": 2**20, "num_graphs": 0},
    ]
    plain = [{"peak_bytes": 2**20}, {"peak_bytes": 2 * 2**20}]
    assert row_of(record, runs, plain) == {
        "computed_ms": 375.0,
        "cached_ms": 375.0,
        "added_mib": 1.0,
        "work": "##.#",
        "num_graphs": 1,
    }
    on_cpu = [{**run, "peak_bytes": None} for run in runs]
    assert row_of(record, on_cpu, on_cpu)["added_mib"] == 2048 / 2**20  # what the method says it held


def test_steps_are_timed_between_marks(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([1.0, 1.5, 3.5])
    monkeypatch.setattr(full_size.time, "perf_counter", lambda: next(clock))
    times = StepTimes(torch.device("cpu"))
    for num_done in range(3):
        times.mark(num_done, 2)
    assert times.seconds() == [0.5, 2.0]


def test_a_page_of_nothing_is_a_page() -> None:
    assert page([]).startswith("# Models of full size")
