"""Writes the measured figures of docs/results into the README, between its two markers, and docs/results/targets.md.

python -m studies.readme
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mixcache.bench.page import idle_reason, kind_of, level_rows, never_fires, noise_of_time
from mixcache.bench.results import SPEEDUPS, load
from mixcache.report.markdown import table
from mixcache.store import write_whole
from studies.targets import tally, targets

TARGETS = "targets.md"
BEGIN, END = "<!-- measured:begin -->", "<!-- measured:end -->"
RUNS = (
    "shapes-wan-50",
    "shapes-wan-20",
    "shapes-cogvideox-50",
    "shapes-hunyuan-50",
    "shapes-cogvideox-20",
    "shapes-hunyuan-20",
)
"""Folders of docs/results: `make bench` fills the first four, `make bench-few-steps` the others."""
KINDS = {
    "ours": "ours",
    "calibrated": "ours, calibrated",
    "peer": "peer",
    "fewer": "no cache",
    "cadence": "ours, fixed",
}


def measured(results: Path) -> str:
    """The section's text, from the results of `RUNS` and overhead.json in the folder `results`.

    The first run is shown with its plot, the others are folded.
    """
    runs = {name: load(results / name / "results.json") for name in RUNS}
    overhead = json.loads((results / "overhead.json").read_text())
    first, *others = runs
    case = runs[first]
    lines = [
        f"`make bench` and `make bench-few-steps`, two runs at a time: {len(case['prompts'])} held-out captions; "
        f"{machine_of(runs)}.",
        "PSNR (dB) against the plain clip of the same seed at a wall-clock speed-up of the denoising loop, on each",
        "method's best settings. One caption's PSNR is off the mean by several dB, and the time of one clip by the",
        "noise told with each table, so that near neighbours may change places. "
        f"[{TARGETS}](docs/results/{TARGETS}) lists",
        "the targets of this project, met or not; `results.md` holds the same tables by the work that was done.",
        "",
        f"**{case_of(case)}**. {whole_of(first)}:",
        "",
        f"![Quality against speed-up](docs/results/{first}/quality.png)",
        "",
        *tables(case),
    ]
    for name in others:
        head = f"<details><summary>{case_of(runs[name])}</summary>"
        lines += ["", head, "", whole_of(name), "", *tables(runs[name]), "", "</details>"]
    return "\n".join([*lines, "", overhead_line(overhead)])


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
    """What a run is of, how it did, and how sure its times are."""
    steps, guidance = (run["arguments"][key] for key in ("num_inference_steps", "guidance_scale"))
    case = f"{run['model']}, {steps} steps, guidance {guidance:g}, {run['scheduler']}"
    return f"{case}: {tally(run)}, noise of a clip's time {noise_of_time(run):.0%}"


def whole_of(name: str) -> str:
    """Where all of a run lies."""
    return f"[Every setting and spread](docs/results/{name}/results.md)"


def tables(run: Mapping[str, Any]) -> list[str]:
    """PSNR by method and speed-up, and what could not be run."""
    return [table(rows_with_kinds(run)), *failures(run)]


def rows_with_kinds(run: Mapping[str, Any]) -> list[dict[str, Any]]:
    """`page.level_rows`, with whose each family is."""
    kinds = {fact["family"]: KINDS[kind_of(fact)] for fact in run["methods"].values()}
    kinds |= {f["family"]: "peer, calibrated" for f in run["methods"].values() if f["is_peer"] and f["is_calibrated"]}
    columns = [f"{speedup:g}x" for speedup in SPEEDUPS]
    return [
        {"method": row["family"], "": kinds[row["family"]], **{name: row[name] for name in columns}}
        for row in level_rows(run)
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
    own = {policy: overhead[f"hook of {policy}"]["median"] - 1 for policy in ("always_compute", "hindsight")}
    return (
        f"`{overhead['command']}`: what the hook does for itself takes {own['always_compute']:.1%} of the rest of the "
        f"loop with `always_compute` and {own['hindsight']:.1%} with `hindsight`. The whole loop attached with "
        f"`always_compute` over the plain one: {attached['median'] - 1:+.1%} (median of {len(attached['all'])} "
        f"interleaved pairs, quartiles {low - 1:+.1%} and {high - 1:+.1%}); the plain one over itself: "
        f"{noise['median'] - 1:+.1%} ({least - 1:+.1%} and {most - 1:+.1%})."
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
    """`readme` with the section between the markers; ValueError where a marker is missing."""
    head, begin, rest = readme.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"the README lacks {BEGIN} or {END}")
    return f"{head}{BEGIN}\n{section}\n{END}{tail}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--readme", type=Path, default=Path("README.md"))
    parser.add_argument("--results", type=Path, default=Path("docs/results"))
    args = parser.parse_args()
    write_whole(args.results / TARGETS, targets_page(args.results))
    write_whole(args.readme, filled(args.readme.read_text(), measured(args.results)))


if __name__ == "__main__":
    main()
