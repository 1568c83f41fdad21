"""How the open details of policy `mixcache` were chosen: settings swept on calibration captions, none of them held out.

    python -m mixcache.bench.sweep --out docs/results

Every row is a setting against fewer plain steps of the same wall-clock, interpolated: `margin_db` is what the cache
gains over them.
"""

from __future__ import annotations

import argparse
import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.progress import Progress

from mixcache import generation
from mixcache.bench.methods import Method, fewer_steps
from mixcache.bench.run import margin, run, summarise
from mixcache.calibration import CALIBRATION_SEED
from mixcache.report.markdown import table
from mixcache.zoo import call_defaults, load, world

GRID: dict[str, Sequence[Any]] = {
    "delta_1": (0.02, 0.05, 0.1),
    "delta_2": (0.1, 0.2),
    "max_interval": (2, 3, 4),
    "num_warmup_steps": (2, 4, 8),
}
FEWER = (32, 28, 25, 22, 19)


def settings_of(grid: dict[str, Sequence[Any]]) -> list[dict[str, Any]]:
    """All combinations of the grid that the policy accepts."""
    combinations = [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]
    return [c for c in combinations if c.get("delta_1", 0) <= c.get("delta_2", 1)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("docs/results"))
    parser.add_argument("--num-prompts", type=int, default=6)
    parser.add_argument("--grid", type=json.loads, default=GRID, help="JSON: setting name to list of values")
    parser.add_argument("--name", default="sweep")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    pipeline, arguments = load(), call_defaults()
    prompts = [scene.caption for scene in world.sample_scenes(args.num_prompts, CALIBRATION_SEED + 1, held_out=False)]
    settings = settings_of(args.grid)
    methods = [Method(name=json.dumps(s), policy="mixcache", settings=s) for s in settings]
    plain = [fewer_steps(n) for n in FEWER]
    with Progress() as progress:
        task = progress.add_task("clips", total=len(prompts) * (len(methods) + len(plain) + 2))
        records = run(
            pipeline,
            [*plain, *methods],
            prompts,
            arguments,
            seed=CALIBRATION_SEED,
            on_clip=lambda: progress.advance(task),
        )
    rows = {row["method"]: row for row in summarise(records)}
    fewer = [(rows[m.name]["speedup"], rows[m.name]["psnr_db"]) for m in plain]
    swept = [
        rows[m.name] | {"margin_db": margin(rows[m.name]["speedup"], rows[m.name]["psnr_db"], fewer)} for m in methods
    ]
    result = {
        "command": f"python -m mixcache.bench.sweep --num-prompts {args.num_prompts} --grid '{json.dumps(args.grid)}'",
        "prompts": prompts,
        "versions": generation.versions(),
        "machine": generation.machine(pipeline._execution_device),
        "fewer_steps": [rows[m.name] for m in plain],
        "swept": swept,
    }
    (args.out / f"{args.name}.json").write_text(json.dumps(result, indent=1) + "\n")
    columns = ["method", "speedup", "of_ideal", "psnr_db", "margin_db", "steps"]
    shown = [row | {"steps": " ".join(f"{n:.1f} {g}" for g, n in row["steps"].items())} for row in swept]
    ranked = sorted(shown, key=lambda row: -(row["margin_db"] if row["margin_db"] is not None else -99))
    text = f"`{result['command']}`\n\n{table([rows[m.name] for m in plain], columns[:4])}\n\n{table(ranked, columns)}\n"
    (args.out / f"{args.name}.md").write_text(text)
    progress.console.print(text)


if __name__ == "__main__":
    main()
