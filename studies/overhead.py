"""make overhead: what the cache itself costs on `shapes-wan`.

    python -m studies.overhead --out docs/results

With `always_compute`: interleaved pairs of the same clip, detached and attached, the order turning; the ratio of the
denoising loops, median of the pairs. A second column pairs the plain pipeline with itself: the measurement's noise.

Of `always_compute`, and of `hold` as it comes and with a wish, which measures, decides and repeats: the time between
the outer and the inner side of the hook, over the rest of the loop, median of as many clips of 50 steps as there are
pairs; far less noisy. Only on a CPU, where calls do not run ahead.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median, quantiles
from typing import Any

from rich.console import Console

from mixcache import generation
from mixcache.hosts.diffusers.attachment import enable
from mixcache.hosts.diffusers.overlay import put_on, take_off
from mixcache.store import write_json
from mixcache.zoo import call_defaults, load, world

HOOKS: dict[str, tuple[str, dict[str, Any]]] = {
    "always_compute": ("always_compute", {}),
    "hold": ("hold", {}),
    "hold, speedup 2": ("hold", {"speedup": 2.0}),
}
"""Policies whose hook is timed, and their settings."""


class Stopwatch:
    """Adds up what calls take. Also a hook of `overlay.put_on`."""

    covers = ("__call__",)

    def __init__(self) -> None:
        self.seconds = 0.0

    def call(self, module: Any, inner: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        return self.around(inner)(*args, **kwargs)

    def around(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            start = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                self.seconds += time.perf_counter() - start

        return timed


def share_of_hook(pipeline: Any, policy: str, denoise: Callable[[], float], **settings: Any) -> float:
    """Seconds that the hook of a policy takes for itself, over the rest of the loop; `denoise()` runs the loop and
    tells its seconds."""
    model, outer, inner = pipeline.transformer, Stopwatch(), Stopwatch()
    model.forward = inner.around(model.forward)
    try:
        with enable(pipeline, policy, **settings):
            put_on(model, outer)
            try:
                seconds = denoise()
            finally:
                take_off(model, outer)
    finally:
        del model.forward
    own = outer.seconds - inner.seconds
    return own / (seconds - own)


def summary(values: Sequence[float]) -> dict[str, Any]:
    """What a file of results says of a measurement that was repeated."""
    low, _, high = quantiles(values, n=4) if len(values) > 1 else 3 * list(values)
    return {"median": median(values), "quartiles": [low, high], "all": list(values)}


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

    def denoise(**other: Any) -> float:
        return generation.generate(pipeline, caption, seed=0, **arguments | other).denoising_seconds

    def seconds(attached: bool) -> float:
        if not attached:
            return denoise()
        with enable(pipeline, "always_compute"):
            return denoise()

    def long() -> float:
        return denoise(num_inference_steps=call_defaults()["num_inference_steps"])

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
        "command": f"python -m studies.overhead --num-pairs {args.num_pairs} --num-steps {args.num_steps}",
        "versions": generation.versions(),
        "machine": generation.machine(pipeline._execution_device),
    }
    for name, (policy, settings) in HOOKS.items():
        shares = [share_of_hook(pipeline, policy, long, **settings) for _ in range(args.num_pairs)]
        ratios[f"hook of {name}"] = [1 + share for share in shares]
    for name, values in ratios.items():
        result[name] = summary(values)
    write_json(args.out / "overhead.json", result)
    console = Console()
    for name in ratios:
        row = result[name]
        low, high = row["quartiles"]
        console.print(f"{name}: {row['median'] - 1:+.2%} (quartiles {low - 1:+.2%}, {high - 1:+.2%})")


if __name__ == "__main__":
    main()
