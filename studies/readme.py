"""Writes the measured figures of docs/results into the README, between its two markers, and two pages of their own.

python -m studies.readme

docs/results/README.md has every method, docs/results/targets.md what this project set itself; docs/how-fast.md gets the
table of words and wishes.
"""

from __future__ import annotations

import argparse
import json
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from statistics import median
from typing import Any

from mixcache import zoo
from mixcache.bench.page import idle_reason, kind_of, level_rows, never_fires, noise_of_time
from mixcache.bench.peers import PEERS
from mixcache.bench.results import SPEEDUPS, load
from mixcache.report.markdown import table
from mixcache.store import write_whole
from studies.easy import DEFAULT, clips_at, default_section
from studies.hard import SETTINGS, allows, decibels_of, speedup_of
from studies.hard_page import FIGURES, FIXED, FLOOR, HALF, OURS, command, figures, is_as_asked, pooled_rows
from studies.hard_page import SPEEDUPS as HARD_SPEEDUPS
from studies.overhead import HOOKS
from studies.targets import tally, targets
from studies.text import paragraph

PAGE, TARGETS = "README.md", "targets.md"
HARD = "docs/experiments/2026-11-hard-settings.md"
BEGIN, END = "<!-- measured:begin -->", "<!-- measured:end -->"
RUNS = (
    "shapes-wan-50",
    "shapes-wan-20",
    "shapes-cogvideox-50",
    "shapes-cogvideox-20",
    "shapes-hunyuan-50",
    "shapes-hunyuan-20",
)
"""Folders of docs/results that `make bench` and `make bench-few-steps` fill."""
ABSENT = "–"
KINDS = {
    "ours": "ours",
    "calibrated": "ours, calibrated",
    "peer": "peer",
    "fewer": "no cache",
    "cadence": "ours, fixed",
}


def measured(results: Path) -> str:
    """The README's section: the hard settings, one table and one picture."""
    found = json.loads((results / "hard" / FIGURES).read_text())
    num_prompts = len(next(iter(found.values()))["methods"][0]["values"])
    settings = [f"{name} (half {own['half']:.0f}, floor {own['bfloat16']:.0f})" for name, own in found.items()]
    lines = [
        paragraph(
            f"Measured by `{command(found)}`, of the methods shown: {num_prompts} held-out captions in",
            f"each of {len(found)} settings in which",
            "an error grows as far as these models let it; PSNR in dB of each clip against the plain one of its seed,",
            "lowest / tenth percentile / median of a model's settings together, at an ideal speed-up, by work.",
            "*Half* is the median with half the steps, *floor* that of the plain clip in bfloat16, above which nothing",
            f"is seen: {', '.join(settings)}. As hard as was looked for ({HALF[0]:.0f} to {HALF[1]:.0f} dB,",
            f"{FLOOR[0]:.0f} to {FLOOR[1]:.0f}) are {' and '.join(n for n, own in found.items() if is_as_asked(own))};",
            "the others are easier in one or both. The peers are at settings that were searched for each of these.",
            f"*{OURS}* is the first clip on a handle, which begins with the shipped profile's rates;",
            f"*{FIXED}* has one limit for all clips, as later ones of a wish.",
            "A speed-up that a first clip does not reach in some settings is told of the others.",
        ),
        "",
        table(rows_of_readme(found)),
        "",
        "![Figures against speed-up; hollow: not in all settings](docs/results/hard/hard.png)",
        "",
        paragraph(
            "[Each setting and method, with broken clips](docs/results/hard/hard.md);",
            f"[why these settings]({HARD}); [every peer in easy settings](docs/results/{PAGE});",
            f"[the targets of this project, met or not](docs/results/{TARGETS}).",
        ),
    ]
    return "\n".join(lines)


def words(results: Path) -> str:
    """The section of how-fast.md: what each word, and each wish, gave in the hard settings."""
    found = json.loads((results / "hard" / FIGURES).read_text())
    models = dict.fromkeys(own["model"] for own in found.values())
    settings = {model: {name: own for name, own in found.items() if own["model"] == model} for model in models}
    asked = [m["name"] for own in found.values() for m in own["methods"] if m["family"] in (DEFAULT, OURS)]
    lines = [
        paragraph(
            "In the [hard settings](results/hard/hard.md), the first clip on a handle: speed-up by work, and lowest /",
            "tenth percentile / median PSNR (dB) against the plain clips of the same seeds, of each model's settings",
            f"together ({'; '.join(', '.join(own) for own in settings.values())}), but for those of too few steps for",
            "a wish:",
        ),
        "",
        table(
            [
                {"asked": name.removeprefix(f"{DEFAULT}, ")}
                | {model: told_of_word(settings[model], name) for model in models}
                for name in dict.fromkeys(asked)
            ]
        ),
    ]
    return "\n".join(lines)


def told_of_word(settings: Mapping[str, Any], asked: str) -> str:
    """Speed-up by work and the clips of a word or wish in all settings that have the steps for it; an en dash where it
    was not measured in one of them."""
    found = [[m["values"] for m in own["methods"] if m["name"] == asked] for own in settings.values()]
    wish = re.fullmatch(r"hold, speedup ([\d.]+)", asked)
    for name, clips in zip(settings, found, strict=True):
        if not clips and not (wish and not allows(float(wish[1]), SETTINGS[name].num_steps)):
            return ABSENT
    values = [value for clips in found for value in (clips[0] if clips else ())]
    if not values:
        return ABSENT
    told = figures(decibels_of(values))
    return f"{speedup_of(values):.2f}x: " + " / ".join(told[figure] for figure in ("lowest", "tenth", "median"))


def how_measured(runs: Mapping[str, Mapping[str, Any]]) -> str:
    """Commands, captions, machine, and how sure the times are; ValueError where the runs differ in captions."""
    captions = {tuple(run["prompts"]) for run in runs.values()}
    if len(captions) > 1:
        raise ValueError(f"the runs are of {len(captions)} sets of captions, so they cannot stand in one table")
    noises = [noise_of_time(run) for run in runs.values()]
    return (
        f"Measured by `make bench` and `make bench-few-steps`, two runs at a time, one clip of each of "
        f"{len(captions.pop())} held-out captions: {machine_of(runs)}; two plain clips differ in time by "
        f"{min(noises):.0%} to {max(noises):.0%} (medians)."
    )


def rows_of_readme(found: Mapping[str, Any]) -> list[dict[str, str]]:
    """Each model's families, at each of the README's speed-ups that all its settings reach."""
    rows = []
    for model in dict.fromkeys(setting["model"] for setting in found.values()):
        pooled = list(pooled_rows({name: own for name, own in found.items() if own["model"] == model}))
        told = model
        for family in dict.fromkeys(row["method"] for row in pooled if row["method"] in (OURS, FIXED, *PEERS)):
            row = {"model": told, "method": family}
            for speedup in HARD_SPEEDUPS:
                at = [r for r in pooled if r["method"] == family and r["at"] == f"{speedup:g}x"]
                row[f"{speedup:g}x"] = (
                    " / ".join(at[0][name] for name in ("lowest", "tenth", "median")) if at else ABSENT
                )
            rows.append(row)
            told = ""
    return rows


def told_of(run: Mapping[str, Any], family: str, speedup: float, *, with_median: bool = False) -> str:
    """Mean and lowest clip of a family at a speed-up, with the median between them where asked for; an en dash where no
    setting is that fast."""
    mean = run["at"].get(family, {}).get(f"{speedup:g}")
    if mean is None:
        return ABSENT
    clips = clips_at(run, family, speedup)
    figures = [mean, *([median(clips)] if with_median else []), min(clips)]
    return " / ".join(f"{figure:.1f}" for figure in figures)


def page(results: Path) -> str:
    """README.md of the folder `results`: every method of every run, and what the attachment costs."""
    runs = {name: load(results / name / "results.json") for name in RUNS}
    overhead = json.loads((results / "overhead.json").read_text())
    others = [(path, load(path)) for path in sorted(results.glob("*/results.json")) if path.parent.name not in RUNS]
    lines = [
        "# Results",
        "",
        paragraph("Written by `python -m studies.readme` from the results in this folder.", how_measured(runs)),
        "",
        paragraph(
            "Mean / median / lowest of the clips' PSNR in dB against the plain clip of the same seed, at a wall-clock",
            "speed-up of the denoising loop. Of each method those settings are taken that none of its others beats in",
            "both; a clip at a speed-up between two of them lies on the line between its two clips. One caption's PSNR",
            "is off the mean by several dB, so that near neighbours may change places. *Floor* is the plain clip in",
            "bfloat16 against the one in float32.",
        ),
        "",
        paragraph(
            f"[{TARGETS}]({TARGETS}) lists the targets of this project, met or not. Each `results.md` holds every",
            "setting with its spread, and the same figures by the work that was done.",
        ),
    ]
    lines += ["", *default_section(results, runs)]
    for name, run in runs.items():
        lines += ["", f"## {case_of(run)}", "", f"Floor {floor_of(run)} dB; {tally(run)}. {whole_of(name)}.", ""]
        lines += [table(rows_with_kinds(run)), *failures(run)]
    lines += ["", "## Cost of the attachment", "", paragraph(overhead_line(overhead)), "", "## Other results", ""]
    lines += [f"- {whole_of(path.parent.name)}: {case_of(run)}, {len(run['prompts'])} captions" for path, run in others]
    return "\n".join([*lines, ""])


def machine_of(runs: Mapping[str, Mapping[str, Any]]) -> str:
    """What all runs were made on and with; ValueError where they differ, for they stand in one section."""
    for fact in ("machine", "versions", "source"):
        if len({json.dumps(run[fact], sort_keys=True) for run in runs.values()}) > 1:
            told = "; ".join(f"{name}: {run[fact]}" for name, run in runs.items())
            raise ValueError(f"the runs are of different {fact}, so they cannot stand side by side: {told}")
    run = next(iter(runs.values()))
    machine, versions = run["machine"], run["versions"]
    packages = ", ".join(f"{name} {versions[name]}" for name in ("torch", "diffusers", "cache-dit") if name in versions)
    return f"{machine['device']}, {machine['threads']} of {machine['cores']} cores for each; {packages}"


def case_of(run: Mapping[str, Any]) -> str:
    """What a run is of."""
    steps, guidance = (run["arguments"][key] for key in ("num_inference_steps", "guidance_scale"))
    return f"{run['model']}, {steps} steps, guidance {guidance:g}"


def floor_of(run: Mapping[str, Any]) -> str:
    """PSNR of the plain clip in bfloat16 against float32, in dB."""
    value = next((psnr for name, psnr in run["noise_floor"].items() if name.startswith("bfloat16")), None)
    return ABSENT if value is None else f"{value:.1f}"


def whole_of(name: str) -> str:
    """Where all of a run lies, seen from the folder of results."""
    return f"[{name}]({name}/results.md)"


def rows_with_kinds(run: Mapping[str, Any]) -> list[dict[str, str]]:
    """Clips of every family at every speed-up, in the order of `page.level_rows`, with whose each family is."""
    kinds = {fact["family"]: KINDS[kind_of(fact)] for fact in run["methods"].values()}
    kinds |= {f["family"]: "peer, calibrated" for f in run["methods"].values() if f["is_peer"] and f["is_calibrated"]}
    return [
        {"method": family, "": kinds[family]}
        | {f"{speedup:g}x": told_of(run, family, speedup, with_median=True) for speedup in SPEEDUPS}
        for family in (row["family"] for row in level_rows(run))
    ]


def failures(run: Mapping[str, Any]) -> list[str]:
    """One line for each reason why settings of a family are missing, or all of it."""
    families = Counter(fact["family"] for fact in run["methods"].values())
    facts = {fact["family"]: fact for fact in run["methods"].values()}
    missing = Counter((row["family"], idle_reason(facts[row["family"]])) for row in run["summary"] if never_fires(row))
    for fact in run["methods"].values():
        if fact["failure"]:
            missing[fact["family"], f"cannot be run: {fact['failure']}"] += 1
    lines = [f"- {name}, {count} of {families[name]} settings: {reason}" for (name, reason), count in missing.items()]
    fastest: dict[str, float] = {}
    for row in run["summary"]:
        if not never_fires(row):
            fastest[row["family"]] = max(row["speedup"], fastest.get(row["family"], 0.0))
    slow = {family: speedup for family, speedup in fastest.items() if family != "plain" and speedup < SPEEDUPS[0]}
    lines += [f"- {family}: at most {speedup:.2f}x" for family, speedup in slow.items()]
    return ["", *lines] if lines else []


def overhead_line(overhead: dict[str, Any]) -> str:
    """One sentence on what the attachment itself costs."""
    attached, noise = overhead["always_compute over plain"], overhead["plain over plain"]
    (low, high), (least, most) = attached["quartiles"], noise["quartiles"]
    num_threads = overhead["machine"]["threads"]
    threads = f"{num_threads} thread{'s' * (num_threads != '1')}"
    hooks = "; ".join(
        f"{model} "
        + ", ".join(f"{overhead[f'hook of {name} on {model}']['median'] - 1:.1%} with `{name}`" for name in HOOKS)
        for model in zoo.BUILT_IN
    )
    return (
        f"`{overhead['command']}`: on {threads}, what the hook does for itself takes of the rest of the loop: {hooks}. "
        f"The whole loop attached with `always_compute` over the plain one: {attached['median'] - 1:+.1%} (median of "
        f"{len(attached['all'])} interleaved pairs, quartiles {low - 1:+.1%} and {high - 1:+.1%}); the plain one over "
        f"itself: {noise['median'] - 1:+.1%} ({least - 1:+.1%} and {most - 1:+.1%})."
    )


def targets_page(results: Path) -> str:
    """targets.md: for every folder of results, what this project set itself and whether the run meets it."""
    lines = [
        "# Targets",
        "",
        "What this project set itself, held against the results in this folder by `studies/targets.py`.",
    ]
    for path in sorted(results.glob("*/results.json")):
        run = load(path)
        lines += ["", f"## {path.parent.name}: {tally(run)}", "", *(target.line for target in targets(run))]
    return "\n".join([*lines, ""])


def filled(readme: str, section: str) -> str:
    """A page with the section between its markers; ValueError where a marker is missing."""
    head, begin, rest = readme.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"the page lacks {BEGIN} or {END}")
    return f"{head}{BEGIN}\n{section}\n{END}{tail}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--readme", type=Path, default=Path("README.md"))
    parser.add_argument("--results", type=Path, default=Path("docs/results"))
    parser.add_argument("--how-fast", type=Path, default=Path("docs/how-fast.md"))
    args = parser.parse_args()
    write_whole(args.how_fast, filled(args.how_fast.read_text(), words(args.results)))
    write_whole(args.results / TARGETS, targets_page(args.results))
    write_whole(args.results / PAGE, page(args.results))
    write_whole(args.readme, filled(args.readme.read_text(), measured(args.results)))


if __name__ == "__main__":
    main()
