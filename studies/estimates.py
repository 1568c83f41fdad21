"""What a calibration foretells of hard settings: the tenth percentile of PSNR at each `error`, and what it was.

    python -m studies.estimates --out docs/results

In each setting `mixcache calibrate` as it comes, six clips of two training captions; foretold is what its profile says
of an `error`, measured is the tenth percentile of the captions that judge, as `make bench-hard` found it.
"""

from __future__ import annotations

import argparse
import contextlib
import json
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, median
from typing import Any

import numpy as np
from rich.console import Console

from mixcache.bench.source import code_hash
from mixcache.calibration import CalibrationConfig, built_in_prompts, calibrate
from mixcache.policies.hold import QUALITIES
from mixcache.profiles import Profile, ProfileError
from mixcache.report.markdown import table
from mixcache.store import write_json, write_whole
from studies.hard import SETTINGS, Trials
from studies.hard_page import FIGURES, LIMITS, clipped

NUM_PROMPTS = 2
WITHIN = 4.0
"""dB in which what is foretold is to be near what was measured."""


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--settings", nargs="+", choices=SETTINGS, default=list(SETTINGS))
    parser.add_argument("--hard", type=Path, default=Path("docs/results/hard") / FIGURES)
    parser.add_argument("--work", type=Path, default=Path("build/estimates"))
    parser.add_argument("--out", type=Path, help="folder for estimates.json and estimates.md")
    args = parser.parse_args(arguments)
    found = json.loads(args.hard.read_text())
    rows = [
        row
        for name in args.settings
        if name in found
        for row in rows_of(name, calibrated(name, args.work), found[name])
    ]
    Console(soft_wrap=True, markup=False).print(page(rows))
    if args.out:
        write_json(args.out / "estimates.json", rows)
        write_whole(args.out / "estimates.md", page(rows))


def calibrated(name: str, work: Path) -> Profile:
    """Of a setting, made now or before."""
    path = work / f"{name}-{code_hash()}.json"
    if path.exists():
        return Profile.load(path)
    work.mkdir(parents=True, exist_ok=True)
    trials = Trials(name, 1, is_held_out=False, work=work)
    prompts = tuple(built_in_prompts(NUM_PROMPTS))
    config = CalibrationConfig(model=SETTINGS[name].model, prompts=prompts, arguments=trials.arguments)
    return calibrate(trials.pipeline, config, path)


def rows_of(name: str, profile: Profile, found: dict[str, Any]) -> list[dict[str, Any]]:
    """For each `error` that was measured as one limit for all clips: tenth percentiles in dB, foretold and measured."""
    errors = {f"hold, quality {word}": error for word, error in QUALITIES.items()}
    errors |= {f"hold, error {error:g}": error for error in LIMITS}
    clips = {m["name"]: clipped(m["values"]) for m in found["methods"]}
    rows = []
    for method in errors.keys() & clips.keys():
        error, own = errors[method], clips[method]
        with contextlib.suppress(ProfileError):  # clips that do not tell what an error costs
            foretold = profile.foretold(error, SETTINGS[name].num_steps).psnr_db
            share, measured = fmean(psnr >= foretold for psnr in own), float(np.quantile(own, 0.1))
            rows.append({"setting": name, "error": error, "foretold": foretold, "measured": measured, "share": share})
    return sorted(rows, key=lambda row: row["error"])


def page(rows: Sequence[dict[str, Any]]) -> str:
    """All of it as Markdown."""
    if not rows:
        return "nothing is foretold"
    off = [abs(row["foretold"] - row["measured"]) for row in rows]
    cells: dict[str, dict[str, str]] = {}
    for row in rows:
        cell = f"{row['foretold']:.0f} / {row['measured']:.0f}"
        cells.setdefault(row["setting"], {"setting": row["setting"]})[f"error {row['error']:g}"] = cell
    return "\n".join(
        [
            "# What a calibration foretells\n",
            "Written by `python -m studies.estimates --out docs/results`: tenth percentile of PSNR (dB), foretold by a "
            "profile of six clips of two training captions / measured on the captions that judge in [the hard "
            f"settings](hard/hard.md). {sum(each <= WITHIN for each in off)} of {len(rows)} are within {WITHIN:g} dB, "
            f"which was asked of all; the median is {median(off):.1f} off, the worst {max(off):.1f}. Of the clips "
            f"{fmean(row['share'] for row in rows):.0%} have what is foretold of nine of ten. How far clips scatter is "
            "taken in part from these same settings (`USUAL_SPREAD_DB`).\n",
            table(list(cells.values())),
            "",
        ]
    )


if __name__ == "__main__":
    main()
