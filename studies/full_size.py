"""What caching costs and saves on models of full size, with random weights; quality is not measured.

    python -m studies.full_size --models wan-1.3b-480p cogvideox-5b

Schedules are fixed beforehand, since random weights have nothing to decide by: after two computed steps two of three
are cached, by `replay` of one granularity and by the peers whose schedules can be told. Beside them every step is
computed: attached, and by `hindsight` with a budget that nothing fits, which tries everything. Each method runs once
untimed, which counts its work; then all take turns, forth and back, with blocks as they are and compiled. A run that
was cut off goes on. gpu-MODEL.json is written for each model, and gpu.md from all of them in the folder.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import itertools
import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any

import torch

from mixcache import generation
from mixcache.bench.meter import WorkMeter, work_digits, work_share
from mixcache.bench.methods import PLAIN, Case, Method, policy_method
from mixcache.bench.peers import PEERS
from mixcache.bench.records import Record, summarise
from mixcache.bench.run import reason_of
from mixcache.bench.source import code_hash
from mixcache.decision import CACHED, Granularity
from mixcache.hosts.diffusers.denoisers import blocks_of
from mixcache.hosts.diffusers.rows import row_for
from mixcache.predictors import LINE, REUSE
from mixcache.report.markdown import table
from mixcache.store import OtherCaseError, Store, write_json, write_whole
from studies.random_models import MODELS, RandomModel, build_pipeline, call_arguments, tiny
from studies.schedules import trace_of

NUM_FIRST, NUM_CACHED = 2, 2
"""Steps computed at the start, and cached between two computed ones."""
NEVER = 1e-30
"""An error budget that nothing fits."""
MAX_TRIES = 3
"""Generations after which one is taken as it is in which torch.compile was still at work."""
MAX_RECOMPILES = 64
"""Plain blocks and those under other caches are compiled from the same code, and one graph each is allowed 8."""
UNCOMPILED = "uncompiled"
BLOCKS = (UNCOMPILED, "inductor")
"""How they are timed: as they are, or compiled by a backend of torch.compile."""
Run = Mapping[str, Any]
"""One timed generation, as it is kept: seconds, of each step too, peak of memory, graphs compiled meanwhile."""


def methods(num_steps: int, granularities: Sequence[str]) -> list[Method]:
    """What is held against the plain pipeline."""
    ends = {"num_first_steps": NUM_FIRST, "num_last_steps": 0}
    forecast = {"cache_interval": NUM_CACHED + 1, "max_order": 1}
    return [
        PLAIN,
        policy_method("always_compute"),
        policy_method("hindsight", error=NEVER),
        policy_method("hindsight", error=NEVER, granularities=list(granularities)),
        *(replayed(Granularity(name), num_steps) for name in granularities),
        *(PEERS["taylorseer"].make(num_steps, is_lite=is_lite, **forecast, **ends) for is_lite in (True, False)),
        PEERS["db-cache-mask"].make(num_steps, num_cached_in_a_row=NUM_CACHED, taylor_order=0, **ends),
    ]


def replayed(granularity: Granularity, num_steps: int) -> Method:
    """Cached steps of one granularity, corrected as under the policies that make schedules."""
    later = [(granularity, LINE)] * NUM_CACHED + [(Granularity.COMPUTE, REUSE)]
    schedule = ([(Granularity.COMPUTE, REUSE)] * NUM_FIRST + later * num_steps)[:num_steps]
    setting, trace = f"{NUM_CACHED} of {NUM_CACHED + 1} steps", trace_of(schedule, corrects=True)
    return Method(family=f"replay {granularity.value}", setting=setting, policy="replay", settings={"trace": trace})


class FullSize:
    """The measurements of one model, made where the store lacks them."""

    def __init__(
        self,
        model: RandomModel,
        work: Path,
        *,
        num_steps: int = 8,
        num_repeats: int = 2,
        blocks: Sequence[str] = BLOCKS,
    ) -> None:
        """On the GPU where there is one. OtherCaseError where the store in `work` is of another case."""
        self.model, self.num_repeats, self.blocks = model, num_repeats, blocks
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        dtype = torch.bfloat16 if self.device.type == "cuda" else torch.float32
        self.header = {
            **{name: value for name, value in asdict(model).items() if name != "num_frames"},
            **{"num_steps": num_steps, "dtype": str(dtype), "code": code_hash()},
            **{"versions": generation.versions(), "machine": generation.machine(self.device)},
        }
        self.store = Store(work / f"gpu-{model.name}.jsonl")
        self.store.claim(self.header)
        self.failures: dict[str, str] = {}
        """Of this run; the next one tries again."""
        self.pipeline = build_pipeline(model, self.device, dtype)
        self.arguments = call_arguments(model, self.pipeline) | {"num_inference_steps": num_steps}
        self.case = Case(pipeline=self.pipeline, arguments=self.arguments)
        has_two_branches = "negative_prompt_embeds" in self.arguments
        allowed = row_for(self.pipeline.transformer, self.pipeline).granularities
        usable = [g.value for g in CACHED if g.value in allowed and (has_two_branches or g is not Granularity.CFG)]
        self.methods = methods(num_steps, usable)

    def run(self) -> dict[str, Any]:
        """Measures what is missing, and returns what stands in gpu-MODEL.json."""
        frames = self._measured(["frames"], self._fitting_frames)
        if frames is not None:
            self.arguments["num_frames"] = frames["frames"]
            for method in self.methods:
                self._measured(["survey", method.name], lambda m=method: self._survey(m))
            for blocks in self.blocks:
                self._time_all(blocks)
        results = {blocks: self._results(blocks) for blocks in self.blocks}
        return {"header": self.header | (frames or {}), "failures": self.failures, "blocks": results}

    def _measured(self, identity: list[Any], measure: Callable[[], Any]) -> Any:
        """From the store, or measured now; None, and a failure, where that raises."""
        if self.store.has(identity):
            return self.store.get(identity)
        name, reason = ", ".join(map(str, identity)), ""
        try:
            self.store.keep(identity, measure())
        except Exception as error:  # whatever a model, a compiler or a device may raise is a result here
            reason = self.failures[name] = reason_of(error)
        release()  # only now, since the error holds tensors
        print(f"{self.model.name}: {name}{reason and f' failed: {reason}'}")
        return None if reason else self.store.get(identity)

    def _fitting_frames(self) -> dict[str, Any]:
        """The largest number of frames that the plain pipeline fits into memory; MemoryError where none does."""
        too_many: list[int] = []
        for num_frames in self.model.num_frames:
            self.arguments["num_frames"] = num_frames
            try:
                self._loop(num_inference_steps=2)
                return {"frames": num_frames, "too many": too_many}
            except torch.OutOfMemoryError:
                too_many.append(num_frames)
            release()  # outside of the handler, whose error holds the tensors
        raise MemoryError(f"not even {self.model.num_frames[-1]} frames fit")

    def _loop(self, on_step: generation.OnStep | None = None, **other: Any) -> float:
        """Seconds of one denoising loop with whatever is attached now."""
        with generation.watched_loop(self.pipeline, on_step) as clock:
            self.pipeline(generator=torch.Generator().manual_seed(0), **self.arguments | other)
        return clock.seconds

    def _survey(self, method: Method) -> dict[str, Any]:
        """The work of every step, and what the method says of itself."""
        meter = WorkMeter()
        with method.attached(self.case) as account, meter.on(self.pipeline):
            self._loop(meter.mark)
            return {"work": meter.steps, **account()}

    def _time_all(self, blocks: str) -> None:
        """Every method once a repeat, forth and back, so that a drift falls on all alike."""
        for repeat in range(self.num_repeats):
            for method in reversed(self.methods) if repeat % 2 else self.methods:
                if self.store.has(["survey", method.name]):
                    self._measured(["run", blocks, method.name, repeat], lambda m=method: self._timed(m, blocks))

    def _timed(self, method: Method, blocks: str) -> Run:
        """One generation in which nothing was compiled, or the last that was tried."""
        is_cuda, backend = self.device.type == "cuda", None if blocks == UNCOMPILED else blocks
        # the peers' hooks stand inside of the blocks, whose graphs they may break
        compiled = compiled_blocks(self.pipeline, backend, fullgraph=not method.is_peer)
        with method.attached(self.case), compiled:
            for _ in range(MAX_TRIES):
                if is_cuda:
                    torch.cuda.reset_peak_memory_stats(self.device)
                times, graphs = StepTimes(self.device), num_graphs()
                seconds = self._loop(times.mark)
                graphs = num_graphs() - graphs
                if not graphs:
                    break
        peak = generation.peak_memory_bytes(self.device) if is_cuda else None
        return {"seconds": seconds, "steps": times.seconds(), "peak_bytes": peak, "num_graphs": graphs}

    def _results(self, blocks: str) -> dict[str, Any]:
        """Records, and a row for every method."""
        rows, records, plain = [], [], self._runs(PLAIN, blocks)
        for method in self.methods:
            runs = {repeat: run for repeat, run in self._runs(method, blocks).items() if repeat in plain}
            of_method = [self._record(method, repeat, run, plain[repeat]) for repeat, run in runs.items()]
            if of_method:
                records += of_method
                rows.append(summarise(of_method)[0] | row_of(of_method[0], [*runs.values()], [*plain.values()]))
        return {"summary": rows, "records": [asdict(record) for record in records]}

    def _runs(self, method: Method, blocks: str) -> dict[int, Run]:
        keys = [["run", blocks, method.name, repeat] for repeat in range(self.num_repeats)]
        return {key[-1]: self.store.get(key) for key in keys if self.store.has(key)}

    def _record(self, method: Method, repeat: int, run: Run, plain: Run) -> Record:
        survey, plain_survey = (self.store.get(["survey", name]) for name in (method.name, PLAIN.name))
        return Record(
            method=method.name,
            prompt="",
            seed=0,
            repeat=repeat,
            denoising_seconds=run["seconds"],
            speedup=plain["seconds"] / run["seconds"],
            ideal_speedup=1 / work_share(survey["work"], plain_survey["work"]),
            psnr_db=None,
            ssim=None,
            cache_peak_bytes=survey.get("cache_bytes"),
            peak_memory_bytes=run["peak_bytes"],
            work=work_digits(survey["work"], plain_survey["work"]),
        )


def row_of(record: Record, runs: Sequence[Run], plain: Sequence[Run]) -> dict[str, Any]:
    """What is told of a method besides `summarise`. The first step of a run also warms up, and is left out."""
    pairs = [pair for run in runs for pair in list(zip(record.work, run["steps"], strict=True))[1:]]
    times = {kind: [s for digit, s in pairs if (digit == "#") == kind] for kind in (True, False)}
    computed, cached = (1000 * median(times[kind]) if times[kind] else None for kind in (True, False))
    peak, plain_peak = (max(run["peak_bytes"] or 0 for run in some) for some in (runs, plain))
    added = peak - plain_peak if peak else record.cache_peak_bytes
    told = {"computed_ms": computed, "cached_ms": cached, "added_mib": None if added is None else added / 2**20}
    return told | {"work": record.work, "num_graphs": sum(run["num_graphs"] for run in runs)}


class StepTimes:
    """When each step was over: on the device's own clock, so that the host is not held up; on a CPU on the host's."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._marks: list[Any] = []

    def mark(self, num_done: int, total: int) -> None:
        """Told at the loop's start and after every step."""
        if self._device.type == "cuda":
            self._marks.append(torch.cuda.Event(enable_timing=True))
            self._marks[-1].record(torch.cuda.current_stream(self._device))
        else:
            self._marks.append(time.perf_counter())

    def seconds(self) -> list[float]:
        """Of each step; the device must have been synchronised."""
        pairs = itertools.pairwise(self._marks)
        if self._device.type == "cuda":
            return [begin.elapsed_time(end) / 1000 for begin, end in pairs]
        return [end - begin for begin, end in pairs]


@contextlib.contextmanager
def compiled_blocks(pipeline: Any, backend: str | None, *, fullgraph: bool) -> Iterator[None]:
    """While it is open the blocks are compiled, if a backend is named; afterwards they are what they were."""
    blocks = blocks_of(pipeline.transformer, row_for(pipeline.transformer, pipeline)) if backend else []
    before = {block: block._compiled_call_impl for block in blocks}
    limit = MAX_RECOMPILES if fullgraph else torch._dynamo.config.cache_size_limit
    with torch._dynamo.config.patch(cache_size_limit=limit):
        try:
            for block in blocks:
                block.compile(fullgraph=fullgraph, backend=backend)
            yield
        finally:
            for block, call in before.items():
                block._compiled_call_impl = call


def num_graphs() -> int:
    """Graphs that torch.compile has made in this process."""
    return int(torch._dynamo.utils.counters["stats"]["unique_graphs"])


def release() -> None:
    """Frees what nothing holds any more."""
    gc.collect()
    torch.cuda.empty_cache()


INTRODUCTION = f"""# Models of full size

The architectures of public checkpoints at their real size with **random weights**: milliseconds and memory depend on
the shapes, quality on the weights, so none is told here. No text encoder and no VAE; times are of the denoising loop,
medians, all methods taking turns. `too many` frames did not fit into memory. Models named `tiny-` try the study out.

After {NUM_FIRST} computed steps {NUM_CACHED} of {NUM_CACHED + 1} are cached. `ideal`: if only the blocks that ran took
time. `computed_ms`, `cached_ms`: such a step. `added_mib`: peak memory over the plain one's; without a GPU what our
cache held. `work`: a character a step, # computed in full, . nothing, a digit the tenths of it. `hindsight` has a
budget that nothing fits, so its computed step shows what trying costs. `num_graphs`: compiled while it was timed, which
is then no time of the method; a compiled block is one graph, under the peers maybe more, whose hooks stand inside.
"""
MODEL_COLUMNS = ("name", "source", "width", "height", "frames", "too many", "num_steps", "dtype", "versions", "machine")
COLUMNS = ("method", "seconds", "speedup", "ideal", "of_ideal", "computed_ms", "cached_ms", "added_mib", "work")


def page(results: Sequence[Mapping[str, Any]]) -> str:
    """gpu.md."""
    parts = [INTRODUCTION, table([result["header"] for result in results], MODEL_COLUMNS), ""]
    for result in results:
        for blocks, found in result["blocks"].items():
            heading = f"## {result['header']['name']}, blocks {blocks}"
            parts += [heading, "", table(found["summary"], (*COLUMNS, "num_graphs")), ""] if found["summary"] else []
    failed = [(result["header"]["name"], result["failures"]) for result in results if result["failures"]]
    notes = [f"- {name}, {what}: {reason}" for name, failures in failed for what, reason in failures.items()]
    return "\n".join([*parts, *(["## What failed", "", *notes, ""] if notes else [])])


def main(argv: Sequence[str] | None = None) -> int:
    """Measures, writes the files, and returns the exit status; an interruption keeps what is finished."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--out", type=Path, default=Path("docs/results"))
    parser.add_argument("--work", type=Path, default=Path("build/full-size"), help="what a run goes on from")
    parser.add_argument("--steps", type=int, default=8, help="denoising steps (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=2, help="runs of each, in turn (default: %(default)s)")
    parser.add_argument("--blocks", nargs="+", default=BLOCKS, help=f"{UNCOMPILED}, or a backend of torch.compile")
    parser.add_argument("--tiny", action="store_true", help="the same models made tiny, to try the study out")
    args = parser.parse_args(argv)
    if args.steps <= NUM_FIRST or args.repeats < 1:
        parser.error(f"--steps {args.steps} must be over {NUM_FIRST}, and --repeats {args.repeats} at least 1")
    args.out.mkdir(parents=True, exist_ok=True)
    status = 0
    for name in args.models:
        model = tiny(MODELS[name]) if args.tiny else MODELS[name]
        try:
            study = FullSize(model, args.work, num_steps=args.steps, num_repeats=args.repeats, blocks=args.blocks)
            write_json(args.out / f"gpu-{model.name}.json", study.run())
        except torch.OutOfMemoryError:
            print(f"{model.name}: its weights do not fit into memory")
        except OtherCaseError as error:
            print(f"{args.work} holds measurements of {error}; --work names another folder")
            status = 2
        except KeyboardInterrupt:
            print("interrupted: what is finished is kept")
            return 130
    results = [json.loads(path.read_text()) for path in sorted(args.out.glob("gpu-*.json"))]
    write_whole(args.out / "gpu.md", page(results))
    return status


if __name__ == "__main__":
    sys.exit(main())
