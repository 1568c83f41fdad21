"""The benchmark of full-size models, with the same rows made tiny, and its rules in numbers."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from mixcache.decision import Choice, Granularity  # noqa: E402
from mixcache.trace import Trace, TraceEntry  # noqa: E402
from studies.full_size import __main__ as command  # noqa: E402
from studies.full_size import measure as measuring  # noqa: E402
from studies.full_size import peers  # noqa: E402
from studies.full_size.families import build_pipeline, build_transformer, call_arguments  # noqa: E402
from studies.full_size.medians import step_names, told  # noqa: E402
from studies.full_size.models import MODELS, FullSizeModel, tiny  # noqa: E402
from studies.full_size.modes import MODES  # noqa: E402
from studies.full_size.runs import Run, Subject  # noqa: E402
from studies.full_size.schedules import carried, levels_of, placed, recorded, share_left_out  # noqa: E402

COMPUTE, STEP, CFG, BLOCK = Granularity.COMPUTE, Granularity.STEP, Granularity.CFG, Granularity.BLOCK
FAMILY_NAMES = ("wan-1.3b-480p", "hunyuan-720p", "cogvideox-5b")
CPU = torch.device("cpu")


def trace_at(choices: dict[float, Choice]) -> Trace:
    """A trace with these choices by noise level."""
    return Trace(
        TraceEntry(
            generation=0, step=i, num_steps=len(choices), sigma=sigma, granularity=granularity, order=order, reason=""
        )
        for i, (sigma, (granularity, order)) in enumerate(choices.items())
    )


TRACE = trace_at(
    {
        1.0: (COMPUTE, 0),
        0.9: (STEP, 0),
        0.8: (COMPUTE, 0),
        0.6: (STEP, 1),
        0.5: (CFG, 0),
        0.4: (COMPUTE, 0),
        0.3: (BLOCK, 0),
        0.1: (COMPUTE, 0),
    }
)


def tiny_subject(name: str, num_steps: int = 8) -> Subject:
    model = tiny(MODELS[name])
    arguments = call_arguments(model, CPU, torch.float32) | {"num_inference_steps": num_steps, "num_frames": 9}
    pipeline = build_pipeline(model, CPU, torch.float32)
    return Subject(model=model, pipeline=pipeline, arguments=arguments, device=CPU, placed=placed(TRACE, num_steps))


def run(folder: Path, *arguments: str, models: str = "wan-1.3b-480p") -> int:
    TRACE.save(folder / "trace.jsonl")
    common = ["--tiny", "--device", "cpu", "--models", models, "--out", str(folder)]
    return command.main([*common, "--schedule", str(folder / "trace.jsonl"), *arguments])


def entries(folder: Path, name: str = "wan-1.3b-480p") -> dict[str, Any]:
    result: dict[str, Any] = json.loads((folder / f"gpu-tiny-{name}.json").read_text())
    return result["entries"]


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("full-size")
    assert run(folder, "--no-compile", models=",".join(FAMILY_NAMES)) == 0
    return folder


# ---------------------------------------------------------------------------------------------------------- whole runs


@pytest.mark.parametrize("name", FAMILY_NAMES)
def test_every_mode_of_every_family_is_measured(measured: Path, name: str) -> None:
    found = entries(measured, name)
    assert list(found) == [f"eager/{mode}" for mode in MODES]
    for entry in found.values():
        assert not {"num_non_finite", "num_calls_in_full", "num_graphs"} & {
            key for way in entry["ways"].values() for key, value in way.items() if key.startswith("num_") and value
        }
    placed_way = found["eager/schedule_by_place"]["ways"]["schedule"]
    has_two_branches = name != "hunyuan-720p"
    assert placed_way["choices"] == ("#s#Sg#b#" if has_two_branches else "#s#S##b#")
    assert len(placed_way["loops_ms"]) == 2
    assert set(found["eager/steps"]["ways"]["forced"]["step_ms"]) == {
        "compute",
        "step after a computed one",
        "step",
        "block",
        *(["cfg"] if has_two_branches else []),
    }
    overhead = found["eager/overhead"]["ways"]
    assert {way["choices"] for name, way in overhead.items() if name != "plain"} == {"######"}
    assert overhead["hindsight with block"]["added_bytes"] > overhead["hindsight"]["added_bytes"] > 0


def test_peers_leave_out_as_much_as_the_schedule(measured: Path) -> None:
    found = entries(measured)
    # two steps, half of one (cfg) and 2 of 4 blocks of one: 3 of 8 steps; FirstBlockCache saves 3 of 4 blocks in each
    assert found["eager/schedule_by_place"]["ways"]["schedule"]["ideal_speedup"] == pytest.approx(8 / 5)
    for mode in ("first_block_cache", "db_cache"):
        but_for_a_block = found[f"eager/{mode}"]["ways"]["peer"]
        assert but_for_a_block["choices"].count("s") == 4
        assert but_for_a_block["ideal_speedup"] == pytest.approx(8 / 5)
    for mode in ("taylorseer", "taylorseer_lite"):
        assert found[f"eager/{mode}"]["ways"]["peer"]["choices"] == "###s#s#s"


def test_the_page_has_a_row_for_every_model_and_cache(measured: Path) -> None:
    text = (measured / "gpu.md").read_text()
    for name in FAMILY_NAMES:
        assert text.count(f"| tiny-{name} | eager | ") == 1 + 3 + 6
    assert "| FirstBlockCache (diffusers), forced |" in text
    assert "What failed" not in text


def test_what_is_finished_is_not_measured_again(measured: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = entries(measured)
    monkeypatch.setattr(measuring, "build_pipeline", None)
    assert run(measured, "--no-compile") == 0
    assert entries(measured) == before


def test_other_settings_are_not_mixed_into_a_file(measured: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(measured, "--no-compile", "--repeats", "3") == 2
    assert "was measured with another repeats; delete it" in capsys.readouterr().out


def test_compiled_blocks_stay_compiled_while_they_are_timed(tmp_path: Path) -> None:
    arguments = ("--no-eager", "--compile-backend", "eager", "--modes", "steps,schedule_by_place")
    assert run(tmp_path, *arguments) == 0
    found = entries(tmp_path)
    assert set(found) == {"compiled/steps", "compiled/schedule_by_place"}
    assert all(way["num_graphs"] == 0 for entry in found.values() for way in entry["ways"].values())
    assert found["compiled/schedule_by_place"]["ways"]["schedule"]["choices"] == "#s#Sg#b#"


def test_a_failure_is_an_entry_with_its_reason(tmp_path: Path) -> None:
    arguments = ("--modes", "steps", "--compile-backend", "no-such-compiler")
    assert run(tmp_path, *arguments) == 0
    found = entries(tmp_path)
    assert "ways" in found["eager/steps"]
    assert "no-such-compiler" in found["compiled/steps"]["failed"]
    assert "- tiny-wan-1.3b-480p, compiled/steps: " in (tmp_path / "gpu.md").read_text()


def test_an_interruption_keeps_what_is_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, calls = measuring.mirrored, []

    def interrupted(*arguments: Any) -> Any:
        calls.append(arguments)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(measuring, "mirrored", interrupted)
    assert run(tmp_path, "--no-compile", "--modes", "steps,schedule") == 130
    assert list(entries(tmp_path)) == ["eager/steps"]
    monkeypatch.setattr(measuring, "mirrored", real)
    assert run(tmp_path, "--no-compile", "--modes", "steps,schedule") == 0
    assert list(entries(tmp_path)) == ["eager/steps", "eager/schedule"]


def with_fewer_frames(model: FullSizeModel) -> FullSizeModel:
    return replace(tiny(model), num_frames=(13, 9, 5))


def test_fewer_frames_where_memory_is_short(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = Subject.call

    def short(subject: Subject, *arguments: Any, **more: Any) -> float:
        if subject.arguments["num_frames"] > 5:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(subject, *arguments, **more)

    monkeypatch.setattr(Subject, "call", short)
    monkeypatch.setattr(command, "tiny", with_fewer_frames)
    assert run(tmp_path, "--no-compile", "--modes", "schedule") == 0
    result = json.loads((tmp_path / "gpu-tiny-wan-1.3b-480p.json").read_text())
    assert result["found"] == {"num_frames": 5, "num_frames_too_many": [13, 9]}
    assert "9 frames do not fit into memory" in (tmp_path / "gpu.md").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--models", "wan-14b-480"], "did you mean 'wan-14b-480p'"),
        (["--modes", "stepz"], "did you mean 'steps'"),
        (["--repeats", "0"], "--repeats 0 must be at least 1"),
        (["--device", "gpu"], "--device gpu cannot be used: Expected one of cpu, cuda"),
    ],
)
def test_wrong_arguments_are_told(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        command.main(arguments)
    assert message in capsys.readouterr().err


@pytest.mark.slow
def test_without_a_trace_one_is_recorded_and_kept(tmp_path: Path) -> None:
    kept = tmp_path / "gpu-schedule.jsonl"
    trace = recorded(None, kept)
    assert len(trace) == 50
    assert trace.computed_share() == pytest.approx(0.5, abs=0.08)
    assert [entry.granularity for entry in recorded(None, kept)] == [entry.granularity for entry in trace]


# ---------------------------------------------------------------------------------------------------------- arithmetic


def test_a_schedule_is_carried_over_by_noise_level() -> None:
    levels = [0.95, 0.86, 0.62, 0.33, 0.0]  # the first is computed whatever the trace says
    assert carried(TRACE, levels) == [(COMPUTE, 0), (STEP, 0), (STEP, 1), (BLOCK, 0), (COMPUTE, 0)]


def test_a_schedule_by_place_keeps_its_share() -> None:
    assert placed(TRACE, 8) == [(entry.granularity, entry.order) for entry in TRACE]
    assert placed(TRACE, 4) == [(COMPUTE, 0), (STEP, 1), (COMPUTE, 0), (COMPUTE, 0)]


def test_the_share_left_out_counts_branches_and_blocks() -> None:
    schedule = [(COMPUTE, 0), (STEP, 0), (CFG, 0), (BLOCK, 0)]
    assert share_left_out(schedule, has_two_branches=True, num_blocks=8) == (1 + 0.5 + 0.75) / 4
    assert share_left_out(schedule, has_two_branches=False, num_blocks=8) == (1 + 0.75) / 4


def test_skipped_steps_are_spread_evenly_after_the_first() -> None:
    assert peers.spread(9, 4) == [2, 4, 6, 8]
    assert peers.spread(9, 8) == peers.spread(9, 20) == [1, 2, 3, 4, 5, 6, 7, 8]
    assert peers.spread(9, 0) == []
    for num_steps in range(2, 60):
        for num_skipped in range(num_steps):
            assert len(peers.spread(num_steps, num_skipped)) == num_skipped


def test_the_interval_of_taylorseer_is_the_nearest() -> None:
    assert peers.interval_steps(10, 3) == [3, 5, 6, 8, 9]
    assert peers.nearest_interval(10, 0.5) == 3
    assert peers.nearest_interval(10, 0.0) == 1


def test_names_and_medians_of_steps() -> None:
    names = step_names(["compute", "step", "step", "compute", "compute", "cfg"])
    assert names == ["compute", "step after a computed one", "step", "compute", "compute", "cfg after a computed one"]
    plain = Run(loop_ms=8, step_ms=[9, 2, 4], peak_bytes=100, num_graphs=0, account={"steps": ["plain"] * 3})
    account = {"steps": ["compute", "step", "step"], "cache_bytes": 7}
    cached = Run(loop_ms=4, step_ms=[9, 1, 2], peak_bytes=110, num_graphs=1, account=account)
    result = told({"plain": [plain], "ours": [cached]}, plain="plain")
    assert result["ours"]["speedup"] == 2
    assert result["ours"]["added_bytes"] == 10
    assert result["ours"]["step_ms"] == {"step": 1.5}
    assert result["plain"]["step_ms"] == {"plain": 3}


# -------------------------------------------------------------------------------------------------------- real classes


@pytest.mark.parametrize(
    ("name", "billions"),
    [("wan-1.3b-480p", 1.42), ("wan-14b-720p", 14.29), ("hunyuan-720p", 12.82), ("cogvideox-5b", 5.57)],
)
def test_the_configs_have_as_many_parameters_as_the_public_models(name: str, billions: float) -> None:
    transformer = build_transformer(MODELS[name], torch.device("meta"), torch.bfloat16)
    count = sum(parameter.numel() for parameter in transformer.parameters())
    assert count / 1e9 == pytest.approx(billions, abs=0.006)


def test_weights_are_finite_and_of_the_types_that_a_checkpoint_would_have() -> None:
    transformer = build_transformer(tiny(MODELS["wan-1.3b-480p"]), CPU, torch.bfloat16)
    types = {name: parameter.dtype for name, parameter in transformer.named_parameters()}
    assert types["blocks.0.attn1.to_q.weight"] == torch.bfloat16
    assert types["blocks.0.scale_shift_table"] == types["blocks.0.norm2.weight"] == torch.float32
    assert all(bool(parameter.isfinite().all()) for parameter in transformer.parameters())
    assert torch.get_default_dtype() == torch.float32


def test_noise_levels_are_read_without_computing() -> None:
    subject = tiny_subject("wan-1.3b-480p")
    calls: list[Any] = []
    subject.pipeline.transformer.patch_embedding.register_forward_hook(lambda *seen: calls.append(seen))
    levels = levels_of(subject.pipeline, subject.arguments)
    assert levels == subject.pipeline.scheduler.sigmas[:8].tolist()
    assert not calls


@pytest.mark.parametrize("cache", [peers.first_block_cache, peers.db_cache])
@pytest.mark.parametrize("name", FAMILY_NAMES)
def test_a_cache_skips_the_steps_it_is_told_and_leaves_nothing(name: str, cache: Any) -> None:
    subject = tiny_subject(name)
    arguments = subject.arguments
    generator = torch.Generator()
    plain = subject.pipeline(generator=generator.manual_seed(0), **arguments).frames
    blocks = peers.blocks_of(
        subject.pipeline.transformer, peers.row_for(subject.pipeline.transformer, subject.pipeline)
    )
    calls: list[Any] = []
    watching = blocks[1].norm1.register_forward_hook(lambda *seen: calls.append(seen))
    with cache(subject) as account:
        subject.pipeline(generator=generator.manual_seed(0), **arguments)
        num_computed = account()["choices"].count("#")
    watching.remove()
    num_branches = 2 if name == "wan-1.3b-480p" else 1
    assert len(calls) == num_branches * num_computed < num_branches * 8
    assert torch.equal(subject.pipeline(generator=generator.manual_seed(0), **arguments).frames, plain)
    assert not any("forward" in block.__dict__ or hasattr(block, "_diffusers_hook") for block in blocks)
