"""The default beside the best peer in the easy settings of `make bench`: by work, so that machines may differ.

`make bench-default` fills the folders default-* of docs/results with `hold`, on the captions and seeds of the runs in
which the peers were measured; `python -m studies.readme` writes the section.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from statistics import fmean, median
from typing import Any

from mixcache.bench.records import pareto_front
from mixcache.bench.results import SPEEDUPS, load
from mixcache.report.markdown import table
from studies.text import paragraph

DEFAULT = "hold"
FIGURES = {"lowest": min, "median": median, "mean": fmean}


def clips_at(run: Mapping[str, Any], family: str, speedup: float, by: str = "speedup") -> list[float]:
    """PSNR of each clip of a family at a speed-up, by wall-clock or `by` "ideal", on the line between the settings that
    `records.best_at` takes; empty where none is that fast. A clip that is the plain one under either of them is left
    out: it has no PSNR."""
    rows = {
        (row[by], row["psnr_db"]): row["method"]
        for row in run["summary"]
        if row["family"] == family and row["psnr_db"] is not None
    }
    front = pareto_front(list(rows))
    slower, faster = [p for p in front if p[0] <= speedup], [p for p in front if p[0] >= speedup]
    if not faster:
        return []
    ends = (slower[-1] if slower else faster[0], faster[0])
    share = (speedup - ends[0][0]) / (ends[1][0] - ends[0][0]) if ends[0] != ends[1] else 0.0
    psnrs = ([r["psnr_db"] for r in run["records"] if r["method"] == rows[end]] for end in ends)
    pairs = zip(*psnrs, strict=True)
    return [low + share * (high - low) for low, high in pairs if low is not None and high is not None]


def default_section(results: Path, runs: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Lines of a page: for each run, by its name, and each speed-up the default, and the best peer."""
    there = [name for name in runs if default_file(results, name).exists()]
    rows = [row for name in there for row in _rows(name, runs[name], default_of(results, name, runs[name]))]
    missed = sum(row["not below"] == "NO" for row in rows)
    return [
        "## The default beside the best peer, by work",
        "",
        paragraph(
            "`make bench-default` measured `hold`, as it comes and with wishes, on the captions and seeds of the",
            "runs below. Lowest / median / mean PSNR (dB) at an ideal speed-up; the best peer is taken for each",
            f"figure alone. `hold` is below one in {missed} of {len(rows)} rows.",
            *(
                [f"Not measured: {', '.join(absent)}."]
                if (absent := [name for name in runs if name not in there])
                else ()
            ),
        ),
        "",
        table(rows),
    ]


def default_file(results: Path, name: str) -> Path:
    """Of the default, on the captions of a run."""
    return results / f"default-{name}" / "results.json"


def default_of(results: Path, name: str, run: Mapping[str, Any]) -> dict[str, Any]:
    """The run of the default on the captions of another; ValueError where they are others."""
    own = load(default_file(results, name))
    for fact in ("prompts", "arguments"):
        if json.dumps(run[fact], sort_keys=True) != json.dumps(own[fact], sort_keys=True):
            raise ValueError(f"default-{name} has other {fact} than {name}, so they cannot stand in one table")
    return own


def _rows(name: str, run: Mapping[str, Any], own: Mapping[str, Any]) -> Iterator[dict[str, str]]:
    peers = {fact["family"] for fact in run["methods"].values() if fact["is_peer"]}
    for speedup in SPEEDUPS:
        ours = clips_at(own, DEFAULT, speedup, by="ideal")
        theirs = [clips for family in sorted(peers) if (clips := clips_at(run, family, speedup, by="ideal"))]
        if not ours or not theirs:
            continue
        figures = {word: (of(ours), max(of(clips) for clips in theirs)) for word, of in FIGURES.items()}
        yield {
            "setting": name,
            "at": f"{speedup:g}x",
            "hold": " / ".join(f"{mine:.1f}" for mine, _ in figures.values()),
            "best peer": " / ".join(f"{best:.1f}" for _, best in figures.values()),
            "not below": "yes" if all(mine >= best for mine, best in figures.values()) else "NO",
        }
