"""Measures a model: is what the captions say in the clips, and how much do half the steps cost?

    python -m training.evaluate --out training/runs/evaluation.json
    python -m training.evaluate --model shapes-hunyuan --out training/runs/shapes-hunyuan/evaluation.json

64 held-out captions, seeds that training never used; the analytic reader of the drawn world looks at each clip.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from statistics import fmean

import torch
from diffusers import DiffusionPipeline

from mixcache.generation import generate
from mixcache.metrics import video_psnr
from mixcache.zoo import CALLS, call_defaults, world
from studies.captions import adherence

SEED = 500_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=CALLS, default="shapes-wan")
    parser.add_argument("--folder", type=Path, help="of the pipeline; src/mixcache/zoo/ and the name unless told")
    parser.add_argument("--out", type=Path, default=Path("training/runs/evaluation.json"))
    parser.add_argument("--num-captions", type=int, default=64)
    parser.add_argument("--num-difficulty", type=int, default=16, help="captions on which 25 and 50 steps are compared")
    args = parser.parse_args()
    folder = args.folder or Path("src/mixcache/zoo") / args.model
    pipeline = DiffusionPipeline.from_pretrained(folder, torch_dtype=torch.float32, local_files_only=True)
    arguments = call_defaults(args.model)
    captions = world.held_out_captions(args.num_captions, seed=2)
    readings, seconds, halves = [], [], []
    for index, caption in enumerate(captions):
        made = generate(pipeline, caption, seed=SEED + index, **arguments)
        readings.append(adherence(made.clip, caption))
        seconds.append(made.total_seconds)
        if index < args.num_difficulty:
            half = generate(pipeline, caption, seed=SEED + index, **arguments | {"num_inference_steps": 25})
            halves.append(video_psnr(half.clip, made.clip))
        print(f"{index + 1} of {len(captions)}: {caption}: {readings[-1]}", flush=True)
    figures = {
        "num_captions": len(captions),
        "num_difficulty": len(halves),
        **{name: fmean(getattr(r, name) for r in readings) for name in ("colour", "motion", "shape", "background")},
        "psnr_25_against_50_steps_db": fmean(halves),
        "seconds_per_clip_50_steps": sorted(seconds)[len(seconds) // 2],
        "date": time.strftime("%Y-%m-%d"),
    }
    args.out.write_text(json.dumps(figures, indent=2) + "\n")
    print(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
