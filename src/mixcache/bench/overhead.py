"""make overhead: what the attachment itself costs, with `always_compute` on `shapes-wan`.

    python -m mixcache.bench.overhead --out docs/results

Interleaved pairs of the same clip, detached and attached, the order turning; the ratio of the denoising loops, median
of the pairs. A
second column pairs the plain pipeline with itself: the noise of the measurement.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from statistics import median, quantiles
from typing import Any

from rich.console import Console

from mixcache import generation
from mixcache.attachment import enable
from mixcache.zoo import call_defaults, load, world


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("docs/results"))
    parser.add_argument("--num-pairs", type=int, default=30)
    parser.add_argument("--num-steps", type=int, default=25)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    pipeline = load()
    arguments = call_defaults() | {"num_inference_steps": args.num_steps}
    caption = world.held_out_captions(1)[0]

    def seconds(attached: bool) -> float:
        if not attached:
            return generation.generate(pipeline, caption, seed=0, **arguments).denoising_seconds
        with enable(pipeline, "always_compute"):
            return generation.generate(pipeline, caption, seed=0, **arguments).denoising_seconds

    seconds(False)
    ratios: dict[str, list[float]] = {"always_compute over plain": [], "plain over plain": []}
    for index in range(args.num_pairs):
        for name, attached in zip(ratios, (True, False), strict=True):
            if index % 2:
                under, over = seconds(False), seconds(attached)
            else:
                over, under = seconds(attached), seconds(False)
            ratios[name].append(over / under)
    result: dict[str, Any] = {
        "command": f"python -m mixcache.bench.overhead --num-pairs {args.num_pairs} --num-steps {args.num_steps}",
        "versions": generation.versions(),
        "machine": generation.machine(pipeline._execution_device),
    }
    for name, values in ratios.items():
        low, _, high = quantiles(values, n=4)
        result[name] = {"median": median(values), "quartiles": [low, high], "pairs": values}
    (args.out / "overhead.json").write_text(json.dumps(result, indent=1) + "\n")
    console = Console()
    for name in ratios:
        row = result[name]
        low, high = row["quartiles"]
        console.print(f"{name}: {row['median'] - 1:+.2%} (quartiles {low - 1:+.2%}, {high - 1:+.2%})")


if __name__ == "__main__":
    main()
