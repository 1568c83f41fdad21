"""make study: which rules of the method pay, on `shapes-wan` and held-out captions.

    python -m studies.study --out docs/results

Five parts: (a) interference of granularities, (b) the two ends of the trajectory, (c) the parts of policy `mixcache`,
(d) predictor orders and curves of quality against speed-up, (e) the distance to a schedule searched with the true
error. What is measured is kept in the folder `--work`, clip by clip, and a run that was cut off goes on from there, as
long as model, profile, engine and policies are the same.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from rich.progress import Progress

from mixcache import generation
from mixcache.attachment import enable
from mixcache.bench.records import Record
from mixcache.store import Store, write_json, write_whole
from mixcache.zoo import call_defaults, load, world
from studies.study.measure import Study, schedule_trial
from studies.study.page import draw, markdown
from studies.study.settings import PARTS, PROMPTS_OF_PART
from studies.study.summary import lines, mean_deviations, oracle_rows, row_of, with_margins
from studies.study.trials import all_trials


def block_cost_of(pipeline: Any) -> float:
    """Share of a computed step's blocks that a `block` step runs."""
    with enable(pipeline, "every_nth", granularity="block") as handle:
        span = handle.engine.span
    return 1 - span.num_skipped / span.num_blocks


def measure_all(
    study: Study, parts: Sequence[str], num_steps: Sequence[int], num_trials: int, progress: Progress
) -> dict[str, Any]:
    """Rows, curves, deviations and searches of the parts."""
    first, cost = num_steps[0], block_cost_of(study.pipeline)
    trials = all_trials(parts, num_steps, len(study.prompts), cost)
    records: dict[int, list[Record]] = {place: [] for place in range(len(trials))}
    task = progress.add_task("clips", total=sum(trial.num_prompts for trial in trials))
    for count in num_steps:
        for index in range(len(study.prompts)):
            places = [p for p, t in enumerate(trials) if t.num_steps == count and index < t.num_prompts]
            turn = index * 7 % max(1, len(places))
            for place in places[turn:] + places[:turn]:
                record = study.record(trials[place], index)
                if record is not None:
                    records[place].append(record)
                progress.advance(task)
    rows = [row_of(trial, records[p], study.skipped.get(trial.method.name)) for p, trial in enumerate(trials)]
    runs, searches, indices = [], [], range(len(study.prompts))
    if "b" in parts:
        runs = [study.deviations(first, index) for index in indices[: PROMPTS_OF_PART["b"]]]
    if "e" in parts:
        task = progress.add_task("searches", total=min(len(indices), PROMPTS_OF_PART["e"]))
        found = []
        for index in indices[: PROMPTS_OF_PART["e"]]:
            searches.append(study.searched(first, index, num_trials, cost))
            trial = schedule_trial("searched", searches[-1]["schedule"], 1, searches[-1]["trust"])
            found.append(cast(Record, study.record(trial, index)))
            progress.advance(task)
        searched = row_of(trial, found)
        rows += [searched, *oracle_rows(rows, searched, first)]
        for row in rows:
            if row["part"] == "e" and row["method"].startswith("planned") and row["psnr_db"] is not None:
                row["below_searched_db"] = (searched["psnr_db"] or 0.0) - row["psnr_db"]
    return {
        "rows": with_margins(rows),
        "curves": {str(count): lines(rows, count) for count in num_steps},
        "deviations": mean_deviations(runs),
        "searches": searches,
    }


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("docs/results"))
    parser.add_argument("--work", type=Path, default=Path("training/runs/study"), help="what a run goes on from")
    parser.add_argument("--num-prompts", type=int, default=8, help="half as many for all step counts but the first")
    parser.add_argument("--num-steps", type=int, nargs="+", default=[50, 20])
    parser.add_argument("--num-trials", type=int, default=40, help="schedules tried per prompt in part e")
    parser.add_argument("--parts", default=",".join(PARTS), help="some of a,b,c,d,e")
    args = parser.parse_args(arguments)
    parts = [part for part in PARTS if part in args.parts.split(",")]
    args.out.mkdir(parents=True, exist_ok=True)
    pipeline, call_arguments = load(), call_defaults()
    prompts = world.held_out_captions(args.num_prompts, seed=1)
    study = Study(pipeline, prompts, call_arguments, Store(args.work / "method-study.jsonl"))
    with Progress() as progress:
        measured = measure_all(study, parts, args.num_steps, args.num_trials, progress)
    counts = " ".join(map(str, args.num_steps))
    result = {
        "command": f"python -m studies.study --num-prompts {args.num_prompts} --num-steps {counts} "
        f"--num-trials {args.num_trials} --parts {','.join(parts)}",
        "arguments": call_arguments,
        "num_steps": args.num_steps,
        "prompts": prompts,
        "scheduler": type(pipeline.scheduler).__name__,
        "weights": study.model[0],
        "versions": generation.versions(),
        "machine": generation.machine(pipeline._execution_device),
        **measured,
    }
    write_json(args.out / "method-study.json", result)
    write_whole(args.out / "method-study.md", markdown(result))
    draw(result, args.out / "method-study.png")


if __name__ == "__main__":
    main()
