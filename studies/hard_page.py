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
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean, median
from typing import Any

import numpy as np

from mixcache.bench.families import select
from mixcache.bench.methods import Method, fewer_steps
from mixcache.bench.peers import PEERS
from mixcache.policies.hold import QUALITIES
from mixcache.report.markdown import table
from mixcache.report.plot import image
from mixcache.store import write_json, write_whole
from studies.hard import BROKEN, SETTINGS, Trials, allows, decibels_of, speedup_of
from studies.hard_search import CHOSEN

WISHES = tuple(f"hold:speedup={speedup:g}" for speedup in (1.5, 2.0, 2.5, 3.0, 3.5))
TRIGGER = "mixcache:granularities=step"
LIMITS = (0.8, 1.2)
"""Errors over those of the words."""
METHODS = (
    *WISHES,
    *(f"hold:quality={word}" for word in QUALITIES),
    *(f"hold:error={limit:g}" for limit in LIMITS),
    "every_nth:period=2",
    "mixcache",
    "mixcache:corrector=true",
    f"{TRIGGER}:corrector=true",
    "fewer-steps",
)
"""Ours, and fewer steps; the peers are at what `studies.hard_search` found."""
SPEEDUPS = (1.5, 2.0, 2.5, 3.0)
OURS, FIXED = "hold, wished", "hold"
"""With a wish, each clip its first; and with one limit for all clips, as a word or a number: later clips of a wish have
one that was learnt."""
FIGURES = "hard.json"
MOST_BROKEN_AT_2X = 0.02
TENTH_OVER, MEDIAN_OVER = 1.0, 2.0
"""dB that the default is to be above the best peer."""
IDENTICAL = 100.0
"""PSNR (dB) that a clip without any error counts as."""
CACHES = 1.01
"""Speed-up of a method that caches at all."""
SLOWER, FASTER = 0.02, 0.05
"""Differences in the log of the speed-up within which a method is taken to be at it: one that saves more may."""


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--settings", nargs="+", choices=SETTINGS, default=list(SETTINGS))
    parser.add_argument("--methods", nargs="+", default=list(METHODS))
    parser.add_argument("--num-prompts", type=int, default=16)
    parser.add_argument("--work", type=Path, default=Path("build/hard"))
    parser.add_argument("--out", type=Path, help="folder for the page; without it clips are measured alone")
    args = parser.parse_args(arguments)
    found = {name: measured(name, args.methods, args.num_prompts, args.work) for name in args.settings}
    if args.out:
        args.out.mkdir(parents=True, exist_ok=True)
        write_json(args.out / FIGURES, found)
        write_whole(args.out / "hard.md", page(found, args.num_prompts))
        write_whole(args.out / "hard.png", picture(found))


def measured(name: str, methods: Sequence[str], num_prompts: int, work: Path) -> dict[str, Any]:
    """What is known of a setting: how hard it is, and its methods."""
    trials, setting = Trials(name, num_prompts, is_held_out=True, work=work), SETTINGS[name]
    chosen = [
        method
        for method in select(methods, setting.num_steps, trials.transformer)
        if is_in_reach(method, setting.num_steps)
    ]
    peers = [
        PEERS[family].make(setting.num_steps, **options)
        for family, found in json.loads(CHOSEN.read_text()).get(name, {}).items()
        for options in found
    ]
    half = trials.values(fewer_steps(setting.num_steps // 2))
    return {
        "model": setting.model,
        "half": median(decibels_of(half)),
        "bfloat16": median(decibels_of(trials.rounded())),
        "change": trials.step_change(),
        "plain_adherence": trials.plain_adherence(),
        "methods": [
            {"family": family_of(method), "name": method.name, "values": trials.values(method)}
            for method in (*chosen, *peers)
        ],
    }


def is_in_reach(method: Method, num_steps: int) -> bool:
    """False for a wished speed-up that so many steps do not allow."""
    return allows(method.settings.get("speedup") or 1.0, num_steps)


def family_of(method: Method) -> str:
    """The line that a method is a point of: `hold` with a wish is one, and without it another."""
    return OURS if method.family == FIXED and "speedup" in method.settings else method.family


def figures(decibels: Sequence[float]) -> dict[str, str]:
    """What is told of clips; one that is the plain one counts as IDENTICAL."""
    if all(map(math.isinf, decibels)):
        return dict.fromkeys(("lowest", "tenth", "median", "mean"), "identical") | {f"under {BROKEN:.0f} dB": "0%"}
    decibels = [min(psnr, IDENTICAL) for psnr in decibels]
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
    if list(found) == list(SETTINGS):
        return "make bench-hard"
    return f"python -m studies.hard_page --settings {' '.join(found)} --out docs/results/hard"


REAL = (
    "Beside them, as published: Wan2.1 1.3B at 50 steps changes by 0.14 a step (relative L1, 30 steps, four prompts); "
    "at one rule and threshold clips of real models come out 14 to 21 dB below those of these models in their easy "
    "settings (EasyCache 0.05 on Wan2.1 1.3B 25.2 dB at 2.54x; MagCache 0.12 21.5 dB at 2.68x, from the methods' "
    "repositories); and a plain clip against itself on another kernel has 21.7 dB on HunyuanVideo 1.5 and 38.0 on "
    "Wan2.2 I2V."
)


def page(found: Mapping[str, Any], num_prompts: int) -> str:
    """All of it as Markdown."""
    parts = [
        "# Hard settings\n",
        f"Written by `{command(found)}`, of the methods shown: {num_prompts} held-out captions in each setting, a clip "
        "of each; PSNR (dB) of the decoded clips against the plain ones; speed-ups are ideal ones, by work. *Half* is "
        "the median with half the steps, *floor* that of the plain clip in bfloat16: above it nothing is seen. The "
        "settings of the peers were searched for each of these settings on other captions (`python -m "
        "studies.hard_search`); `hold` is as "
        "it comes.\n",
        "## How hard they are\n",
        table([hardness(name, setting) for name, setting in found.items()]),
        "",
        REAL,
        "",
    ]
    for model in dict.fromkeys(setting["model"] for setting in found.values()):
        own = {name: setting for name, setting in found.items() if setting["model"] == model}
        parts += [
            f"## {model}, {len(own)} hard setting{'s together' if len(own) > 1 else ''}\n",
            table(list(pooled_rows(own))),
            "",
        ]
        for family, words in ((OURS, "a wish, the first clip on a handle,"), (FIXED, "one limit for all clips")):
            if rows := list(bars(own, family)):
                parts += [f"`hold` with {words} against the best peer, taken for each figure alone:\n", table(rows), ""]
        for name, setting in own.items():
            parts += [f"### {name}: half {setting['half']:.1f}, floor {setting['bfloat16']:.1f}\n"]
            rows = [
                {"method": m["name"], "speed-up": f"{speedup_of(m['values']):.2f}x"}
                | figures(decibels_of(m["values"]))
                | {"caption": f"{fmean(value[2] for value in m['values']):.0%}"}
                for m in setting["methods"]
            ]
            parts += [table(rows), ""]
    return "\n".join(parts)


def hardness(name: str, setting: Mapping[str, Any]) -> dict[str, str]:
    """How much the plain clips of a setting say of an error, and change from step to step."""
    return {
        "setting": name,
        "half the steps": f"{setting['half']:.1f}",
        "floor": f"{setting['bfloat16']:.1f}",
        "change a step": f"{setting['change']:.3f}",
        "captions shown by plain clips": f"{setting['plain_adherence']:.0%}",
    }


def pooled(settings: Mapping[str, Any], family: str, speedup: float, ours: str = OURS) -> list[float] | None:
    """PSNR of all clips of the settings in which ours reaches a speed-up, or of all settings where that is none; None
    where a family does not reach it in one of them."""
    clips = [at(setting, family, speedup) for setting in compared(settings, speedup, ours)]
    return [psnr for of_setting in clips for psnr in of_setting or ()] if all(clips) else None


def compared(settings: Mapping[str, Any], speedup: float, ours: str = OURS) -> list[Any]:
    """The settings in which ours reaches a speed-up, or all of them."""
    return [own for own in settings.values() if at(own, ours, speedup)] or list(settings.values())


def is_whole(row: Mapping[str, str]) -> bool:
    """True for a row of `pooled_rows` of all settings."""
    count, _, of = row["settings"].partition(" of ")
    return count == of


def families_of(settings: Mapping[str, Any]) -> list[str]:
    return list(dict.fromkeys(m["family"] for setting in settings.values() for m in setting["methods"]))


def pooled_rows(settings: Mapping[str, Any]) -> Iterator[dict[str, str]]:
    """A row for each round speed-up and family that reaches it wherever ours does, or everywhere."""
    for speedup in SPEEDUPS:
        count = len(compared(settings, speedup))
        for family in families_of(settings):
            clips = pooled(settings, family, speedup)
            if clips:
                yield {"at": f"{speedup:g}x", "settings": f"{count} of {len(settings)}", "method": family} | figures(
                    clips
                )


def bars(settings: Mapping[str, Any], family: str = OURS) -> Iterator[dict[str, str]]:
    """At each round speed-up what is asked of `hold` against the peers, and whether it is met."""
    peers = [family for family in families_of(settings) if family in PEERS]
    for speedup in SPEEDUPS:
        ours = pooled(settings, family, speedup, family)
        rivals = [clips for peer in peers if (clips := pooled(settings, peer, speedup, family))]
        if not ours or not rivals:
            continue
        broken, least = share_broken(ours), min(map(share_broken, rivals))
        tenth, median_ = (
            float(np.quantile(ours, q)) - max(float(np.quantile(clips, q)) for clips in rivals) for q in (0.1, 0.5)
        )
        most = min(least, MOST_BROKEN_AT_2X) if speedup == 2 else least
        yield {
            "at": f"{speedup:g}x",
            "settings": f"{len(compared(settings, speedup, family))} of {len(settings)}",
            f"under {BROKEN:.0f} dB": f"{broken:.0%}, best peer {least:.0%}: {word(broken <= most)}",
            "tenth percentile": f"{tenth:+.1f} dB: {word(tenth >= TENTH_OVER)}",
            "median": f"{median_:+.1f} dB: {word(median_ >= MEDIAN_OVER)}",
        }


def share_broken(decibels: Sequence[float]) -> float:
    return fmean(psnr < BROKEN for psnr in decibels)


def word(is_met: bool) -> str:
    return "met" if is_met else "missed"


def picture(found: Mapping[str, Any]) -> bytes:
    """For each model the tenth percentile of all its clips against the speed-up, with the floor drawn in, as a PNG;
    hollow where not all settings have the steps for it."""
    from matplotlib.figure import Figure

    models = list(dict.fromkeys(setting["model"] for setting in found.values()))
    colours = {family: f"C{index}" for index, family in enumerate(families_of(found))}
    figure = Figure(figsize=(4 * len(models), 3.4), layout="constrained")
    for axes, model in zip(figure.subplots(1, len(models), sharey=True, squeeze=False)[0], models, strict=True):
        own = {name: setting for name, setting in found.items() if setting["model"] == model}
        rows = list(pooled_rows(own))
        for family in dict.fromkeys(row["method"] for row in rows):
            points = [(float(r["at"][:-1]), float(r["tenth"])) for r in rows if r["method"] == family]
            width = 2.5 if family == OURS else 1.2
            axes.plot(*zip(*points, strict=True), "o-", color=colours[family], lw=width, ms=4, label=family)
            part = [(float(r["at"][:-1]), float(r["tenth"])) for r in rows if r["method"] == family and not is_whole(r)]
            if part:
                axes.plot(*zip(*part, strict=True), "o", color=colours[family], mfc="white", ms=4)
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
    near = [point for point in points if -SLOWER < math.log(point[0] / speedup) < FASTER]
    if near:
        return decibels_of(min(near, key=lambda point: abs(math.log(point[0] / speedup)))[1])
    for (low, slower), (high, faster) in itertools.pairwise(points):
        if low < speedup < high:
            share = math.log(speedup / low) / math.log(high / low)
            return [a + share * (b - a) for a, b in zip(decibels_of(slower), decibels_of(faster), strict=True)]
    return None


if __name__ == "__main__":
    main()
