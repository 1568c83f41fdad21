"""make joined: what a `cfg` step costs beside a full one where one call holds both branches of guidance.

    python -m mixcache.bench.joined --out docs/results

A real `CogVideoXPipeline` with random weights, smaller than the checkpoints, yet so large that a CPU's time goes into
matrix products: 6 blocks 512 wide, 2 x 1426 tokens. Computed and `cfg` steps take turns within one run; the ratio is
that of a `cfg` step to the computed one before it, median of the pairs.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import torch
from rich.console import Console

from mixcache import generation
from mixcache.attachment import enable
from mixcache.bench.full_size.families import build_pipeline, call_arguments
from mixcache.bench.full_size.models import MODELS, FullSizeModel
from mixcache.bench.meter import WorkMeter
from mixcache.decision import Granularity

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


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("docs/results"))
    parser.add_argument("--num-pairs", type=int, default=15)
    args = parser.parse_args(arguments)
    args.out.mkdir(parents=True, exist_ok=True)
    command = {"command": f"python -m mixcache.bench.joined --num-pairs {args.num_pairs}"}
    result = command | measure(MODEL, args.num_pairs)
    (args.out / "joined.json").write_text(json.dumps(result, indent=1) + "\n")
    ratio = result["cfg over computed"]
    low, high = ratio["quartiles"]
    Console().print(
        f"{MODEL.name}: computed {result['computed']['median']:.2f} s, cfg {result['cfg']['median']:.2f} s a step; "
        f"cfg over computed: {ratio['median']:.1%} (quartiles {low:.1%}, {high:.1%})"
    )


def measure(model: FullSizeModel, num_pairs: int) -> dict[str, Any]:
    """Seconds and multiplications of the steps of one run; a short one before it is thrown away."""
    device, dtype = torch.device("cpu"), torch.float32
    pipeline = build_pipeline(model, device, dtype)
    arguments = call_arguments(model, device, dtype) | {"num_frames": model.num_frames[0]}
    run(pipeline, arguments, num_pairs=1)
    steps = run(pipeline, arguments, num_pairs)
    seconds = {kind: [spent for name, spent, _ in steps if name == kind] for kind in ("computed", "cfg")}
    work = {kind: sum(done for name, _, done in steps if name == kind) for kind in seconds}
    ratios = [after / before for before, after in zip(seconds["computed"], seconds["cfg"], strict=True)]
    return {
        "versions": generation.versions(),
        "machine": generation.machine(device),
        "model": {"name": model.name, "height": model.height, "width": model.width, "num_frames": model.num_frames[0]},
        "config": dict(model.config),
        "computed": summary(seconds["computed"]),
        "cfg": summary(seconds["cfg"]),
        "cfg over computed": summary(ratios),
        "multiplications, cfg over computed": work["cfg"] / work["computed"],
    }


def run(pipeline: Any, arguments: dict[str, Any], num_pairs: int) -> list[tuple[str, float, int]]:
    """Of every step after the first its kind, its seconds and its multiplications; the kinds take turns."""
    meter = WorkMeter()
    times: list[float] = []

    def on_step(num_done: int, total: int) -> None:
        meter.mark(num_done, total)
        times.append(time.perf_counter())

    settings = {"granularity": "cfg", "period": 2, "num_warmup_steps": 1, "num_cooldown_steps": 0}
    with (
        meter.on(pipeline),
        generation.watched_loop(pipeline, on_step),
        enable(pipeline, "every_nth", **settings) as handle,
    ):
        generator = torch.Generator().manual_seed(0)
        pipeline(generator=generator, num_inference_steps=1 + 2 * num_pairs, **arguments)
    kinds = ["cfg" if entry.granularity is Granularity.CFG else "computed" for entry in handle.trace]
    seconds = [after - before for before, after in pairwise(times)]
    return list(zip(kinds, seconds, meter.steps, strict=True))[1:]


def summary(values: list[float]) -> dict[str, Any]:
    low, _, high = quantiles(values, n=4)
    return {"median": median(values), "quartiles": [low, high], "all": values}


if __name__ == "__main__":
    main()
