"""What it costs that two ranks agree, on CPUs over gloo.

    torchrun --nproc-per-node 2 -m studies.ranks --out docs/results

A random Wan whose steps take as long as those of a real model on a small accelerator, spread over both ranks. In
interleaved pairs, the order turning: the plain clip and the one where every step is computed, measured and agreed upon
(`hold` with an error that nothing meets); the ratio of the denoising loops, median of the pairs. A second column pairs
the plain clip with itself: the measurement's noise. And the time between the outer and the inner side of the hook, over
the rest of the loop: what the cache takes for itself, waiting for the other rank in a round included, which without it
would wait in the next attention. The same in time of the processor, which other work on the machine disturbs less, and
in which waiting costs nothing.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from mixcache import generation
from mixcache.hosts.diffusers.attachment import enable
from mixcache.hosts.diffusers.overlay import put_on, take_off
from mixcache.store import write_json
from mixcache.zoo import call_defaults, load
from studies.overhead import Stopwatch, summary

NEVER = 1e-9
"""A relative error that no prediction keeps to."""


def build() -> Any:
    """The pipeline of `shapes-wan` with a larger transformer, its tokens spread over all ranks."""
    from diffusers import ContextParallelConfig, WanTransformer3DModel

    pipeline = load()
    pipeline.set_progress_bar_config(disable=True)
    torch.manual_seed(0)
    config = dict(pipeline.transformer.config)
    config |= {"num_attention_heads": 4, "attention_head_dim": 64, "num_layers": 8, "ffn_dim": 1024}
    pipeline.transformer = WanTransformer3DModel.from_config(config).eval()
    pipeline.transformer.set_attention_backend("native")
    torch.accelerator.device_count = lambda: 1  # diffusers spreads nothing over CPUs else
    torch._C._get_accelerator = lambda: torch.device("cpu")
    config = ContextParallelConfig(ulysses_degree=dist.get_world_size())
    pipeline.transformer.enable_parallelism(config=config)
    return pipeline


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("docs/results"))
    parser.add_argument("--num-pairs", type=int, default=8)
    parser.add_argument("--num-clips", type=int, default=8, help="of which the hook's share is taken")
    parser.add_argument("--num-steps", type=int, default=6)
    parser.add_argument("--side", type=int, default=256, help="of the frames, in pixels")
    args = parser.parse_args()
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    pipeline = build()
    arguments = call_defaults() | {"num_inference_steps": args.num_steps, "height": args.side, "width": args.side}

    def loop() -> float:
        dist.barrier()
        with generation.watched_loop(pipeline) as clock:
            pipeline(
                "a large red circle", generator=torch.Generator().manual_seed(0), output_type="latent", **arguments
            )
        return clock.seconds

    def seconds_of_loop(attached: bool) -> float:
        with enable(pipeline, "hold", error=NEVER) if attached else nullcontext() as handle:
            seconds = loop()
            if handle is not None and handle.summary().granularity_counts["compute"] != args.num_steps:
                raise RuntimeError(f"not every step was computed: {handle.summary().granularity_counts}")
        return seconds

    def share_of_hook(clock: Callable[[], float]) -> tuple[float, dict[str, float]]:
        """And what was sent for a step."""
        model, outer, inner = pipeline.transformer, Stopwatch(clock), Stopwatch(clock)
        model.forward = inner.around(model.forward)
        try:
            with enable(pipeline, "hold", error=NEVER) as handle:
                put_on(model, outer)
                begun = clock()
                loop()
                seconds = clock() - begun
                take_off(model, outer)
                own = outer.seconds - inner.seconds
                ranks = handle._ranks
                sent = {
                    "bytes a step": ranks.num_bytes / args.num_steps,
                    "numbers measured a step": ranks.num_measured / args.num_steps,
                }
                return own / (seconds - own), sent
        finally:
            del model.forward

    seconds_of_loop(False), seconds_of_loop(True)
    plain: list[float] = []
    ratios: dict[str, list[float]] = {"agreed over plain": [], "plain over plain": []}
    for index in range(args.num_pairs):
        for name, attached in zip(ratios, (True, False), strict=True):
            if index % 2:
                under, over = seconds_of_loop(False), seconds_of_loop(attached)
            else:
                over, under = seconds_of_loop(attached), seconds_of_loop(False)
            ratios[name].append(over / under)
            plain.append(under)
    clocks = {"hook over the rest": time.perf_counter, "hook over the rest, on the processor": time.process_time}
    sent: dict[str, float] = {}
    for _ in range(args.num_clips):
        for name, clock in clocks.items():
            share, sent = share_of_hook(clock)
            ratios.setdefault(name, []).append(1 + share)
    result: dict[str, Any] = {
        "command": (
            f"torchrun --nproc-per-node {dist.get_world_size()} -m studies.ranks --num-pairs {args.num_pairs} "
            f"--num-clips {args.num_clips} --num-steps {args.num_steps} --side {args.side}"
        ),
        "versions": generation.versions(),
        "machine": generation.machine(pipeline._execution_device),
        **sent,
    }
    ratios = {name: values for name, values in ratios.items() if values}
    result |= {name: summary(values) for name, values in ratios.items()}
    if plain:
        result["seconds of a plain step"] = summary([value / args.num_steps for value in plain])
    if dist.get_rank() == 0:
        args.out.mkdir(parents=True, exist_ok=True)
        write_json(args.out / "ranks.json", result)
        print(result["command"], sent, result.get("seconds of a plain step", {}).get("median"))
        for name in ratios:
            low, high = result[name]["quartiles"]
            print(f"{name}: {result[name]['median'] - 1:+.2%} (quartiles {low - 1:+.2%}, {high - 1:+.2%})")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
