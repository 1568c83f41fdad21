"""The command line: its errors are one line and exit code 2, and it leaves what it says."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from mixcache import cli, generation, zoo
from mixcache.calibration import Measured
from mixcache.hosts.diffusers.rows import MODELS
from mixcache.policies.budget import num_computed_for
from mixcache.profiles import Profile, profile_for
from mixcache.trace import Trace
from mixcache.zoo import world

CAPTION = "a small red circle moving left on a plain black background"
runner = CliRunner()


def failed(arguments: list[str]) -> str:
    """The error text of a call that must end with exit code 2 and without a traceback."""
    result = runner.invoke(cli.app, arguments)
    assert result.exit_code == 2, result.output
    assert "Traceback" not in result.output
    return result.stderr


@pytest.fixture
def small_world(monkeypatch: pytest.MonkeyPatch) -> None:
    """Clips of 5 frames of 32 x 32 where none are asked for."""
    monkeypatch.setattr(world, "SIDE", 32)
    monkeypatch.setattr(world, "NUM_FRAMES", 5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["demo", "--policy", "mixcach"], "mixcache: unknown policy 'mixcach'; did you mean 'mixcache'?"),
        (
            ["demo", "--policy", "mixcache", "--set", "delta_3=0.1"],
            "unknown setting of policy mixcache 'delta_3'; did you mean 'delta_2'?",
        ),
        (
            ["demo", "--policy", "mixcache", "--set", "delta_1=50"],
            "thresholds must be finite with 0 <= delta_1 <= delta_2",
        ),
        (["demo", "--set", "delta_1"], "setting 'delta_1' is not NAME=VALUE"),
        (["demo", "--speedup", "2", "--quality", "40"], "speedup= and quality= are both given"),
        (["demo", "--speedup", "0.5"], "speedup=0.5 must be a finite number of at least 1"),
        (["demo", "--speedup", "nan"], "speedup=nan must be a finite number of at least 1"),
        (["demo", "--speedup", "fast"], "Invalid value for '--speedup'"),
        (["demo", "--policy", "hindsight", "--speedup", "2"], "unknown setting of policy hindsight 'speedup'"),
        (
            ["demo", "--quality", "hihg"],
            "unknown quality 'hihg'; did you mean 'high'? (there are: high, balanced, fast)",
        ),
        (["demo", "--quality", "inf"], "quality=inf must be high, balanced or fast, or a number of decibels"),
        (["demo", "--speedup", "2", "--profile", "none.json"], "the profile none.json cannot be read"),
        (
            ["generate", CAPTION, "--speedup", "99", "--size", "32x32", "--frames", "1"],
            "speedup=99 cannot be reached with 50 steps; they allow 1 to ",
        ),
        (["plan", "--speedup", "99"], "speedup=99 cannot be reached with 50 steps; they allow 1 to "),
        (["plan", "--speedup", "2", "--steps", "4"], "speedup=2 with 4 steps would only break the clip"),
        (["plan", "--speedup", "2", "--quality", "high"], "speedup= and quality= are both given"),
        (["plan", "--profile", "none.json"], "the profile none.json cannot be read"),
        (["calibrate", "--out", "profile.txt"], "profile.txt must end in .json"),
        (["calibrate", "--out", "profile.json", "--prompts", "none.txt"], "the prompts none.txt cannot be read"),
        (["calibrate", "--out", "profile.json", "--num-prompts", "0"], "Invalid value for '--num-prompts'"),
        (["calibrate", "--out", "profile.json", "--model", "shapes-won"], "did you mean 'shapes-wan'?"),
        (["generate", CAPTION, "--size", "64"], "--size '64' is not WIDTHxHEIGHT, such as 832x480"),
        (["generate", CAPTION, "--out", "clip.avi"], "clip.avi must end in .mp4"),
        (["generate", CAPTION, "--plain", "--trace", "t.jsonl"], "--trace needs the cache, which --plain leaves out"),
        (["generate", CAPTION, "--policy", "replay"], "trace= is empty"),
        (
            ["generate", CAPTION, "--policy", "replay", "--set", "trace=none.jsonl"],
            "the trace none.jsonl cannot be read",
        ),
        (["generate", CAPTION, "--model", "shapes-won"], "did you mean 'shapes-wan'?"),
        (["generate", CAPTION, "--image", "none.png"], "the image none.png cannot be read: No such file or directory"),
        (["generate", CAPTION, "--video", "none.mp4"], "the video none.mp4 cannot be read: No such file or directory"),
        (["calibrate", "--out", "profile.json", "--image", "none.png"], "the image none.png cannot be read"),
        (["bench", "--out", "bench", "--image", "none.png"], "the image none.png cannot be read"),
        (["generate", CAPTION, "--dtype", "float31"], "unknown dtype 'float31'; did you mean 'float32'?"),
        (["demo", "--dtype", "float31"], "unknown dtype 'float31'; did you mean 'float32'?"),
        (["calibrate", "--out", "profile.json", "--device", "toaster"], "device 'toaster' is not on this machine"),
        (["demo", "--stepz", "3"], "No such option"),
        (["demo", "--prompts", "0"], "Invalid value for '--prompts'"),
    ],
)
def test_bad_input_is_one_clear_error(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    text = failed(arguments)
    assert message in text
    assert list(tmp_path.rglob("*.mp4")) == []


def test_an_own_error_is_exactly_one_line() -> None:
    assert failed(["demo", "--policy", "mixcach"]).count("\n") == 1


def test_a_folder_that_is_no_pipeline(tmp_path: Path) -> None:
    out = str(tmp_path / "clip.mp4")
    assert "is no diffusers pipeline: it has no model_index.json" in failed(
        ["generate", CAPTION, "--model", str(tmp_path), "--out", out]
    )
    (tmp_path / "model_index.json").write_text("{}")
    assert "cannot be loaded as a pipeline" in failed(["generate", CAPTION, "--model", str(tmp_path), "--out", out])


def test_an_output_that_cannot_be_written_is_found_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("generation began")

    monkeypatch.setattr(generation, "generate", never)
    (tmp_path / "file").write_text("")
    assert "cannot be made" in failed(["demo", "--out", str(tmp_path / "file" / "demo")])
    assert "cannot be made" in failed(["generate", CAPTION, "--out", str(tmp_path / "file" / "clip.mp4")])
    (tmp_path / "clip.mp4").write_bytes(b"precious")
    assert "exists; --force overwrites it" in failed(["generate", CAPTION, "--out", str(tmp_path / "clip.mp4")])
    assert (tmp_path / "clip.mp4").read_bytes() == b"precious"


@pytest.mark.usefixtures("small_world")
def test_demo_writes_films_and_reports(tmp_path: Path) -> None:
    out = tmp_path / "demo"
    result = runner.invoke(cli.app, ["demo", "--prompts", "2", "--steps", "10", "--speedup", "1.5", "--out", str(out)])
    assert result.exit_code == 0, result.output
    assert re.search(r"^speed-up  \d+\.\d\dx of the denoising loop \(1\.5x wished\)$", result.output, re.MULTILINE)
    assert "1.50× wished" in (out / "report.html").read_text()
    assert str(out / "report.html") in result.output
    report = json.loads((out / "report.json").read_text())
    assert [clip["seed"] for clip in report["clips"]] == [0, 1]
    assert sum(report["granularity_counts"].values()) == 20
    assert report["interrupted"] is False
    for key in ("speedup", "ssim", "peak_memory_bytes", "settings", "versions"):
        assert report[key] is not None
    for clip in report["clips"]:
        assert [entry["step"] for entry in clip["trace"]] == list(range(10))
        for kind in ("plain", "cached", "side_by_side"):
            assert (out / clip[kind]).stat().st_size > 1000
        assert clip["caption"] in (out / "report.html").read_text()
    assert "exists; --force" in failed(["demo", "--out", str(out)])


@pytest.mark.usefixtures("small_world")
def test_an_interrupted_demo_keeps_the_finished_clips(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    generate = generation.generate

    def interrupted_at_the_second_clip(*arguments: Any, **settings: Any) -> Any:
        if len(made) == 4:  # warm-up, plain and cached of the first clip, plain of the second
            raise KeyboardInterrupt
        made.append(generate(*arguments, **settings))
        return made[-1]

    monkeypatch.setattr(generation, "generate", interrupted_at_the_second_clip)
    result = runner.invoke(cli.app, ["demo", "--prompts", "3", "--steps", "6", "--out", str(tmp_path)])
    assert result.exit_code == 130
    assert "Interrupted: 1 of 3 clips are finished." in result.output
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["interrupted"] is True
    assert len(report["clips"]) == 1
    assert (tmp_path / report["clips"][0]["side_by_side"]).exists()
    assert "interrupted" in (tmp_path / "report.html").read_text()


@pytest.mark.usefixtures("small_world")
def test_generate_writes_a_film_and_a_trace_that_replays(tmp_path: Path) -> None:
    film, trace = tmp_path / "clip.mp4", tmp_path / "trace.jsonl"
    common = ["generate", CAPTION, "--steps", "10", "--force", "--out", str(film)]
    cached = ["--policy", "every_nth", "--set", "period=3", "--set", "num_warmup_steps=2", "--trace", str(trace)]
    result = runner.invoke(cli.app, common + cached)
    assert result.exit_code == 0, result.output
    first = film.read_bytes()
    granularities = [entry.granularity.value for entry in Trace.load(trace)]
    assert granularities == [*["compute"] * 3, "step", "step", "compute", "step", "step", "compute", "compute"]
    replayed = runner.invoke(cli.app, [*common, "--policy", "replay", "--set", f"trace={trace}"])
    assert replayed.exit_code == 0, replayed.output
    assert film.read_bytes() == first


@pytest.mark.usefixtures("small_world")
def test_generate_says_wish_and_delivered(tmp_path: Path) -> None:
    common = ["generate", CAPTION, "--steps", "10", "--force", "--out", str(tmp_path / "clip.mp4")]
    result = runner.invoke(cli.app, [*common, "--speedup", "1.5"])
    assert result.exit_code == 0, result.output
    assert re.search(
        r"^speed-up  \d+\.\d\dx of the denoising loop \(1\.5x wished\), as its", result.output, re.MULTILINE
    )
    assert re.search(r"^steps     \d+ compute(, \d+ step)?; ", result.output, re.MULTILINE)  # of no others
    plain = runner.invoke(cli.app, [*common, "--plain"])
    assert plain.exit_code == 0, plain.output
    assert "speed-up" not in plain.output


def test_generate_takes_a_pipeline_folder(tmp_path: Path, pipeline: Any) -> None:
    pipeline.save_pretrained(tmp_path / "model")
    arguments = ["--size", "16x16", "--frames", "5", "--steps", "3", "--out", str(tmp_path / "clip.mp4")]
    result = runner.invoke(cli.app, ["generate", "a red circle", "--model", str(tmp_path / "model"), *arguments])
    assert result.exit_code == 0, result.output
    assert (tmp_path / "clip.mp4").exists()


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Pipelines of three kinds, a picture and a film, as files."""
    from conformance import wan

    from mixcache.report.video import write_mp4

    folder = tmp_path_factory.mktemp("models")
    classes = {"text": "WanPipeline", "image": "WanImageToVideoPipeline", "video": "WanVideoToVideoPipeline"}
    for kind, name in classes.items():
        expands = {"expand_timesteps": True} if kind == "image" else {}
        wan.build_pipeline(name, **expands).save_pretrained(folder / kind)
    wan.picture(0, 40, 48).save(folder / "picture.png")
    write_mp4(np.stack([np.asarray(p) for p in wan.film(0, 9, 48, 64)]) / 255, folder / "film.mp4")
    (folder / "no picture.png").write_text("no picture")
    return {path.stem: path for path in folder.iterdir()}


SMALL = ["--size", "32x32", "--frames", "5", "--steps", "4", "--guidance", "3", "--negative-prompt", "a square"]


@pytest.mark.parametrize("kind", ["image", "video"])
def test_generate_passes_a_picture_or_a_film_on(
    kind: str, folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, Any] = {}
    generate = generation.generate

    def watched(pipeline: Any, prompt: str, **arguments: Any) -> Any:
        asked.update(arguments)
        return generate(pipeline, prompt, **arguments)

    monkeypatch.setattr(generation, "generate", watched)
    given = {"image": folders["picture"], "video": folders["film"]}[kind]
    out = tmp_path / "clip.mp4"
    model = ["--model", str(folders[kind]), f"--{kind}", str(given), "--dtype", "float32", "--device", "cpu"]
    result = runner.invoke(cli.app, ["generate", "a circle", *model, *SMALL, "--out", str(out)])
    assert result.exit_code == 0, result.output
    assert out.stat().st_size > 500
    assert asked["negative_prompt"] == "a square"
    pictures = asked["video"] if kind == "video" else [asked["image"]]
    assert [picture.size for picture in pictures] == [(32, 32)] * (5 if kind == "video" else 1)
    assert ("num_frames" in asked) == (kind == "image")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "image"], "WanImageToVideoPipeline needs an image and none was given; give image=, or --image"),
        (["--model", "video"], "WanVideoToVideoPipeline needs a video and none was given; give video=, or --video"),
        (["--model", "text", "--image", "picture"], "WanPipeline takes no image (--image); leave it out"),
        (["--model", "image", "--image", "no picture"], "no picture.png cannot be read: it is no picture"),
        (["--model", "video", "--video", "no picture"], "no picture.png cannot be read: it is no film"),
        (["--model", "video", "--frames", "5"], "WanVideoToVideoPipeline takes no num_frames (--frames); leave it out"),
    ],
)
@pytest.mark.parametrize("verb", ["generate", "plain", "calibrate", "bench"])
def test_what_a_pipeline_needs_is_told_before_it_runs(
    verb: str,
    arguments: list[str],
    message: str,
    folders: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("the model ran")

    for name in ("generate", "final_latents"):
        monkeypatch.setattr(generation, name, never)
    (tmp_path / "prompts.txt").write_text("a circle")
    prompts = ["--prompts", str(tmp_path / "prompts.txt")]
    begins = {
        "generate": ["generate", "a circle", "--out", str(tmp_path / "clip.mp4")],
        "plain": ["generate", "a circle", "--plain", "--out", str(tmp_path / "clip.mp4")],
        "calibrate": ["calibrate", *prompts, "--out", str(tmp_path / "profile.json")],
        "bench": ["bench", *prompts, "--methods", "hindsight", "--out", str(tmp_path / "bench")],
    }
    given = [str(folders[word]) if word in folders else word for word in arguments]
    text = failed([*begins[verb], *given])
    assert message in text
    assert text.count("\n") == 1


def test_a_plain_clip_is_made_by_pipelines_that_are_not_supported(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mixcache.hosts.diffusers.rows.MODELS", ())
    common = ["generate", "a circle", "--model", str(folders["text"]), *SMALL, "--out", str(tmp_path / "clip.mp4")]
    assert "WanPipeline with WanTransformer3DModel is not supported" in failed(common)
    result = runner.invoke(cli.app, [*common, "--plain"])
    assert result.exit_code == 0, result.output
    assert (tmp_path / "clip.mp4").exists()


def test_calibrate_takes_a_picture_and_goes_on_where_it_was_cut_off(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The picture is another object each time, and the same one by its pixels."""
    (tmp_path / "prompts.txt").write_text("a circle")
    out = str(tmp_path / "profile.json")
    begin = ["calibrate", "--model", str(folders["image"]), "--prompts", str(tmp_path / "prompts.txt"), "--out", out]
    small = ["--image", str(folders["picture"]), "--size", "32x32", "--frames", "5", "--steps", "6"]
    monkeypatch.setattr("mixcache.calibration.IMPACT_PLACES", (0.375,))
    with monkeypatch.context() as patched:
        patched.setattr(Measured, "_impact", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        stopped = runner.invoke(cli.app, [*begin, *small, "--impacts"])
    assert stopped.exit_code == 130
    assert f"Interrupted; the same command goes on from {out}.partial." in stopped.output
    assert "is of another calibration" in failed([*begin, *small, "--impacts", "--negative-prompt", "a square"])
    result = runner.invoke(cli.app, [*begin, *small, "--impacts"])
    assert result.exit_code == 0, result.output
    assert set(Profile.load(out).impacts) == {"step", "cfg", "block"}
    film = ["--quality", "fast", "--profile", out, "--out", str(tmp_path / "clip.mp4")]
    clip = runner.invoke(cli.app, ["generate", "a circle", "--model", str(folders["image"]), *small, *film])
    assert clip.exit_code == 0, clip.output


def test_the_demo_chooses_as_the_library_does(pipeline: Any) -> None:
    import mixcache
    from mixcache.demo import DemoConfig

    with mixcache.enable(pipeline) as handle:
        assert DemoConfig().policy == handle.config.policy_name
    assert DemoConfig().settings == {}


def test_models_lists_what_is_supported() -> None:
    result = runner.invoke(cli.app, ["models"], env={"COLUMNS": "200"})
    assert result.exit_code == 0
    for name in ("WanTransformer3DModel", "WanPipeline", "step, cfg, block", "shapes-wan"):
        assert name in result.output


@pytest.mark.parametrize("columns", ["20", "80", "1000"])
def test_every_name_is_whole_whatever_the_width(columns: str) -> None:
    output = runner.invoke(cli.app, ["models"], env={"COLUMNS": columns}).output.split()
    assert {name for row in MODELS for name in (row.transformer, *row.pipelines)} <= set(output)


def test_plan_prints_the_schedule_and_the_frontier() -> None:
    """What is expected at 20 steps: from the shipped profile of the model."""
    shown = runner.invoke(cli.app, ["plan", "--speedup", "2", "--steps", "20"])
    assert shown.exit_code == 0, shown.output
    assert "from      profile of shapes-wan; a run goes by what it sees itself" in shown.output
    schedule = re.search(r"^schedule  ([#s]+)$", shown.output, re.MULTILINE)
    assert schedule is not None
    rows = re.findall(r"^ +([\d.]+)x +(\d+) computed  ([#s]+)$", shown.output, re.MULTILINE)
    assert [float(speedup) for speedup, _, _ in rows] == [1.25, 1.5, 1.75, 2.0, 2.5, 3.0, 4.0]
    share = profile_for(zoo.load("shapes-wan").transformer).cached_share
    for speedup, num_computed, letters in rows:
        assert len(letters) == 20
        assert letters.count("#") == int(num_computed)
        assert 0 <= int(num_computed) - num_computed_for(float(speedup), 20, share) <= 2
    assert schedule[1] == rows[3][2]


def test_plan_of_a_model_that_nothing_is_known_of(folders: dict[str, Path]) -> None:
    shown = runner.invoke(cli.app, ["plan", "--model", str(folders["text"]), "--steps", "12", "--quality", "high"])
    assert shown.exit_code == 0, shown.output
    assert "from      the prior of the built-in models" in shown.output
    few = runner.invoke(cli.app, ["plan", "--model", str(folders["text"]), "--steps", "6"])
    assert few.output.splitlines()[-1] == "frontier"  # so few steps leave nothing to wish for


def test_calibrate_writes_a_profile_that_generate_takes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a tiny trajectory: 16 steps of one frame; the file of prompts has an empty line."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "prompts.txt").write_text(f"{CAPTION}\n\n")
    small = ["--size", "32x32", "--frames", "1", "--steps", "16"]
    made = runner.invoke(cli.app, ["calibrate", "--prompts", "prompts.txt", "--out", "profile.json", *small])
    assert made.exit_code == 0, made.output
    profile = Profile.load("profile.json")
    assert profile.provenance["prompts"] == [CAPTION]
    assert [row[:2] for row in profile.psnrs] == [[0.25, 16], [0.6, 16]]
    shown = [f"clip      error {row[0]:g}, 16 steps: {row[2]:.1f} dB" for row in profile.psnrs]
    assert made.output.splitlines()[-3:] == ["profile   profile.json", *shown]
    assert not (tmp_path / "profile.json.partial").exists()
    assert "exists; --force overwrites it" in failed(["calibrate", "--out", "profile.json"])
    for wish in (["--speedup", "1.2"], ["--quality", f"{profile.psnrs[0][2] - 8:.3f}"]):
        clip = runner.invoke(cli.app, ["generate", CAPTION, *wish, "--profile", "profile.json", "--force", *small])
        assert clip.exit_code == 0, clip.output
    plan = runner.invoke(cli.app, ["plan", "--quality", "balanced", "--steps", "16", "--profile", "profile.json"])
    assert f"quality   {profile.foretold(0.4, 16)}, at the limit with which it begins" in plan.output
    (tmp_path / "empty.txt").write_text("\n\n")
    assert "there is no prompt in empty.txt" in failed(["calibrate", "--prompts", "empty.txt", "--out", "other.json"])
