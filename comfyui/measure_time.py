"""Time that is saved over the calls of the model that are: pairs of a plain and a cached sampling, interleaved.

    build/comfyui/venv/bin/python comfyui/measure_time.py --pairs 8

The trained model at its own size, guidance 7, 20 steps, in this process, on one thread. Either of a pair is first in
turn. Both clocks are read: that on the wall, and that of the process, which does not run while others have the core.
"""

from __future__ import annotations

import argparse
import logging
import statistics
import time
from typing import Any

from measure_samplers import sampler_object  # boots ComfyUI

import comfy.sample  # isort: skip
import comfy.samplers  # isort: skip
import torch
from comfyui_mixcache import report
from comfyui_mixcache.attachment import attach, attachment_of
from comfyui_mixcache.settings import Settings
from tiny import TinyWan

METHODS = {"hold, 1.5x": Settings(speedup=1.5), "hold, 2x": Settings(speedup=2.0)}
CLOCKS = {"wall": time.perf_counter, "process": time.process_time}


def seconds(model: Any, sampler: str, given: tuple[Any, ...], steps: int, cfg: float) -> dict[str, float]:
    """That a sampling takes, by the clock."""
    _, positive, negative, empty = given
    noise = comfy.sample.prepare_noise(empty["samples"], 0)
    sigmas = comfy.samplers.KSampler(model, steps, noise.device, sampler, "simple").sigmas
    begun = {name: clock() for name, clock in CLOCKS.items()}
    with torch.inference_mode():
        how = (cfg, sampler_object(sampler), sigmas, positive, negative, empty["samples"])
        comfy.sample.sample_custom(model, noise, *how, seed=0, disable_pbar=True)
    return {name: clock() - begun[name] for name, clock in CLOCKS.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=8)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--cfg", type=float, default=7.0)
    parser.add_argument("--samplers", nargs="+", default=["euler", "res_multistep"])
    given = parser.parse_args()
    logging.getLogger().setLevel(logging.ERROR)
    torch.set_num_threads(1)
    inputs = TinyWan().load("a large red circle moving left on a plain white background", "", 96, 17)
    how = (inputs, given.steps, given.cfg)
    print("| sampler | method | calls saved | " + " | ".join(f"{clock}: saved over that" for clock in CLOCKS) + " |")
    print(f"|{' --- |' * (3 + len(CLOCKS))}", flush=True)
    for sampler in given.samplers:
        for name, settings in METHODS.items():
            cached = attach(inputs[0], settings)
            for model in (inputs[0], cached):
                seconds(model, sampler, *how)
            saved, ratios = [], {clock: [] for clock in CLOCKS}
            for pair in range(given.pairs):
                order = ["plain", "cached"] if pair % 2 else ["cached", "plain"]
                took = {which: seconds({"plain": inputs[0], "cached": cached}[which], sampler, *how) for which in order}
                saved.append(1 - report.share_computed(attachment_of(cached).runs[-1]))
                for clock in CLOCKS:
                    ratios[clock].append((1 - took["cached"][clock] / took["plain"][clock]) / saved[-1])
            cells = (f"{statistics.median(some):.1%} ({min(some):.0%} to {max(some):.0%})" for some in ratios.values())
            print(f"| {sampler} | {name} | {statistics.mean(saved):.0%} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
