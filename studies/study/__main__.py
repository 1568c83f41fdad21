"""make study: which rules of the method pay, on `shapes-wan` and held-out captions.

    python -m studies.study --out docs/results

Five parts: (a) interference of granularities, (b) the two ends of the trajectory, (c) the parts of policy `mixcache`,
(d) predictor orders and curves of quality against speed-up, (e) the distance to a schedule searched with the true
error. The clips are those of a benchmark for each number of steps. What is measured is kept in the folder `--work`, and
a run that was cut off goes on from there, as long as model, profile, engine and policies are the same.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.progress import Progress

from mixcache import generation
from mixcache.bench.methods import Method
from mixcache.bench.run import Benchmark
from mixcache.bench.source import code_hash
from mixcache.hosts.diffusers.attachment import enable
from mixcache.planning.profiles import profile_for, weights_hash
from mixcache.report.plot import image
from mixcache.store import Store, write_json, write_whole
from mixcache.zoo import call_defaults, load, world
from studies.study.measure import SEED, choices_of, deviations, searched
from studies.study.methods import PARTS, PROMPTS_OF_PART, Question, questions, scheduled
from studies.study.page import draw, markdown
from studies.study.summary import Row, lines, mean_deviations, oracle_rows, row_of, with_margins


def block_cost_of(pipeline: Any) -> float:
    """Share of a computed step's blocks that a `block` step runs."""
    with enable(pipeline, "every_nth", granularity="block") as handle:
        span = handle.engine.span
    return 1 - span.num_skipped / span.num_blocks


def benchmark_at(num_steps: int, prompts: Sequence[str], work: Path) -> Benchmark:
    """All clips of one number of steps; OtherCaseError where the folder holds those of another case."""
    arguments = call_defaults() | {"num_inference_steps": num_steps}
    store = Store(work / f"study-{num_steps}.jsonl")
    benchmark = Benchmark(load, arguments, prompts, (), seed=SEED, store=store)
    transformer = benchmark.pipeline.transformer
    profile = profile_for(transformer)
    store.claim(
        {
            "weights": weights_hash(transformer),
            "profile": profile.digest if profile else None,
            "source": code_hash(),
            "arguments": arguments,
            "prompts": list(prompts),
        }
    )
    return benchmark


def measure(benchmark: Benchmark, asked: Sequence[Question], progress: Progress) -> list[Row]:
    """The rows of all questions at the benchmark's number of steps."""
    wanted: dict[str, tuple[int, Method]] = {}
    for question in asked:
        for method in question.methods:
            count, _ = wanted.get(method.name, (0, method))
            wanted[method.name] = max(count, question.num_prompts), method
    num_steps = benchmark.arguments["num_inference_steps"]
    for num_prompts in sorted({count for count, _ in wanted.values()}):
        methods = [method for count, method in wanted.values() if count == num_prompts]
        task = progress.add_task(f"{num_steps} steps, {num_prompts} prompts")
        benchmark.run(methods, lambda d, n, t=task: progress.update(t, completed=d, total=n), num_prompts=num_prompts)
    return [
        row
        for question in asked
        for row in (row_in(benchmark, question.part, method, question.num_prompts) for method in question.methods)
    ]


def row_in(benchmark: Benchmark, part: str, method: Method, num_prompts: int) -> Row:
    """What a method came to on the first prompts, or why it cannot be run."""
    records = [r for r in benchmark.records([method]) if r.method == method.name and r.seed - SEED < num_prompts]
    return row_of(part, benchmark.arguments["num_inference_steps"], method, records, benchmark.failure(method))


def search_all(benchmark: Benchmark, num_trials: int, block_cost: float) -> tuple[list[dict[str, Any]], Row]:
    """Part e: the searched schedule of every prompt, and the row of their clips."""
    num_prompts = min(len(benchmark.prompts), PROMPTS_OF_PART["e"])
    searches = []
    for index in range(num_prompts):
        searches.append(searched(benchmark, index, num_trials, block_cost))
        method = scheduled("searched", "", choices_of(searches[-1]), trust=searches[-1]["trust"])
        benchmark.run([method], num_prompts=index + 1)
    return searches, row_in(benchmark, "e", method, num_prompts)


def measure_all(
    parts: Sequence[str], num_steps: Sequence[int], prompts: Sequence[str], num_trials: int, work: Path
) -> dict[str, Any]:
    """Rows, curves, deviations and searches of the parts."""
    benchmarks = {count: benchmark_at(count, prompts, work) for count in num_steps}
    first = benchmarks[num_steps[0]]
    block_cost = block_cost_of(first.pipeline)
    asked = questions(parts, num_steps, len(prompts), block_cost)
    rows: list[Row] = []
    with Progress() as progress:
        for count, benchmark in benchmarks.items():
            rows += measure(benchmark, [question for question in asked if question.num_steps == count], progress)
    runs, searches = [], []
    if "b" in parts:
        runs = [deviations(first, index) for index in range(min(len(prompts), PROMPTS_OF_PART["b"]))]
    if "e" in parts:
        searches, best = search_all(first, num_trials, block_cost)
        rows += [best, *oracle_rows(rows, best, num_steps[0])]
        for row in rows:
            if row["part"] == "e" and row["curve"] == "planned" and row["psnr_db"] is not None:
                row["below_searched_db"] = (best["psnr_db"] or 0.0) - row["psnr_db"]
    return {
        "weights": weights_hash(first.pipeline.transformer),
        "scheduler": type(first.pipeline.scheduler).__name__,
        "versions": generation.versions(),
        "machine": generation.machine(first.pipeline._execution_device),
        "rows": with_margins(rows),
        "curves": {str(count): lines(rows, count) for count in num_steps},
        "deviations": mean_deviations(runs),
        "searches": searches,
    }


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("docs/results"))
    parser.add_argument("--work", type=Path, default=Path("build/study"), help="what a run goes on from")
    parser.add_argument("--num-prompts", type=int, default=8, help="half as many for all step counts but the first")
    parser.add_argument("--num-steps", type=int, nargs="+", default=[50, 20])
    parser.add_argument("--num-trials", type=int, default=40, help="schedules tried per prompt in part e")
    parser.add_argument("--parts", default=",".join(PARTS), help="some of a,b,c,d,e")
    args = parser.parse_args(arguments)
    parts = [part for part in PARTS if part in args.parts.split(",")]
    args.out.mkdir(parents=True, exist_ok=True)
    prompts = world.held_out_captions(args.num_prompts, seed=1)
    counts = " ".join(map(str, args.num_steps))
    result = {
        "command": f"python -m studies.study --num-prompts {args.num_prompts} --num-steps {counts} "
        f"--num-trials {args.num_trials} --parts {','.join(parts)}",
        "arguments": call_defaults(),
        "num_steps": args.num_steps,
        "prompts": prompts,
        **measure_all(parts, args.num_steps, prompts, args.num_trials, args.work),
    }
    write_json(args.out / "method-study.json", result)
    write_whole(args.out / "method-study.md", markdown(result))
    write_whole(args.out / "method-study.png", image(draw(result), dpi=110))


if __name__ == "__main__":
    main()
