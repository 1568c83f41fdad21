"""A benchmark of the tiny pipeline: what is measured, what fails and why, and what a run that was cut off keeps."""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import math
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mixcache import generation
from mixcache.bench import meter
from mixcache.bench import run as run_module
from mixcache.bench.methods import PLAIN, Case, Method, cadence, fewer_steps, policy_method
from mixcache.bench.run import Benchmark, same
from mixcache.generation import Generated
from mixcache.store import Store

ARGUMENTS = {
    "height": 16,
    "width": 16,
    "num_frames": 5,
    "num_inference_steps": 8,
    "guidance_scale": 5.0,
    "max_sequence_length": 24,
}
PROMPTS = [f"a small {colour} circle moving left on a plain black background" for colour in ("red", "blue")]
FEWER, STEP = fewer_steps(4), cadence("step", 2, "reuse")
MakeBenchmark = Callable[..., Benchmark]


def peer(family: str, during: Callable[[Any], None], after: Callable[[Any], None]) -> Method:
    """Does something to the transformer while it is on, and something when it is taken off."""

    @contextlib.contextmanager
    def attach(case: Case) -> Iterator[Any]:
        during(case.pipeline.transformer)
        try:
            yield dict
        finally:
            after(case.pipeline.transformer)

    return Method(family=family, attach=attach, origin="a test", is_peer=True)


def scale_by(factor: float) -> Callable[[Any], None]:
    def scale(transformer: Any) -> None:
        with torch.no_grad():
            transformer.proj_out.weight.mul_(factor)

    return scale


def raises(_: Any) -> None:
    raise NotImplementedError("needs a U-Net\nand more lines")


def unused(_: Any) -> None:
    pass


@pytest.fixture(autouse=True)
def memory(monkeypatch: pytest.MonkeyPatch) -> list[torch.Tensor]:
    """All that a gauge sees: going through every object is slow, and tested elsewhere."""
    held: list[torch.Tensor] = []
    monkeypatch.setattr(meter, "live_tensor_bytes", lambda device: sum(tensor.nbytes for tensor in held))
    return held


@pytest.fixture
def loads() -> list[Any]:
    """Every pipeline that a benchmark has loaded."""
    return []


@pytest.fixture
def make_benchmark(make_pipeline: Callable[..., Any], loads: list[Any], tmp_path: Path) -> MakeBenchmark:
    """A benchmark in a folder that is the same for all of a test."""

    def load() -> Any:
        loads.append(make_pipeline())
        return loads[-1]

    def build(prompts: list[str] = PROMPTS, **settings: Any) -> Benchmark:
        store = Store(tmp_path / "work" / "records.jsonl")
        return Benchmark(load, ARGUMENTS, prompts, ("to calibrate on",), seed=7, store=store, **settings)

    return build


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The prompt of every clip that was generated, decoded or not."""
    prompts: list[str] = []

    def count(name: str) -> None:
        make = getattr(generation, name)

        def counted(pipeline: Any, prompt: str, **arguments: Any) -> Any:
            prompts.append(prompt)
            return make(pipeline, prompt, **arguments)

        monkeypatch.setattr(generation, name, counted)

    count("generate")
    count("final_latents")
    return prompts


# ----------------------------------------------------------------------------------------------------------- measuring


def test_every_method_is_measured_on_every_prompt(make_benchmark: MakeBenchmark, made: list[str]) -> None:
    benchmark = make_benchmark()
    told: list[tuple[int, int]] = []
    records = benchmark.run([FEWER, STEP], lambda done, total: told.append((done, total)))
    assert [(r.method, r.prompt, r.seed) for r in records] == [
        (method.name, prompt, 7 + index) for method in (PLAIN, FEWER, STEP) for index, prompt in enumerate(PROMPTS)
    ]
    assert made == [PROMPTS[0], *[PROMPTS[0]] * 4, *[PROMPTS[1]] * 4]  # a warm-up, then plain on both sides
    assert told == [(2, 4), (4, 4)]
    plain, fewer, step = records[::2]
    assert (plain.psnr_db, plain.ssim, plain.speedup, plain.ideal_speedup) == (None, 1.0, 1.0, 1.0)
    assert plain.work == "########"
    assert plain.granularity_counts == {}
    assert plain.cache_peak_bytes is plain.peak_memory_bytes is None
    assert fewer.ideal_speedup == 2.0
    assert fewer.work == "####"
    # 4 steps of warm-up, then of steps 4 to 6 the cadence computes 4 and 6; 7 is the cool-down
    assert (step.schedule, step.work) == ("#####s##", "#####.##")
    assert step.ideal_speedup == pytest.approx(8 / 7)
    assert step.granularity_counts["step"] == 1
    assert step.cache_peak_bytes is not None
    assert step.cache_peak_bytes > 0
    for record in (fewer, step):
        assert record.psnr_db is not None
        assert record.ssim < 1
    for record in records:
        assert min(record.denoising_seconds, record.encoding_seconds, record.decoding_seconds) > 0
    assert torch.equal(  # the plain weights are still there
        benchmark.pipeline.transformer.proj_out.weight, make_benchmark().pipeline.transformer.proj_out.weight
    )


def test_a_speedup_is_the_mean_time_of_the_plain_clips_around_it(
    make_benchmark: MakeBenchmark, monkeypatch: pytest.MonkeyPatch
) -> None:
    seconds = iter([10.0, 4.0, 6.0, 14.0])  # plain, two methods, plain
    generate = generation.generate

    def timed(*arguments: Any, **settings: Any) -> Generated:
        return dataclasses.replace(generate(*arguments, **settings), denoising_seconds=next(seconds))

    monkeypatch.setattr(generation, "generate", timed)
    benchmark = make_benchmark(PROMPTS[:1])
    records = {record.method: record for record in benchmark.run([FEWER, STEP])}
    assert records[FEWER.name].speedup == 3.0
    assert records[STEP.name].speedup == 2.0
    assert (records["plain"].denoising_seconds, records["plain"].speedup) == (10.0, 1.0)
    assert benchmark.pace() == [[10.0, 14.0]]


def test_each_prompt_and_repeat_begins_elsewhere_in_the_list(
    make_benchmark: MakeBenchmark, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_module, "GROUP", 2)
    order: list[str] = []
    generate = Benchmark.generate

    def noted(self: Benchmark, method: Method, *arguments: Any) -> Any:
        order.append(method.setting)
        return generate(self, method, *arguments)

    monkeypatch.setattr(Benchmark, "generate", noted)
    methods = [fewer_steps(count) for count in (2, 3, 4, 5)]
    records = make_benchmark(PROMPTS[:1], num_repeats=2).run(methods)
    first, second, third, fourth = (method.setting for method in methods)
    assert order == ["", first, second, "", third, fourth, "", "", third, fourth, "", first, second, ""]
    assert [(r.method, r.repeat) for r in records[:4]] == [
        ("plain", 0),
        ("plain", 1),
        ("fewer steps, 2 steps", 0),
        ("fewer steps, 2 steps", 1),
    ]


def test_a_few_frames_of_the_first_prompt_are_kept(make_benchmark: MakeBenchmark) -> None:
    benchmark = make_benchmark()
    benchmark.run([FEWER])
    kept = sorted(path.name for path in benchmark.folder.glob("*.npy"))
    assert kept == ["frames fewer steps, 4 steps.npy", "frames plain.npy"]
    frames = np.load(benchmark.frames_path("plain"))
    assert frames.shape == (5, 16, 16, 3)
    assert frames.dtype == np.uint8
    assert benchmark.frames_path("../a: b/c").parent == benchmark.folder


# -------------------------------------------------------------------------------------------------------------- survey


def test_a_method_that_cannot_be_put_on_fails_with_the_reason(make_benchmark: MakeBenchmark, loads: list[Any]) -> None:
    benchmark = make_benchmark()
    broken = peer("broken", raises, unused)
    told: list[tuple[int, int]] = []
    survey = benchmark.survey([broken, FEWER], lambda done, total: told.append((done, total)))
    assert survey[broken.name] == {"memory_added_bytes": None, "failure": "NotImplementedError: needs a U-Net"}
    assert survey[FEWER.name]["failure"] is None
    assert told == [(1, 2), (2, 2)]
    assert benchmark.pipeline is loads[-1]
    assert len(loads) == 2  # a fresh one after the failure


@pytest.mark.parametrize(
    ("during", "after", "reason"),
    [
        (unused, scale_by(1.5), "leaves the pipeline changed: a plain clip after it is another one"),
        (unused, scale_by(math.nan), "leaves the pipeline changed: a plain clip after it is another one"),
        (unused, lambda transformer: delattr(transformer, "proj_out"), "leaves the pipeline broken: AttributeError: "),
        (scale_by(math.nan), scale_by(math.nan), "ArithmeticError: spoils: the latents hold a NaN or an infinity"),
    ],
)
def test_a_method_that_spoils_the_pipeline_is_found_and_the_next_has_a_fresh_one(
    make_benchmark: MakeBenchmark, loads: list[Any], during: Any, after: Any, reason: str
) -> None:
    benchmark = make_benchmark(PROMPTS[:1])
    spoils = peer("spoils", during, after)
    survey = benchmark.survey([spoils, FEWER])
    assert survey["spoils"]["failure"].startswith(reason)
    assert survey[FEWER.name]["failure"] is None
    assert len(loads) == 2
    assert torch.isfinite(benchmark.pipeline.transformer.proj_out.weight).all()


def test_a_method_that_restores_what_it_changed_is_sound(make_benchmark: MakeBenchmark, loads: list[Any]) -> None:
    benchmark = make_benchmark(PROMPTS[:1])
    doubles = peer("doubles", scale_by(2.0), scale_by(0.5))
    assert benchmark.survey([doubles])["doubles"]["failure"] is None
    assert len(loads) == 1
    record = benchmark.run([doubles])[-1]
    assert record.psnr_db is not None
    assert (record.ideal_speedup, record.work) == (1.0, "########")


def test_one_setting_of_each_family_is_surveyed(make_benchmark: MakeBenchmark) -> None:
    survey = make_benchmark(PROMPTS[:1]).survey([STEP, cadence("step", 3, "reuse"), FEWER])
    assert [fact["failure"] for fact in survey.values()] == [None, None, None]
    assert [fact["memory_added_bytes"] is None for fact in survey.values()] == [False, True, False]


def test_what_a_failed_method_leaves_behind_is_not_the_next_ones(
    make_benchmark: MakeBenchmark, loads: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def hangs_on(transformer: Any) -> None:
        loads.clear()
        cycle: list[Any] = [torch.zeros(2**20)]
        cycle.append(cycle)
        transformer.__dict__["cycle"] = cycle
        raise NotImplementedError("needs a U-Net")

    def large(device: torch.device) -> int:
        found = [thing for thing in gc.get_objects() if type(thing) is torch.Tensor]
        return sum(thing.nbytes for thing in found if thing.nbytes >= 2**20)

    monkeypatch.setattr(meter, "live_tensor_bytes", large)
    gc.disable()
    try:
        survey = make_benchmark(PROMPTS[:1]).survey([peer("hangs", hangs_on, unused), FEWER])
    finally:
        gc.enable()
    assert survey["hangs"]["failure"] == "NotImplementedError: needs a U-Net"
    assert survey[FEWER.name]["memory_added_bytes"] == 0


def test_memory_that_a_method_holds_is_seen(make_benchmark: MakeBenchmark, memory: list[torch.Tensor]) -> None:
    hoards = peer("hoards", lambda _: memory.append(torch.zeros(2**10)), lambda _: memory.clear())
    survey = make_benchmark(PROMPTS[:1]).survey([hoards, FEWER])
    assert survey["hoards"]["memory_added_bytes"] == 2**12
    assert survey[FEWER.name]["memory_added_bytes"] == 0


def test_a_method_gets_the_prompts_to_calibrate_on(make_benchmark: MakeBenchmark) -> None:
    cases: list[Case] = []

    @contextlib.contextmanager
    def attach(case: Case) -> Iterator[Any]:
        cases.append(case)
        yield lambda: {"schedule": "told by a peer"}

    benchmark = make_benchmark(PROMPTS[:1])
    records = benchmark.run([Method(family="asks", attach=attach, is_peer=True)])
    assert cases[0].calibration_prompts == ("to calibrate on",)
    assert cases[0].pipeline is benchmark.pipeline
    assert cases[0].arguments == ARGUMENTS
    assert records[-1].schedule == "told by a peer"


# ---------------------------------------------------------------------------------------- what a survey does not find


def failure_of(benchmark: Benchmark, name: str) -> str:
    return str(benchmark.store.get(["survey", name])["failure"])


def test_what_leaves_the_pipeline_changed_is_told_from_its_neighbours(
    make_benchmark: MakeBenchmark, loads: list[Any]
) -> None:
    benchmark = make_benchmark(PROMPTS)
    spoils = peer("spoils", unused, scale_by(1.5))
    records = benchmark.run([FEWER, spoils])
    assert {record.method for record in records} == {"plain", FEWER.name}
    assert len([record for record in records if record.method == FEWER.name]) == len(PROMPTS)
    assert failure_of(benchmark, "spoils") == (
        "leaves the pipeline changed: a plain clip after it is another one (seed 7)"
    )


def test_what_fails_on_the_way_is_left_out_and_says_why(make_benchmark: MakeBenchmark, loads: list[Any]) -> None:
    benchmark = make_benchmark(PROMPTS)
    records = benchmark.run([peer("bad", scale_by(math.nan), unused), FEWER])
    assert {record.method for record in records} == {"plain", FEWER.name}
    assert failure_of(benchmark, "bad") == "ArithmeticError: bad: the clip holds a NaN or an infinity (seed 7)"
    assert len(loads) == 2


def test_the_pipeline_that_a_method_failed_on_is_gone_before_the_next_is_loaded(
    make_pipeline: Callable[..., Any], tmp_path: Path
) -> None:
    loaded: list[weakref.ref[Any]] = []
    alive: list[int] = []

    def load() -> Any:
        alive.append(sum(pipeline() is not None for pipeline in loaded))
        pipeline = make_pipeline()
        loaded.append(weakref.ref(pipeline))
        return pipeline

    store = Store(tmp_path / "records.jsonl")
    benchmark = Benchmark(load, ARGUMENTS, PROMPTS[:1], (), seed=7, store=store)
    benchmark.run([peer("bad", raises, unused), FEWER])
    assert failure_of(benchmark, "bad") == "NotImplementedError: needs a U-Net (seed 7)"
    assert alive == [0, 0]


def test_clips_are_the_same_up_to_the_noise_of_a_device() -> None:
    clip = np.full((1, 16, 16, 3), 0.5, np.float32)

    def shifted(by: float) -> Generated:
        return Generated(
            clip=clip + np.float32(by),
            denoising_seconds=1,
            total_seconds=1,
            encoding_seconds=0,
            decoding_seconds=0,
            peak_memory_bytes=0,
        )

    assert same(shifted(0), shifted(0))
    assert same(shifted(5e-5), shifted(0))  # 86 dB
    assert not same(shifted(2e-4), shifted(0))  # 74 dB
    assert not same(shifted(math.nan), shifted(0))


# ------------------------------------------------------------------------------------------------------------- resuming


def test_a_run_that_was_cut_off_goes_on_without_measuring_again(
    make_benchmark: MakeBenchmark, made: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    methods = [FEWER, STEP]
    counted = generation.generate

    def interrupted(*arguments: Any, **settings: Any) -> Generated:
        if len(made) == 7:  # a warm-up, the four clips of the first prompt, two of the second
            raise KeyboardInterrupt
        return counted(*arguments, **settings)

    monkeypatch.setattr(generation, "generate", interrupted)
    with pytest.raises(KeyboardInterrupt):
        make_benchmark().run(methods)
    monkeypatch.setattr(generation, "generate", counted)
    made.clear()
    finished = make_benchmark().records(methods)
    assert [record.method for record in finished] == ["plain", FEWER.name, STEP.name]

    told: list[tuple[int, int]] = []
    records = make_benchmark().run(methods, lambda done, total: told.append((done, total)))
    assert made == [PROMPTS[0], *[PROMPTS[1]] * 4]  # a warm-up, and nothing of the first prompt
    assert told == [(4, 4)]
    assert records[::2] == finished
    assert len(records) == 6

    made.clear()
    assert make_benchmark().run(methods) == records
    assert made == PROMPTS[:1]
    made.clear()
    more = make_benchmark().run([*methods, fewer_steps(2)])
    assert len(more) == 8
    assert len(made) == 1 + 3 * 2  # of each prompt the new method between two plain clips
    assert more[:6] == records


def test_a_survey_is_not_made_again(make_benchmark: MakeBenchmark, made: list[str]) -> None:
    methods = [peer("broken", raises, unused), FEWER]
    survey = make_benchmark().survey(methods)
    made.clear()
    assert make_benchmark().survey(methods) == survey
    assert made == []


# ----------------------------------------------------------------------------------------------------------- the rest


def test_the_noise_floor_is_the_plain_clip_against_itself(make_benchmark: MakeBenchmark, made: list[str]) -> None:
    benchmark = make_benchmark()
    benchmark.arguments = ARGUMENTS | {"num_inference_steps": 3}  # layers in bfloat16 are slow on many CPUs
    threads = torch.get_num_threads()
    floor = benchmark.noise_floor()
    assert torch.get_num_threads() == threads == 1
    assert list(floor) == ["2 instead of 1 threads", "bfloat16 autocast instead of float32"]
    other_threads, rounded = floor.values()
    assert other_threads is None or other_threads > 80
    assert rounded is not None
    assert 20 < rounded < 80
    assert made == PROMPTS * 3
    assert make_benchmark().noise_floor() == floor
    assert len(made) == 6


def test_a_policy_of_ours_is_taken_off_again(make_benchmark: MakeBenchmark) -> None:
    benchmark = make_benchmark(PROMPTS[:1])
    forward = benchmark.pipeline.transformer.forward
    assert benchmark.survey([policy_method("hindsight")])["hindsight, defaults"]["failure"] is None
    assert benchmark.pipeline.transformer.forward == forward
