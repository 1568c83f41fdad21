"""Searches the settings of the peers that are worth measuring on a model, on captions that it was trained on.

    python -m studies.search --model shapes-hunyuan --work out/search

Every setting of a peer's grid makes the same clips; its speed is the inverse of the share of the work that it does, its
quality the distance of its latents from the plain ones. Of those that nothing beats in both, the nearest to each of
some speed-ups are kept in peers/settings.json. A search cut off goes on where it stopped.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import track

from mixcache import generation
from mixcache.arguments import accepted_arguments
from mixcache.bench.command import calibration_captions
from mixcache.bench.meter import WorkMeter, work_share
from mixcache.bench.methods import Case, Method
from mixcache.bench.peers import PEERS, Peer
from mixcache.bench.peers.peer import SETTINGS, Options, length_word
from mixcache.bench.records import pareto_front
from mixcache.bench.source import code_hash
from mixcache.calibration import built_in_prompts
from mixcache.profiles import weights_hash
from mixcache.store import OtherCaseError, Store, write_whole
from studies.grids import GRIDS

SEED = 7000
WANTED = (1.35, 1.65, 2.0, 2.4, 2.9, 3.5)
"""Speed-ups of which each takes the setting nearest to it."""
FEWEST = 3
"""Settings of a family at least, where it has so many."""
NUM_SKIPPED_CAPTIONS = 4
"""The first training captions are those that peers calibrate themselves on."""
OPTIONS_DEPTH = 4
"""Of a setting in the file: below transformer, length and family, in a list."""
Tried = tuple[Options, list[float] | None]
"""A setting, and what was measured of it."""


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="shapes-wan", help="a built-in model")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--families", nargs="+", choices=PEERS, default=list(PEERS))
    parser.add_argument("--num-prompts", type=int, default=2)
    parser.add_argument("--work", type=Path, required=True, help="folder for what was measured")
    args = parser.parse_args(arguments)
    console = Console(soft_wrap=True)
    search = Search(args.model, args.steps, args.num_prompts, args.work)
    for family in args.families:
        peer = PEERS[family]
        tried = [(options, search.measured(peer, options)) for options in track(GRIDS[family], family)]
        chosen = best_of(tried)
        for options, (speedup, decibels) in chosen:
            console.print(f"{family} {options}: {speedup:.2f}x, {decibels:.1f} dB")
        if chosen:
            keep(search.transformer, length_word(args.steps), family, [options for options, _ in chosen], SETTINGS)


class Search:
    """The clips of one model, plain and with each setting."""

    def __init__(self, model: str, num_steps: int, num_prompts: int, work: Path) -> None:
        pipeline, defaults = generation.open_model(model)
        arguments = accepted_arguments(pipeline, defaults | {"num_inference_steps": num_steps})
        self.num_steps, self.transformer = num_steps, type(pipeline.transformer).__name__
        self.prompts = built_in_prompts(NUM_SKIPPED_CAPTIONS + num_prompts)[NUM_SKIPPED_CAPTIONS:]
        self.case = Case(
            pipeline=pipeline, arguments=arguments, calibration_prompts=calibration_captions(model, given=None)
        )
        self.store = Store(work / f"{model}-{num_steps}.jsonl")
        case = {
            "weights": weights_hash(pipeline.transformer),
            "versions": generation.versions(),
            "source": code_hash(),
            "seed": SEED,
        }
        try:
            self.store.claim(case)
        except OtherCaseError as error:
            raise ValueError(f"{work} holds a search of {error}; --work names another folder") from None
        self._plain = [self._made(index) for index in range(num_prompts)]

    def _made(self, index: int) -> tuple[torch.Tensor, list[int]]:
        """Latents and work of one caption."""
        meter = WorkMeter()
        with meter.on(self.case.pipeline):
            latents = generation.final_latents(
                self.case.pipeline,
                self.prompts[index],
                seed=SEED + index,
                on_step=meter.mark,
                **self.case.arguments,
            )
        return latents, meter.steps

    def measured(self, peer: Peer, options: Options) -> list[float] | None:
        """Ideal speed-up and dB; None for a setting that fails, caches nothing or breaks the clip."""
        identity = ["setting", peer.family, options, len(self.prompts)]
        value: list[float] | None = self.store.get(
            identity, lambda: self._measure(peer.make(self.num_steps, **options))
        )
        return value

    def _measure(self, method: Method) -> list[float] | None:
        shares, decibels = [], []
        for index, (plain, plain_work) in enumerate(self._plain):
            try:
                with method.attached(self.case):
                    latents, work = self._made(index)
            except Exception as error:  # a peer may fail on a model in any way
                Console(soft_wrap=True).print(f"{method.name}: {type(error).__name__}: {error}")
                return None
            shares.append(work_share(work, plain_work))
            error_of_all = float((latents - plain).square().mean() / plain.square().mean())
            if not error_of_all or not math.isfinite(error_of_all):
                return None
            decibels.append(-10 * math.log10(error_of_all))
        return [1 / fmean(shares), fmean(decibels)]


def best_of(tried: Sequence[Tried], speedups_wanted: Sequence[float] = WANTED) -> list[tuple[Options, list[float]]]:
    """Of the settings that none is faster and better than, the nearest to each of some speed-ups, slowest first; of
    a family that reaches hardly any of them, evenly spread ones."""
    sound = [(options, value) for options, value in tried if value is not None]
    best = pareto_front([(speedup, quality) for _, (speedup, quality) in sound])
    front = [(options, value) for options, value in sound if tuple(value) in best]
    if not front:
        return []
    speedups = [value[0] for _, value in front]
    wanted = speedups_wanted
    if sum(speedup <= max(speedups) for speedup in wanted) < FEWEST:
        wanted = np.geomspace(min(speedups), max(speedups), FEWEST).tolist()
    chosen: list[tuple[Options, list[float]]] = []
    for speedup in wanted:
        nearest = min(front, key=lambda found: abs(math.log(found[1][0] / speedup)))
        if nearest not in chosen:
            chosen.append(nearest)
    return sorted(chosen, key=lambda found: found[1][0])


def keep(transformer: str, length: str, family: str, chosen: Sequence[Options], path: Path) -> None:
    """Puts the settings of one family into the file."""
    settings = json.loads(path.read_text())
    settings.setdefault(transformer, {}).setdefault(length, {})[family] = list(chosen)
    write_whole(path, written(settings) + "\n")


def written(value: Any, options_depth: int = OPTIONS_DEPTH, depth: int = 0) -> str:
    """JSON with one setting on a line."""
    if depth == options_depth:
        return json.dumps(value)
    opened, closed = "{}" if isinstance(value, dict) else "[]"
    names = [f"{json.dumps(name)}: " for name in value] if isinstance(value, dict) else [""] * len(value)
    items = value.values() if isinstance(value, dict) else value
    pad = " " * depth
    lines = [f"{pad} {name}{written(item, options_depth, depth + 1)}" for name, item in zip(names, items, strict=True)]
    return f"{opened}\n" + ",\n".join(lines) + f"\n{pad}{closed}"


if __name__ == "__main__":
    main()
