"""Our node beside ComfyUI's own EasyCache, through the real server, on the same graphs of the trained model.

    build/comfyui/venv/bin/python comfyui/measure.py --captions 16 --out docs/results/comfyui.json

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

Methods = dict[str, dict[str, Any]]
"""Nodes by the names of what they do."""


def easycache(threshold: float, start: float, end: float) -> Methods:
    given = {"reuse_threshold": threshold, "start_percent": start, "end_percent": end, "verbose": False}
    return {f"EasyCache, {threshold:g} from {start:g} to {end:g}": node("EasyCache", **given)}


OURS: Methods = {f"hold, {speedup:g}x": node("MixCache", quality="balanced", speedup=speedup) for speedup in (1.5, 2.0)}
THEIRS: dict[str, tuple[tuple[float, float, float], ...]] = {
    "euler": ((0.1, 0.05, 0.8), (0.15, 0.05, 0.8), (0.9, 0.05, 0.8), (1.3, 0.05, 0.8)),
    "res_multistep": ((0.1, 0.05, 0.9), (0.15, 0.05, 0.8), (0.35, 0.05, 0.7), (0.9, 0.05, 0.8), (1.3, 0.05, 0.8)),
}
"""Of each sampler: threshold, start and end of the settings that were best, at about the saving of ours, of those that
`measure_easycache.py` tried on training captions."""
LOGGED = re.compile(
    r"EasyCache enabled - threshold: ([\d.]+), start_percent: ([\d.]+), end_percent: ([\d.]+)|"
    r"EasyCache - skipped (\d+)/(\d+)"
)
MORE, LESS = 0.02, 0.04
"""Shares of the calls by which a setting of EasyCache may save more and less than ours and be held against it."""


def methods_of(sampler: str) -> Methods:
    return OURS | {name: method for given in THEIRS[sampler] for name, method in easycache(*given).items()}


def workflow(caption: str, sampler: str, seed: int, steps: int, cfg: float, methods: Methods) -> dict[str, Any]:
    more = {"seed": seed, "steps": steps, "cfg": cfg, "sampler_name": sampler}
    given = {"prompt": caption, "negative": "", "side": 96, "frames": 17, "negative_tokens": 0, "batch": 1}
    nodes = {"model": node("TinyWan", **given), **sampled("model", save="plain", **more)}
    nodes["plain clip"] = node("TinyDecode", samples=["plain sampler", 0])
    for name, method in methods.items():
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


def measured(
    server: Server, caption: str, sampler: str, seed: int, steps: int, cfg: float, methods: Methods
) -> dict[str, Any]:
    """PSNR and share of the calls by method."""
    begun = len(server.log.read_text())
    outputs = server.run(workflow(caption, sampler, seed, steps, cfg, methods))
    figures, at = {}, None
    for *setting, skipped, of in LOGGED.findall(server.log.read_text()[begun:]):
        if setting[0]:
            at = next(iter(easycache(*map(float, setting))))
        else:
            figures[at] = {"share": 1 - int(skipped) / int(of)}
    for name in methods:
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
    for sampler in THEIRS:
        clips = [run for key, run in runs.items() if key.startswith(f"{sampler} ")]
        for name in clips[0] if clips else ():
            share, *figures = _summed(clips, name)
            cells = " | ".join(f"{figure:.1f}" for figure in figures)
            lines.append(f"| {sampler}, {len(clips)} clips | {name} | {1 / share:.2f}x | {cells} |")
    return "\n".join(lines)


def leads(runs: dict[str, Any]) -> str:
    """How far each of ours is ahead, in dB, of the best setting of EasyCache that saves about as much."""
    lines = []
    for sampler in THEIRS:
        clips = [run for key, run in runs.items() if key.startswith(f"{sampler} ")]
        for name in OURS if clips else ():
            share, *ours = _summed(clips, name)
            theirs = [_summed(clips, other) for other in clips[0] if other.startswith("EasyCache")]
            theirs = [figures for other, *figures in theirs if share - MORE <= other <= share + LESS]
            if not theirs:
                lines.append(f"{sampler}, {name}: no setting of EasyCache saves about as much")
                continue
            ahead = (own - max(column) for own, column in zip(ours, zip(*theirs, strict=True), strict=True))
            words = ", ".join(f"{word} {by:+.1f}" for word, by in zip(("lowest", "median", "mean"), ahead, strict=True))
            lines.append(f"{sampler}, {name}: {words} dB ahead")
    return "\n".join(lines)


def _summed(clips: list[dict[str, Any]], name: str) -> tuple[float, ...]:
    """Mean share of the calls; lowest, median and mean PSNR."""
    decibels = [clip[name]["psnr"] for clip in clips]
    share = statistics.mean(clip[name]["share"] for clip in clips)
    return share, min(decibels), statistics.median(decibels), statistics.mean(decibels)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--captions", type=int, default=16)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--cfg", type=float, default=7.0)
    parser.add_argument("--samplers", nargs="+", choices=list(THEIRS), default=list(THEIRS))
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    by_sampler = {sampler: methods_of(sampler) for sampler in given.samplers}
    about: dict[str, Any] = {"steps": given.steps, "cfg": given.cfg}
    about["methods"] = {sampler: sorted(methods) for sampler, methods in by_sampler.items()}
    kept = json.loads(given.out.read_text()) if given.out.is_file() else {"about": about, "runs": {}}
    if kept["about"] != about:
        raise SystemExit(f"{given.out} is of {kept['about']}: give another --out")
    with tempfile.TemporaryDirectory() as folder, Server(Path(folder) / "comfyui") as server:
        for seed, caption in enumerate(world.held_out_captions(given.captions)):
            for sampler, methods in by_sampler.items():
                key = f"{sampler} {caption}"
                if key not in kept["runs"]:
                    kept["runs"][key] = measured(server, caption, sampler, seed, given.steps, given.cfg, methods)
                    write_whole(given.out, json.dumps(kept, indent=1) + "\n")
                    print(key, kept["runs"][key], flush=True)
    print(table(kept["runs"]))
    print(leads(kept["runs"]))


if __name__ == "__main__":
    main()
