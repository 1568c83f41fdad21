"""ComfyUI's EasyCache at many settings, on training captions: at which it is best for what it saves.

    build/comfyui/venv/bin/python comfyui/measure_easycache.py --captions 2 --out docs/results/comfyui-easycache.json

The trained model at its own size, 20 steps, guidance 7, in this process: steps skipped, and PSNR of the latents against
the plain ones of the same seed. THEIRS of `measure.py` was chosen from what this prints. A run cut off goes on.
"""

from __future__ import annotations

import argparse
import itertools
import json
import logging
import re
import statistics
from pathlib import Path
from typing import Any

from measure_samplers import psnr, sampler_object  # boots ComfyUI

import comfy.sample  # isort: skip
import comfy.samplers  # isort: skip
import torch
from comfy_extras.nodes_easycache import EasyCacheNode
from tiny import TinyWan

from mixcache.store import write_whole
from mixcache.zoo import world

STEPS, CFG = 20, 7.0
THRESHOLDS, STARTS, ENDS = (0.1, 0.15, 0.22, 0.35, 0.6, 0.9, 1.3), (0.05,), (0.7, 0.8, 0.9)
SKIPPED = re.compile(r"EasyCache - skipped (\d+)/")


class Logged(logging.Handler):
    """What EasyCache says of a run: the steps that it has skipped."""

    num_skipped = 0

    def emit(self, record: logging.LogRecord) -> None:
        if found := SKIPPED.search(record.getMessage()):
            self.num_skipped = int(found[1])


def sampled(model: Any, sampler: str, given: tuple[Any, ...], seed: int) -> torch.Tensor:
    _, positive, negative, empty = given
    noise = comfy.sample.prepare_noise(empty["samples"], seed)
    sigmas = comfy.samplers.KSampler(model, STEPS, noise.device, sampler, "simple").sigmas
    with torch.inference_mode():
        how = (CFG, sampler_object(sampler), sigmas, positive, negative, empty["samples"])
        return comfy.sample.sample_custom(model, noise, *how, seed=seed, disable_pbar=True)


def table(runs: dict[str, dict[str, dict[str, float]]]) -> str:
    """A line for each sampler and setting, those that skip most last."""
    lines = []
    for sampler, settings in runs.items():
        rows = []
        for setting, clips in settings.items():
            skipped = statistics.mean(clip["skipped"] for clip in clips.values())
            decibels = [clip["psnr"] for clip in clips.values()]
            rows.append((skipped, statistics.mean(decibels), min(decibels), setting, len(clips)))
        lines += [
            f"{sampler:14} {setting:16} {skipped:5.1f} skipped, {mean:.1f} dB, lowest {low:.1f}, of {count}"
            for skipped, mean, low, setting, count in sorted(rows)
        ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--captions", type=int, default=2)
    parser.add_argument("--samplers", nargs="+", default=["euler", "res_multistep"])
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    torch.set_num_threads(1)
    logged = Logged()
    logging.getLogger().handlers[:] = [logged]
    logging.getLogger().setLevel(logging.INFO)
    runs = json.loads(given.out.read_text())["runs"] if given.out.is_file() else {}
    for seed, scene in enumerate(world.sample_scenes(given.captions, seed=7, held_out=False)):
        inputs = TinyWan().load(scene.caption, "", 96, 17)
        for sampler in given.samplers:
            plain = None
            for setting in itertools.product(THRESHOLDS, STARTS, ENDS):
                clips = runs.setdefault(sampler, {}).setdefault(" ".join(f"{value:g}" for value in setting), {})
                if scene.caption in clips:
                    continue
                plain = sampled(inputs[0], sampler, inputs, seed) if plain is None else plain
                model = EasyCacheNode.execute(inputs[0], *setting, False).result[0]
                clip = sampled(model, sampler, inputs, seed)
                clips[scene.caption] = {"psnr": psnr(clip, plain), "skipped": logged.num_skipped}
                print(sampler, setting, clips[scene.caption], flush=True)
                write_whole(given.out, json.dumps({"steps": STEPS, "cfg": CFG, "runs": runs}, indent=1) + "\n")
    print(table(runs))


if __name__ == "__main__":
    main()
