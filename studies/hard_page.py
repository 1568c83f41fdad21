"""make bench-hard: the page of the hard settings, from what `studies.hard` measured.

    python -m studies.hard_page --out docs/results/hard

For each setting what half the steps and rounding cost, and every method; for each model the captions of all its
settings together, at round speed-ups: a family's clips between two of its settings are taken to lie on a line in the
log of the speed-up, caption by caption, and a family is left out where its settings do not reach. Nothing is measured
here that was not measured before, unless a clip is missing.
"""

from __future__ import annotations

import argparse
import itertools
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean, median
from typing import Any

import numpy as np

from mixcache.bench.families import select
from mixcache.bench.methods import Method, fewer_steps
from mixcache.policies.budget import check_reach
from mixcache.report.markdown import table
from mixcache.report.plot import image
from mixcache.store import write_json, write_whole
from studies.hard import BROKEN, SETTINGS, Trials, speedup_of

METHODS = ("hold:speedup=1.5", "hold:speedup=2.0", "hold:speedup=2.5", "hold:speedup=3.0", "teacache", "mag-cache")
METHODS += ("hold", "every_nth:period=2", "hindsight", "fewer-steps")
SPEEDUPS = (1.5, 2.0, 2.5, 3.0)
FIGURES = "hard.json"
CACHES = 1.01
"""Speed-up of a method that caches at all."""
NEAR = 0.02
"""Difference in the log of the speed-up within which a method is taken to be at it."""


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--settings", nargs="+", choices=SETTINGS, default=list(SETTINGS))
    parser.add_argument("--methods", nargs="+", default=list(METHODS))
    parser.add_argument("--num-prompts", type=int, default=16)
    parser.add_argument("--work", type=Path, default=Path("build/hard"))
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args(arguments)
    found = {name: measured(name, args.methods, args.num_prompts, args.work) for name in args.settings}
    args.out.mkdir(parents=True, exist_ok=True)
    write_json(args.out / FIGURES, found)
    write_whole(args.out / "hard.md", page(found, args.num_prompts))
    write_whole(args.out / "hard.png", picture(found))


def measured(name: str, methods: Sequence[str], num_prompts: int, work: Path) -> dict[str, Any]:
    """What is known of a setting: how hard it is, and its methods."""
    trials, setting = Trials(name, num_prompts, is_held_out=True, work=work), SETTINGS[name]
    chosen = select([m for m in methods if is_in_reach(m, setting.num_steps)], setting.num_steps, trials.transformer)
    half = trials.values(fewer_steps(setting.num_steps // 2))
    return {
        "model": setting.model,
        "half": median(psnr for _, psnr in half),
        "bfloat16": median(psnr for _, psnr in trials.rounded()),
        "methods": [
            {"family": family_of(method), "name": method.name, "values": trials.values(method)} for method in chosen
        ],
    }


def is_in_reach(method: str, num_steps: int) -> bool:
    """False for a wished speed-up that so many steps do not allow."""
    wish = re.fullmatch(r"hold:speedup=([\d.]+)", method)
    try:
        check_reach(float(wish[1]) if wish else 1.0, num_steps)
    except ValueError:
        return False
    return True


def family_of(method: Method) -> str:
    """The line that a method is a point of: `hold` with a wish is one, and without it another."""
    return "hold, wished" if method.family == "hold" and "speedup" in method.settings else method.family


def figures(decibels: Sequence[float]) -> dict[str, str]:
    """What is told of clips; of those that are the plain ones nothing."""
    if not all(map(math.isfinite, decibels)):
        return dict.fromkeys(("lowest", "tenth", "median", "mean"), "identical") | {f"under {BROKEN:.0f} dB": "0%"}
    tenth, middle = np.quantile(decibels, (0.1, 0.5))
    return {
        "lowest": f"{min(decibels):.1f}",
        "tenth": f"{tenth:.1f}",
        "median": f"{middle:.1f}",
        "mean": f"{fmean(decibels):.1f}",
        f"under {BROKEN:.0f} dB": f"{fmean(psnr < BROKEN for psnr in decibels):.0%}",
    }


def command(found: Mapping[str, Any]) -> str:
    """What measures these settings."""
    return f"python -m studies.hard_page --settings {' '.join(found)} --out docs/results/hard"


def page(found: Mapping[str, Any], num_prompts: int) -> str:
    """All of it as Markdown."""
    parts = [
        "# Hard settings\n",
        f"Written by `{command(found)}`, of the methods shown, which `make bench-hard` does for every setting: "
        f"{num_prompts} held-out captions in each setting, a clip of each; PSNR (dB) of "
        "the decoded clips against the plain ones; speed-ups are ideal ones, by work. *Half* is the median with half "
        "the steps, *floor* that of the plain clip in bfloat16: above it nothing is seen. The peers are at settings "
        "of `mixcache bench`, which were searched on training captions at easy settings.\n",
    ]
    for model in dict.fromkeys(setting["model"] for setting in found.values()):
        own = {name: setting for name, setting in found.items() if setting["model"] == model}
        parts += [f"## {model}, all its settings together\n", table(list(pooled_rows(own))), ""]
        for name, setting in own.items():
            parts += [f"### {name}: half {setting['half']:.1f}, floor {setting['bfloat16']:.1f}\n"]
            rows = [
                {"method": m["name"], "speed-up": f"{speedup_of(m['values']):.2f}x"}
                | figures([psnr for _, psnr in m["values"]])
                for m in setting["methods"]
            ]
            parts += [table(rows), ""]
    return "\n".join(parts)


def pooled_rows(settings: Mapping[str, Any]) -> Iterator[dict[str, str]]:
    """A row for each round speed-up and family that reaches it in every setting."""
    families = dict.fromkeys(m["family"] for setting in settings.values() for m in setting["methods"])
    for speedup in SPEEDUPS:
        for family in families:
            clips = [at(setting, family, speedup) for setting in settings.values()]
            if all(clips):
                together = [psnr for of_setting in clips for psnr in of_setting or ()]
                yield {"at": f"{speedup:g}x", "method": family} | figures(together)


def picture(found: Mapping[str, Any]) -> bytes:
    """For each model the tenth percentile of all its clips against the speed-up, with the floor drawn in, as a PNG."""
    from matplotlib.figure import Figure

    models = list(dict.fromkeys(setting["model"] for setting in found.values()))
    figure = Figure(figsize=(4 * len(models), 3.4), layout="constrained")
    for axes, model in zip(figure.subplots(1, len(models), sharey=True, squeeze=False)[0], models, strict=True):
        own = {name: setting for name, setting in found.items() if setting["model"] == model}
        rows = list(pooled_rows(own))
        for family in dict.fromkeys(row["method"] for row in rows):
            points = [(float(r["at"][:-1]), float(r["tenth"])) for r in rows if r["method"] == family]
            axes.plot(*zip(*points, strict=True), marker="o", markersize=4, label=family)
        axes.axhline(min(setting["bfloat16"] for setting in own.values()), linestyle=":", color="grey", label="floor")
        axes.axhline(BROKEN, linewidth=0.7, color="firebrick")
        axes.set_title(f"{model}, {len(own)} hard setting{'s' * (len(own) > 1)}")
        axes.set_xlabel("speed-up by work")
        axes.grid(alpha=0.3)
        axes.legend(fontsize=7)
    figure.axes[0].set_ylabel("PSNR, tenth percentile (dB)")
    return image(figure, dpi=120)


def at(setting: Mapping[str, Any], family: str, speedup: float) -> list[float] | None:
    """PSNR of each caption at a speed-up; None where the family's settings do not reach so far."""
    own = [m["values"] for m in setting["methods"] if m["family"] == family]
    points = sorted((speedup_of(values), values) for values in own if speedup_of(values) > CACHES)
    near = [values for reached, values in points if abs(math.log(reached / speedup)) < NEAR]
    if near:
        return [psnr for _, psnr in near[0]]
    for (low, slower), (high, faster) in itertools.pairwise(points):
        if low < speedup < high:
            share = math.log(speedup / low) / math.log(high / low)
            return [a + share * (b - a) for (_, a), (_, b) in zip(slower, faster, strict=True)]
    return None


if __name__ == "__main__":
    main()
