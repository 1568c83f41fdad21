"""Our node beside ComfyUI's own EasyCache, through the real server, on the same graphs of the trained model.

    build/comfyui/venv/bin/python comfyui/measure.py --captions 16 --steps 20 --cfg 7 --out docs/results/comfyui.json

A clip of each held-out caption, plain and by every method, of the same seed; PSNR by the node MixCache Compare, saved
calls by MixCache Report and by what EasyCache logs. A run that was cut off goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent / "tests"))
from browser import Server
from workflows import node, sampled

from mixcache.store import write_whole
from mixcache.zoo import world

SAMPLERS = ("euler", "res_multistep")
METHODS: dict[str, dict[str, Any]] = {
    "hindsight, error 0.02": node("MixCache", quality="balanced", policy="hindsight", setting=0.02),
    "hindsight, error 0.04": node("MixCache", quality="balanced", policy="hindsight", setting=0.04),
} | {
    f"EasyCache, {threshold:g} from {start:g}": node(
        "EasyCache", reuse_threshold=threshold, start_percent=start, end_percent=0.95, verbose=False
    )
    for threshold, start in ((0.1, 0.15), (0.3, 0.15))
}
"""MixCache's settings were chosen on two training captions, and EasyCache's of what it was best at there."""
LOGGED = re.compile(r"EasyCache enabled - threshold: ([\d.]+), start_percent: ([\d.]+)|EasyCache - skipped (\d+)/(\d+)")


def workflow(caption: str, sampler: str, seed: int, steps: int, cfg: float) -> dict[str, Any]:
    more = {"seed": seed, "steps": steps, "cfg": cfg, "sampler_name": sampler}
    given = {"prompt": caption, "negative": "", "side": 96, "frames": 17, "negative_tokens": 0, "batch": 1}
    nodes = {"model": node("TinyWan", **given), **sampled("model", save="plain", **more)}
    nodes["plain clip"] = node("TinyDecode", samples=["plain sampler", 0])
    for name, method in METHODS.items():
        nodes[f"{name} model"] = node(method["class_type"], model=["model", 0], **method["inputs"])
        nodes |= sampled(f"{name} model", save=name, **more)
        nodes[f"{name} clip"] = node("TinyDecode", samples=[f"{name} sampler", 0])
        compare = node("MixCacheCompare", plain=["plain clip", 0], cached=[f"{name} clip", 0])
        nodes[f"{name} compared"], shown = compare, [f"{name} compared", 0]
        nodes[f"{name} shown"] = node("PreviewImage", images=shown)
        if method["class_type"] == "MixCache":
            report = node("MixCacheReport", model=[f"{name} model", 0], samples=[f"{name} sampler", 0])
            nodes[f"{name} report"] = report
            nodes[f"{name} reported"] = node("PreviewImage", images=[f"{name} report", 0])
    return nodes


def measured(server: Server, caption: str, sampler: str, seed: int, steps: int, cfg: float) -> dict[str, Any]:
    """PSNR and share of the calls by method."""
    begun = len(server.log.read_text())
    outputs = server.run(workflow(caption, sampler, seed, steps, cfg))
    figures, at = {}, None
    for threshold, start, skipped, of in LOGGED.findall(server.log.read_text()[begun:]):
        if threshold:
            at = f"EasyCache, {float(threshold):g} from {float(start):g}"
        else:
            figures[at] = {"share": 1 - int(skipped) / int(of)}
    for name in METHODS:
        if name not in figures:
            words = re.search(r"work +(\d+)%", outputs[f"{name} report"]["text"][0])
            figures[name] = {"share": int(words[1]) / 100}
        figures[name]["psnr"] = float(outputs[f"{name} compared"]["text"][0].removesuffix(" dB"))
    return figures


def table(runs: dict[str, Any]) -> str:
    """Markdown: speed-up by calls, over all clips, and lowest, median and mean PSNR."""
    lines = [
        "| sampler | method | speed-up by calls | lowest | median | mean |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for sampler in SAMPLERS:
        clips = [run for key, run in runs.items() if key.startswith(f"{sampler} ")]
        for name in METHODS if clips else ():
            decibels = [clip[name]["psnr"] for clip in clips]
            share = statistics.mean(clip[name]["share"] for clip in clips)
            figures = (min(decibels), statistics.median(decibels), statistics.mean(decibels))
            lines.append(
                f"| {sampler}, {len(clips)} clips | {name} | {1 / share:.2f}x | "
                + " | ".join(f"{figure:.1f}" for figure in figures)
                + " |"
            )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--captions", type=int, default=16)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--cfg", type=float, default=7.0)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    about = {"steps": given.steps, "cfg": given.cfg, "methods": sorted(METHODS)}
    kept = json.loads(given.out.read_text()) if given.out.is_file() else {"about": about, "runs": {}}
    if kept["about"] != about:
        raise SystemExit(f"{given.out} is of {kept['about']}: give another --out")
    with tempfile.TemporaryDirectory() as folder, Server(Path(folder) / "comfyui") as server:
        for seed, caption in enumerate(world.held_out_captions(given.captions)):
            for sampler in SAMPLERS:
                key = f"{sampler} {caption}"
                if key not in kept["runs"]:
                    kept["runs"][key] = measured(server, caption, sampler, seed, given.steps, given.cfg)
                    write_whole(given.out, json.dumps(kept, indent=1) + "\n")
                    print(key, kept["runs"][key], flush=True)
    print(table(kept["runs"]))


if __name__ == "__main__":
    main()
