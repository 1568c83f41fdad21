"""make bench-hard: the page of the hard settings, from what `studies.hard` measured.

    python -m studies.hard_page --out docs/results/hard
    python -m studies.hard_page --settings wan-20 --keep --out docs/results/hard

For each setting what half the steps and rounding cost, and every method; for each model the captions of all its
settings together, at round speed-ups: a family's clips between two of its settings are taken to lie on a line in the
log of the speed-up, caption by caption, and a family is left out where its settings do not reach. Nothing is measured
here that was not measured before, unless a clip is missing; `--keep` takes what stands in hard.json as it is, and
measures what it lacks.
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
from mixcache.bench.source import code_hash
from mixcache.policies.hold import QUALITIES
from mixcache.report.markdown import table
from mixcache.report.plot import image
from mixcache.store import write_json, write_whole
from studies.hard import BROKEN, SETTINGS, Trials, Value, allows, decibels_of, speedup_of
from studies.hard_search import CHOSEN

WISHED = (1.5, 2.0, 2.5, 3.0, 3.5)
WISHES = tuple(f"hold:speedup={speedup:g}" for speedup in WISHED)
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
HALF, FLOOR = (20.0, 28.0), (36.0, 42.0)
"""PSNR (dB) in which half the steps, and rounding, are to come out in a hard setting."""
MOST_BROKEN_AT_2X = 0.02
TENTH_OVER, MEDIAN_OVER = 1.0, 2.0
"""dB that the default is to be above the best peer."""
MOST_CAPTION_LOSS = 0.01
MOST_UNDER_LIMIT = 0.5
"""dB by which clips of a wish may be under those of one limit at the same work."""
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
    parser.add_argument("--keep", action="store_true", help="what was measured before stays as it is")
    parser.add_argument("--out", type=Path, help="folder for the page; without it clips are measured alone")
    args = parser.parse_args(arguments)
    if args.keep and not args.out:
        parser.error("--keep goes on from the folder that --out names")
    kept = json.loads((args.out / FIGURES).read_text()) if args.keep else {}
    if any(len(row["values"]) != args.num_prompts for own in kept.values() for row in own["methods"]):
        parser.error(f"what stands in {args.out / FIGURES} is of another number of captions than {args.num_prompts}")
    found = kept | {
        name: measured(name, args.methods, args.num_prompts, args.work, kept.get(name)) for name in args.settings
    }
    found = {name: found[name] for name in SETTINGS if name in found}
    if args.out:
        args.out.mkdir(parents=True, exist_ok=True)
        write_json(args.out / FIGURES, found)
        write_whole(args.out / "hard.md", page(found, args.num_prompts))
        write_whole(args.out / "hard.png", picture(found))


def measured(
    name: str, methods: Sequence[str], num_prompts: int, work: Path, kept: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """What is known of a setting: how hard it is, and its methods, those that are `kept` as they were."""
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
    known = {row["name"]: row for row in kept["methods"]} if kept else {}
    rows = [
        known.get(method.name)
        or {
            "family": family_of(method),
            "name": method.name,
            "values": trials.values(method),
            "code": None if method.policy is None else code_hash(),
        }
        for method in (*chosen, *peers)
    ]
    if kept:
        names = {row["name"] for row in rows}
        return {**kept, "methods": [*rows, *(row for row in kept["methods"] if row["name"] not in names)]}
    half = trials.values(fewer_steps(setting.num_steps // 2))
    return {
        "model": setting.model,
        "half": median(decibels_of(half)),
        "bfloat16": median(decibels_of(trials.rounded())),
        "change": trials.step_change(),
        "plain_adherence": trials.plain_adherence(),
        "methods": rows,
    }


def is_in_reach(method: Method, num_steps: int) -> bool:
    """False for a wished speed-up that so many steps do not allow."""
    return allows(method.settings.get("speedup") or 1.0, num_steps)


def family_of(method: Method) -> str:
    """The line that a method is a point of: `hold` with a wish is one, and without it another; and so are the paper's
    policy as it is, corrected, and with a line ahead."""
    if method.family == FIXED and "speedup" in method.settings:
        return OURS
    if method.family == "mixcache":
        kinds = {"granularities": ", step alone", "corrector": ", corrected", "predictor": ", ahead"}
        return "mixcache" + "".join(word for name, word in kinds.items() if method.settings.get(name))
    return method.family


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
    f"*As asked* is within {HALF[0]:.0f} to {HALF[1]:.0f} dB with half the steps and {FLOOR[0]:.0f} to {FLOOR[1]:.0f} "
    "dB in bfloat16, the definition that these settings were looked for by; a model that has none is here with the "
    "hardest that was found. *Change a step* is of the first output of each step, of one caption (relative L1).\n\n"
    "Beside them, as published: a Wan2.1, most likely of 1.3B, changes by 0.14 a step (relative L1, 30 steps, four "
    "prompts); at one rule and threshold clips of real models come out 14 to 21 dB below those of these models in "
    "their easy settings (EasyCache 0.05 on Wan2.1 1.3B 25.2 dB at 2.54x; MagCache 0.12 21.5 dB at 2.68x, from the "
    "methods' repositories); and a plain clip against itself on another kernel has 21.7 dB on HunyuanVideo 1.5 and "
    "38.0 on Wan2.2 I2V."
)


def page(found: Mapping[str, Any], num_prompts: int) -> str:
    """All of it as Markdown."""
    parts = [
        "# Hard settings\n",
        f"Written by `{command(found)}`, of the methods shown: {num_prompts} held-out captions in each setting, a clip "
        "of each; PSNR (dB) of the decoded clips against the plain ones; speed-ups are ideal ones, by work. *Half* is "
        "the median with half the steps, *floor* that of the plain clip in bfloat16: above it nothing is seen. The "
        "settings of the peers were searched for each of these settings on other captions (`python -m "
        "studies.hard_search`, by the mean PSNR of two captions); `hold` has the settings it comes with, chosen on 12 "
        "to 32 other captions, and a wish begins with what the shipped profile knows of how fast the model's outputs "
        "change, which words and limits do not look at. Pooled rows are of those settings in which `hold` reaches the "
        "speed-up: with few steps its first clips stop short of a wish. By wall-clock nothing is measured here. Ours "
        f"are of the code {' and '.join(codes_of(found))} (`mixcache.bench.source`).{partly_told(found)}\n",
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
    parts += [
        "## The captions at 2x\n",
        f"Asked is at most {MOST_CAPTION_LOSS:.0%} less than by the plain clips, with the wish that comes nearest to "
        "2x.\n",
        table(list(caption_rows(found))),
        "",
        "## A wish beside one limit, and beside fixed cadences\n",
        "dB in the lowest clip / in the median by which the clips of a wish are over those of one limit at the same "
        f"work, where limits reach it; asked is -{MOST_UNDER_LIMIT:g} at least. Between two limits each caption is "
        "taken to lie on a line, of which the lowest clips are better than of either.\n",
        table(list(limit_rows(found))),
        "",
        "dB in the lowest clip / tenth percentile / median by which `hold`, wished and with one limit, is over a fixed "
        "cadence at its work, taken as above; asked is 0 at least. *Faster* is where `hold` never is so slow.\n",
        table(list(cadence_rows(found))),
        "",
    ]
    return "\n".join(parts)


def caption_rows(found: Mapping[str, Any]) -> Iterator[dict[str, str]]:
    """What clips show of their captions at about 2x."""
    for name, setting in found.items():
        wished = [m for m in setting["methods"] if m["family"] == OURS]
        if not wished:
            continue
        nearest = min(wished, key=lambda m: abs(math.log(speedup_of(m["values"]) / 2)))
        shown = fmean(value[2] for value in nearest["values"])
        loss = setting["plain_adherence"] - shown
        is_near = abs(math.log(speedup_of(nearest["values"]) / 2)) < FASTER
        yield {
            "setting": name,
            "method": nearest["name"],
            "speed-up": f"{speedup_of(nearest['values']):.2f}x",
            "plain": f"{setting['plain_adherence']:.1%}",
            "cached": f"{shown:.1%}: {word(loss <= MOST_CAPTION_LOSS) if is_near else 'not at 2x'}",
        }


def over(ours: Sequence[float], theirs: Sequence[float], shares: Sequence[float], least: float) -> str:
    """By how much quantiles of ours are over theirs, and whether each is by `least`."""
    differences = [float(np.quantile(ours, q) - np.quantile(theirs, q)) for q in shares]
    return " / ".join(f"{difference:+.1f}" for difference in differences) + f": {word(min(differences) >= least)}"


def limit_rows(found: Mapping[str, Any]) -> Iterator[dict[str, str]]:
    """For each setting its wishes beside one limit for all clips at the same work."""
    for name, setting in found.items():
        cells = {}
        for method in setting["methods"]:
            speedup = speedup_of(method["values"])
            if method["family"] == OURS and (limit := at(setting, FIXED, speedup)):
                wish = method["name"].rpartition(" ")[2]
                cells[f"wished {wish}"] = f"{speedup:.2f}x: " + over(
                    clipped(method["values"]), limit, (0.0, 0.5), -MOST_UNDER_LIMIT
                )
        yield {"setting": name} | {f"wished {wish:g}": cells.get(f"wished {wish:g}", "") for wish in WISHED}


def cadence_rows(found: Mapping[str, Any]) -> Iterator[dict[str, str]]:
    """Each fixed cadence, and how far `hold` is over it at its work."""
    for name, setting in found.items():
        for method in setting["methods"]:
            if not method["name"].startswith("every_nth"):
                continue
            speedup = speedup_of(method["values"])
            row = {"setting": name, "cadence": method["name"], "speed-up": f"{speedup:.2f}x"}
            for family, title in ((OURS, "wished"), (FIXED, "one limit")):
                clips = at(setting, family, speedup)
                row[title] = over(clips, clipped(method["values"]), (0.0, 0.1, 0.5), 0.0) if clips else "faster"
            yield row


def partly_told(found: Mapping[str, Any]) -> str:
    """Which peers stand in some settings alone."""
    told = []
    for family in families_of(found):
        own = [name for name, setting in found.items() if any(m["family"] == family for m in setting["methods"])]
        if family in PEERS and len(own) < len(found):
            told.append(f"{family} in {' and '.join(own)} alone")
    return f" Of the peers {', '.join(told)}." if told else ""


def codes_of(found: Mapping[str, Any]) -> list[str]:
    """Hashes of the code that our rows are of."""
    return sorted({m["code"] for setting in found.values() for m in setting["methods"] if m.get("code")})


def hardness(name: str, setting: Mapping[str, Any]) -> dict[str, str]:
    """How much the plain clips of a setting say of an error, and change from step to step."""
    return {
        "setting": name,
        "half the steps": f"{setting['half']:.1f}",
        "floor": f"{setting['bfloat16']:.1f}",
        "as asked": "yes" if is_as_asked(setting) else "no",
        "change a step": f"{setting['change']:.3f}",
        "captions shown by plain clips": f"{setting['plain_adherence']:.0%}",
    }


def is_as_asked(setting: Mapping[str, Any]) -> bool:
    """True for a setting as hard as the definition asks."""
    return HALF[0] <= setting["half"] <= HALF[1] and FLOOR[0] <= setting["bfloat16"] <= FLOOR[1]


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


PLOTTED = {
    "median": "median (dB)",
    "tenth": "tenth percentile (dB)",
    "lowest": "lowest clip (dB)",
    f"under {BROKEN:.0f} dB": f"clips under {BROKEN:.0f} dB (%)",
}
"""Figures of `pooled_rows`, and what their axes say."""


def picture(found: Mapping[str, Any]) -> bytes:
    """For each model the figures of all its clips against the speed-up, with the floor drawn in, as a PNG; hollow where
    not all settings have the steps for it."""
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    models = list(dict.fromkeys(setting["model"] for setting in found.values()))
    all_colours = itertools.cycle((*colormaps["tab10"].colors, *colormaps["Dark2"].colors))
    colours = dict(zip(families_of(found), all_colours, strict=False))
    figure = Figure(figsize=(4 * len(models), 2.3 * len(PLOTTED)), layout="constrained")
    grid = figure.subplots(len(PLOTTED), len(models), sharex=True, sharey="row", squeeze=False)
    for column, model in enumerate(models):
        own = {name: setting for name, setting in found.items() if setting["model"] == model}
        rows = list(pooled_rows(own))
        for axes, (which, label) in zip(grid[:, column], PLOTTED.items(), strict=True):
            for family in dict.fromkeys(row["method"] for row in rows):
                colour, width = colours[family], 2.5 if family == OURS else 1.2
                points = [(float(r["at"][:-1]), number(r[which]), is_whole(r)) for r in rows if r["method"] == family]
                told, values, _ = zip(*points, strict=True)
                axes.plot(told, values, "o-", color=colour, lw=width, ms=4, label=family)
                part = [point[:2] for point in points if not point[2]]
                if part:
                    axes.plot(*zip(*part, strict=True), "o", color=colour, mfc="white", ms=4)
            if "dB)" in label:
                floor = min(setting["bfloat16"] for setting in own.values())
                axes.axhline(floor, linestyle=":", color="grey", label="floor: rounding")
                axes.axhline(BROKEN, linewidth=0.7, color="firebrick")
            axes.grid(alpha=0.3)
            if not column:
                axes.set_ylabel(label)
        grid[0, column].set_title(f"{model}, {len(own)} hard setting{'s' * (len(own) > 1)}")
        grid[-1, column].set_xlabel("speed-up by work")
    named = {
        label: handle for axes in figure.axes for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    figure.legend(named.values(), named.keys(), loc="outside lower center", ncols=5, fontsize=8)
    return image(figure, dpi=110)


def number(text: str) -> float:
    """`"31.2"` and `"12%"`, as in the tables; not a number for clips that are the plain ones."""
    return math.nan if text == "identical" else float(text.rstrip("%"))


def at(setting: Mapping[str, Any], family: str, speedup: float) -> list[float] | None:
    """PSNR of each caption at a speed-up; None where the family's settings do not reach so far."""
    own = [m["values"] for m in setting["methods"] if m["family"] == family]
    points = sorted((speedup_of(values), values) for values in own if speedup_of(values) > CACHES)
    near = [point for point in points if -SLOWER < math.log(point[0] / speedup) < FASTER]
    if near:
        return clipped(min(near, key=lambda point: abs(math.log(point[0] / speedup)))[1])
    for (low, slower), (high, faster) in itertools.pairwise(points):
        if low < speedup < high:
            share = math.log(speedup / low) / math.log(high / low)
            return [a + share * (b - a) for a, b in zip(clipped(slower), clipped(faster), strict=True)]
    return None


def clipped(values: Sequence[Value]) -> list[float]:
    """PSNR of clips, of which one that is the plain one counts as IDENTICAL."""
    return [min(psnr, IDENTICAL) for psnr in decibels_of(values)]


if __name__ == "__main__":
    main()
