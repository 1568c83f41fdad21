"""make overhead: what the cache itself costs.

    python -m studies.overhead --out docs/results

With `always_compute` on `shapes-wan`: interleaved pairs of the same clip, detached and attached, the order turning; the
ratio of the denoising loops, median of the pairs. A second column pairs the plain pipeline with itself: the noise of
the measurement.

Of `always_compute`, and of `hold` as it comes and with a wish, which measures, decides and repeats: the time between
the outer and the inner side of the hook, over the rest of the loop, median of as many clips of each built-in model as
there are pairs, of as many steps as its own call has; far less noisy. Only on a CPU, where calls do not run ahead.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median, quantiles
from typing import Any

from rich.console import Console

from mixcache import generation, zoo
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

    def __init__(self, clock: Callable[[], float] | None = None) -> None:
        """`time.perf_counter` unless another clock is given."""
        self.clock, self.seconds = clock or time.perf_counter, 0.0

    def call(self, module: Any, inner: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        return self.around(inner)(*args, **kwargs)

    def around(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            start = self.clock()
            try:
                return function(*args, **kwargs)
            finally:
                self.seconds += self.clock() - start

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


def shares_of_hooks(model: str, caption: str, num_clips: int) -> dict[str, list[float]]:
    """For each of `HOOKS` its share of so many clips, which take turns."""
    pipeline = load(model)

    def denoise() -> float:
        return generation.loop_seconds(pipeline, caption, seed=0, **call_defaults(model))

    denoise()
    shares: dict[str, list[float]] = {name: [] for name in HOOKS}
    for _ in range(num_clips):
        for name, (policy, settings) in HOOKS.items():
            shares[name].append(share_of_hook(pipeline, policy, denoise, **settings))
    return shares


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
    caption = world.held_out_captions(1)[0]
    pipeline = load()

    def denoise() -> float:
        arguments = call_defaults() | {"num_inference_steps": args.num_steps}
        return generation.loop_seconds(pipeline, caption, seed=0, **arguments)

    def seconds(attached: bool) -> float:
        if not attached:
            return denoise()
        with enable(pipeline, "always_compute"):
            return denoise()

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
    for model in zoo.BUILT_IN:
        ratios |= {
            f"hook of {name} on {model}": [1 + share for share in shares]
            for name, shares in shares_of_hooks(model, caption, args.num_pairs).items()
        }
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
