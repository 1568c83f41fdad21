"""make joined: what a `cfg` step costs beside a full one where one call holds both branches of guidance.

    python -m studies.joined --out docs/results

A real `CogVideoXPipeline` with random weights, smaller than the checkpoints, yet so large that a CPU's time goes into
matrix products: 6 blocks 512 wide, 2 x 1426 tokens. Runs of the plain pipeline take turns with attached ones, in which
computed and `cfg` steps do; ratios are those of a `cfg` step to the computed one before it, and to the plain one of the
same number, medians of the pairs.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from mixcache import generation
from mixcache.bench.meter import WorkMeter
from mixcache.decision import Granularity
from mixcache.hosts.diffusers.attachment import enable
from mixcache.store import write_json
from studies.full_size import StepTimes
from studies.overhead import summary
from studies.random_models import MODELS, RandomModel, build_pipeline, call_arguments

CHECKPOINT = MODELS["cogvideox-5b"]
MODEL = replace(
    CHECKPOINT,
    name="cogvideox-512-wide",
    config={**CHECKPOINT.config, "num_attention_heads": 8, "num_layers": 6, "text_embed_dim": 512},
    height=320,
    width=320,
    num_frames=(9,),
)
"""CogVideoX-5B with 8 of its 48 heads and 6 of its 42 blocks; 226 tokens of text and 3 frames of 20 x 20."""

KINDS = ("plain", "computed", "cfg")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("docs/results"))
    parser.add_argument("--num-rounds", type=int, default=5)
    parser.add_argument("--num-pairs", type=int, default=4, help="pairs of steps in an attached run")
    args = parser.parse_args(arguments)
    args.out.mkdir(parents=True, exist_ok=True)
    options = f"--num-rounds {args.num_rounds} --num-pairs {args.num_pairs}"
    result = {"command": f"python -m studies.joined {options}"} | measure(MODEL, args.num_rounds, args.num_pairs)
    write_json(args.out / "joined.json", result)
    seconds = ", ".join(f"{kind} {result[kind]['median']:.2f} s" for kind in KINDS)
    ratios = ", ".join(f"over {kind} {result[f'cfg over {kind}']['median']:.1%}" for kind in KINDS[:2])
    Console(soft_wrap=True).print(f"{MODEL.name}, a step: {seconds}; cfg {ratios}")


def measure(model: RandomModel, num_rounds: int, num_pairs: int) -> dict[str, Any]:
    """Seconds and multiplications of the steps; the first round and every run's first step are thrown away."""
    device, dtype = torch.device("cpu"), torch.float32
    pipeline = build_pipeline(model, device, dtype)
    arguments = call_arguments(model, pipeline) | {"num_frames": model.num_frames[0]}
    seconds: dict[str, list[float]] = {kind: [] for kind in KINDS}
    work: dict[str, list[int]] = {kind: [] for kind in KINDS}
    for index in range(1 + num_rounds):
        plain = run(pipeline, arguments, 1 + num_pairs)
        with enable(
            pipeline, "every_nth", granularities="cfg", period=2, num_warmup_steps=1, num_cooldown_steps=0
        ) as handle:
            attached = run(pipeline, arguments, 1 + 2 * num_pairs)
        kinds = ["cfg" if entry.granularity is Granularity.CFG else "computed" for entry in handle.trace]
        if kinds[1:] != ["computed", "cfg"] * num_pairs:
            raise RuntimeError(f"computed and cfg steps do not take turns: {kinds}")
        steps = [("plain", step) for step in plain[1:]] + list(zip(kinds, attached, strict=True))[1:]
        for kind, (spent, done) in steps if index else ():
            seconds[kind].append(spent)
            work[kind].append(done)
    ratios = {
        f"cfg over {kind}": [cfg / other for cfg, other in zip(seconds["cfg"], seconds[kind], strict=True)]
        for kind in KINDS[:2]
    }
    return {
        "versions": generation.versions(),
        "machine": generation.machine(device),
        "model": {"name": model.name, "height": model.height, "width": model.width, "num_frames": model.num_frames[0]},
        "config": {name: value for name, value in pipeline.transformer.config.items() if not name.startswith("_")},
        **{name: summary(values) for name, values in (seconds | ratios).items()},
        "multiplications, cfg over plain": sum(work["cfg"]) / sum(work["plain"]),
    }


def run(pipeline: Any, arguments: dict[str, Any], num_steps: int) -> list[tuple[float, int]]:
    """Seconds and multiplications of every step."""
    meter, times = WorkMeter(), StepTimes(torch.device("cpu"))

    def on_step(num_done: int, total: int) -> None:
        meter.mark(num_done, total)
        times.mark(num_done, total)

    generator = torch.Generator().manual_seed(0)
    with meter.on(pipeline), generation.watched_loop(pipeline, on_step):
        pipeline(generator=generator, num_inference_steps=num_steps, **arguments)
    return [(spent, done) for spent, done in zip(times.seconds(), meter.steps, strict=True)]


if __name__ == "__main__":
    main()
