"""`mixcache bench` on the tiny pipeline: what is refused, what is written, what is resumed."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    UniPCMultistepScheduler,
)
from typer.testing import CliRunner

from mixcache import cli, generation
from mixcache.bench import meter, results
from mixcache.bench.command import Bench, BenchConfig, calibration_captions, flow_scheduler, held_out
from mixcache.bench.families import FAMILIES
from mixcache.bench.methods import Method, fewer_steps
from mixcache.store import Store

CAPTION = "a small red circle moving left on a plain black background"
DEFAULTS = {"height": 16, "width": 16, "num_frames": 5, "guidance_scale": 5.0, "max_sequence_length": 24}
FEW = ["--methods", "few", "--steps", "4", "--num-prompts", "1"]
runner = CliRunner()


@pytest.fixture(autouse=True)
def opened(monkeypatch: pytest.MonkeyPatch, make_pipeline: Callable[..., Any]) -> list[str]:
    """The tiny pipeline takes the place of every model; the names that were asked for."""
    names: list[str] = []

    def open_tiny(name: str) -> tuple[Any, dict[str, Any]]:
        names.append(name)
        return make_pipeline(), DEFAULTS

    monkeypatch.setattr(generation, "open_model", open_tiny)
    monkeypatch.setitem(FAMILIES, "few", lambda num_steps: [fewer_steps(3), fewer_steps(2)])
    monkeypatch.setattr(meter, "live_tensor_bytes", lambda device: 0)  # slow, and tested elsewhere
    return names


@pytest.fixture
def cut_off(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Makes the generation after so many, decoded or not, be interrupted; from then on they go through."""

    def after(number: int) -> None:
        left = [number]

        def interrupt(name: str) -> None:
            make = getattr(generation, name)

            def interrupted(*arguments: Any, **settings: Any) -> Any:
                left[0] -= 1
                if left[0] == -1:
                    raise KeyboardInterrupt
                return make(*arguments, **settings)

            monkeypatch.setattr(generation, name, interrupted)

        interrupt("generate")
        interrupt("final_latents")

    return after


def config(**settings: Any) -> BenchConfig:
    fields: dict[str, Any] = {"methods": ("few",), "prompts": (CAPTION,)}
    return BenchConfig(**fields | {"arguments": {"num_inference_steps": 4}} | settings)


def refused(*arguments: str) -> str:
    """What `bench` says on standard error when it ends with exit code 2."""
    result = runner.invoke(cli.app, ["bench", *arguments])
    assert result.exit_code == 2, result.output
    assert "Traceback" not in result.output
    return result.stderr


# ------------------------------------------------------------------------------------------------------ what is refused


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"methods": ("fewer-step",)}, r"unknown method 'fewer-step'; did you mean 'fewer-steps'\?"),
        ({"methods": ()}, "no method is named"),
        ({"scheduler": "uniqc"}, r"unknown scheduler 'uniqc'; did you mean 'unipc'\?"),
        ({"prompts": ()}, "there is no prompt to measure on"),
        ({"prompts": (CAPTION,) * 201}, "201 prompts are over the 200 of a run; --num-prompts N takes the first N"),
    ],
)
def test_a_config_that_cannot_be(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config(**settings)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--methods", "hindsigt"], "unknown method 'hindsigt'; did you mean 'hindsight'?"),
        (["--methods", "hindsight:eror=1"], "unknown setting of policy hindsight 'eror'; did you mean 'error'?"),
        (["--methods", ","], "no method is named"),
        (["--scheduler", "eulr"], "unknown scheduler 'eulr'; did you mean 'euler'?"),
        (["--size", "64"], "--size '64' is not WIDTHxHEIGHT"),
        (["--prompts", "none.txt"], "the prompts none.txt cannot be read: No such file or directory"),
        (["--prompts", "empty.txt"], "there is no prompt in empty.txt; write one a line"),
        (["--prompts", "many.txt"], "201 prompts are over the 200 of a run; --num-prompts N takes the first N"),
        (["--calibration-prompts", "none.txt"], "the prompts none.txt cannot be read"),
        (["--model", "folder"], "--prompts FILE is missing: only the built-in models bring captions of their own"),
        (["--model", "shapes-won"], "unknown model or folder 'shapes-won'; did you mean 'shapes-wan'?"),
        (["--out", "empty.txt"], "the folder empty.txt cannot be made: File exists"),
    ],
)
def test_bad_input_is_one_line_before_any_model_is_opened(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, opened: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty.txt").write_text("\n\n")
    (tmp_path / "many.txt").write_text(f"{CAPTION}\n" * 201)
    (tmp_path / "folder").mkdir()
    text = refused("--out", "out", "--methods", "few", *arguments)
    assert message in text
    assert text.count("\n") == 1
    assert opened == []


def test_a_number_of_prompts_without_end_is_refused(tmp_path: Path) -> None:
    assert "Invalid value for '--num-prompts'" in refused("--out", str(tmp_path), "--num-prompts", "100000")


def test_a_folder_with_another_run_is_not_touched(tmp_path: Path, opened: list[str]) -> None:
    (tmp_path / "results.json").write_text("precious")
    text = refused("--out", str(tmp_path), *FEW)
    assert f"{tmp_path} holds a run; --resume goes on with it, --force begins anew, --out names another" in text
    assert f"{tmp_path} holds results, but not the work to resume; --force begins anew" in refused(
        "--out", str(tmp_path), "--resume", *FEW
    )
    assert (tmp_path / "results.json").read_text() == "precious"
    (tmp_path / "results.json").unlink()
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "records.jsonl").write_text("")
    assert "holds a run" in refused("--out", str(tmp_path), *FEW)
    assert opened == []


@pytest.mark.parametrize(
    ("pipeline", "message"),
    [
        (SimpleNamespace(unet=None), "SimpleNamespace with NoneType is not supported"),
        (SimpleNamespace(transformer=object()), "SimpleNamespace with object is not supported"),
    ],
)
def test_a_pipeline_that_is_not_supported(
    pipeline: Any, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(generation, "open_model", lambda name: (pipeline, {}))
    text = refused("--out", str(tmp_path), *FEW)
    assert message in text
    assert text.count("\n") == 1


def test_a_plain_clip_with_a_nan_ends_it_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pipeline: Any
) -> None:
    pipeline.transformer.proj_out.weight.data.fill_(float("nan"))
    monkeypatch.setattr(generation, "open_model", lambda name: (pipeline, DEFAULTS))
    assert refused("--out", str(tmp_path), *FEW).endswith("mixcache: plain: the latents hold a NaN or an infinity\n")


# ---------------------------------------------------------------------------------------------- what is brought along


def test_captions_are_the_built_in_models_own() -> None:
    chosen = held_out("shapes-wan", 3)
    assert len(set(chosen)) == 3
    assert held_out("shapes-wan", 2) == chosen[:2]
    assert len(calibration_captions("shapes-wan", None)) == 4
    assert not set(calibration_captions("shapes-wan", None)) & set(held_out("shapes-wan", 50))
    assert calibration_captions("a folder", None) == ()
    assert calibration_captions("shapes-wan", ["a cat"]) == ("a cat",)


@pytest.mark.parametrize(
    ("name", "expected", "shift"),
    [
        ("unipc", UniPCMultistepScheduler, "flow_shift"),
        ("dpm++", DPMSolverMultistepScheduler, "flow_shift"),
        ("euler", FlowMatchEulerDiscreteScheduler, "shift"),
    ],
)
@pytest.mark.parametrize("own", ["unipc", "euler"])
def test_a_flow_scheduler_keeps_the_shift(
    make_pipeline: Callable[..., Any], name: str, expected: type, shift: str, own: str
) -> None:
    pipeline = make_pipeline(own)
    pipeline.scheduler = flow_scheduler(name, pipeline.scheduler)
    assert type(pipeline.scheduler) is expected
    assert pipeline.scheduler.config[shift] == 3.0
    pipeline.scheduler.set_timesteps(4)
    sigmas = [float(sigma) for sigma in pipeline.scheduler.sigmas]
    assert sigmas == sorted(sigmas, reverse=True)
    assert 0.99 < sigmas[0] <= 1
    assert len(sigmas) == 5


def test_a_flow_scheduler_is_for_flow_matching() -> None:
    with pytest.raises(ValueError, match="for models of flow matching; this pipeline has DDIMScheduler"):
        flow_scheduler("euler", DDIMScheduler())


# ------------------------------------------------------------------------------------------------------ what it does


def test_a_bench_writes_results_that_can_be_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, opened: list[str]
) -> None:
    """One method fails: it is told, and the others are measured."""

    def fails(case: Any) -> Any:
        raise OSError("no such weights")

    broken = Method(family="broken", attach=fails, origin="a package 1.0", is_peer=True)
    monkeypatch.setitem(FAMILIES, "broken", lambda num_steps: [broken])
    (tmp_path / "prompts.txt").write_text(f"a cat\n\n{CAPTION}\n")
    arguments = ["--prompts", str(tmp_path / "prompts.txt"), "--num-prompts", "1", "--scheduler", "euler"]
    methods = ["--steps", "6", "--methods", "few, broken,every_nth:granularities=cfg:predictor=line:num_warmup_steps=2"]
    out = tmp_path / "new" / "bench"
    ended = runner.invoke(cli.app, ["bench", "--out", str(out), *arguments, *methods])
    assert ended.exit_code == 0, ended.output
    assert f"results   {out / 'results.json'}\nreport    {out / 'report.html'}\n" in ended.stdout
    assert "failed    broken: OSError: no such weights\n" in ended.stderr
    assert opened == ["shapes-wan"] * 2  # once more after the failure

    result = results.load(out / "results.json")
    assert result["prompts"] == ["a cat"]
    assert result["arguments"] == DEFAULTS | {"num_inference_steps": 6}
    assert result["scheduler"] == "FlowMatchEulerDiscreteScheduler"
    assert len(result["calibration_prompts"]) == 4
    assert result["methods"]["broken"]["failure"] == "OSError: no such weights"
    rows = {row["method"]: row for row in result["summary"]}
    cfg = "every_nth, granularities cfg, predictor line, num_warmup_steps 2"
    assert [*rows] == ["plain", *(f"fewer steps, {count} steps" for count in (3, 2)), cfg]
    assert rows["fewer steps, 3 steps"]["ideal"] == 2.0
    assert rows[cfg]["steps"]["cfg"] > 0
    for name in ("results.md", "quality.png", "report.html"):
        assert (out / name).stat().st_size > 1000
    assert "| broken |" in (out / "results.md").read_text()


def test_a_missing_extra_is_told_and_where_nothing_is_left_to_measure_it_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "cache_dit", None)  # as if it were not installed
    ended = runner.invoke(
        cli.app, ["bench", "--out", str(tmp_path), "--methods", "db-cache", "--steps", "4", "--num-prompts", "1"]
    )
    assert ended.exit_code == 1, ended.output
    assert "cache-dit" in ended.stderr
    assert "mixcache[bench]" in ended.stderr
    assert results.load(tmp_path / "results.json")["summary"] == []


def test_an_interrupted_bench_is_resumed(tmp_path: Path, cut_off: Callable[[int], None]) -> None:
    arguments = ["bench", "--out", str(tmp_path), *FEW]
    cut_off(6)  # in the survey: a warm-up, plain, the first method with a look after it; then a warm-up and plain
    ended = runner.invoke(cli.app, arguments)
    assert ended.exit_code == 130
    assert "Interrupted; the same command with --resume goes on." in ended.stderr
    assert not (tmp_path / "results.json").exists()
    kept = (tmp_path / "work" / "records.jsonl").read_text()
    assert [json.loads(line)["identity"][0] for line in kept.splitlines()] == ["case", "survey"]
    assert "holds a run; --resume goes on with it" in refused(*arguments[1:])
    resumed = runner.invoke(cli.app, [*arguments, "--resume"])
    assert resumed.exit_code == 0, resumed.output
    assert len(results.load(tmp_path / "results.json")["records"]) == 3
    assert (tmp_path / "work" / "records.jsonl").read_text().startswith(kept)

    before = (tmp_path / "results.json").read_text()
    assert runner.invoke(cli.app, [*arguments, "--resume"]).exit_code == 0
    assert json.loads((tmp_path / "results.json").read_text())["records"] == json.loads(before)["records"]


def test_with_force_a_run_of_the_same_case_is_resumed_and_another_begins_anew(
    tmp_path: Path, cut_off: Callable[[int], None]
) -> None:
    (tmp_path / "results.json").write_text("of another day")
    arguments = ["bench", "--out", str(tmp_path), *FEW, "--force"]
    cut_off(6)
    assert runner.invoke(cli.app, arguments).exit_code == 130
    Store(tmp_path / "work" / "records.jsonl").keep(["mark"], "of the first run")
    kept = (tmp_path / "work" / "records.jsonl").read_text()
    resumed = runner.invoke(cli.app, [*arguments, "--resume"])
    assert resumed.exit_code == 0, resumed.output
    assert (tmp_path / "work" / "records.jsonl").read_text().startswith(kept)
    changed = runner.invoke(cli.app, [*arguments, "--resume", "--seed", "1"])
    assert changed.exit_code == 0, changed.output
    assert results.load(tmp_path / "results.json")["seed"] == 1
    assert not Store(tmp_path / "work" / "records.jsonl").has(["mark"])


@pytest.mark.parametrize(
    ("changed", "name"),
    [
        ({"arguments": {"num_inference_steps": 5}}, "arguments"),
        ({"seed": 3}, "seed"),
        ({"scheduler": "euler"}, "scheduler"),
        ({"prompts": ("a cat",)}, "prompts"),
        ({"calibration_prompts": ("a cat",)}, "calibration_prompts"),
        ({"model": "another"}, "model"),
    ],
)
def test_what_is_resumed_must_be_the_same(tmp_path: Path, changed: dict[str, Any], name: str) -> None:
    Bench(config(), tmp_path)
    Bench(config(), tmp_path, resume=True)
    Bench(config(methods=("few", "hindsight"), num_repeats=2), tmp_path, resume=True)  # more of the same
    with pytest.raises(ValueError, match=f"holds a run of another {name} .*begins anew, --out names another"):
        Bench(config(**changed), tmp_path, resume=True)
    Bench(config(**changed), tmp_path, force=True)
    Bench(config(**changed), tmp_path, resume=True)


def test_force_removes_a_run_and_nothing_else(tmp_path: Path) -> None:
    mine = tmp_path / "work" / "thesis.txt"
    mine.parent.mkdir()
    mine.write_text("years")
    Bench(config(), tmp_path, force=True)
    assert mine.read_text() == "years"


def test_weights_and_code_must_be_the_same_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make_pipeline: Callable[..., Any]
) -> None:
    Bench(config(), tmp_path)
    monkeypatch.setattr("mixcache.bench.command.code_hash", lambda: "other")
    with pytest.raises(ValueError, match="holds a run of another source"):
        Bench(config(), tmp_path, resume=True)
    monkeypatch.setattr(generation, "open_model", lambda name: (make_pipeline(seed=1), DEFAULTS))
    with pytest.raises(ValueError, match="holds a run of another weights"):
        Bench(config(), tmp_path, resume=True)
