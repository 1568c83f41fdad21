"""A report as one self-contained HTML page: no request leaves it, pictures and videos are inside."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mixcache.report.filmstrip import data_uri, film
from mixcache.report.plot import image
from mixcache.report.template import rendered
from mixcache.report.timeline import GRANULARITIES, cells, curve, is_measured
from mixcache.report.video import ClipPair
from mixcache.store import write_whole

TEMPLATE = "report.html.j2"
RUN = {
    "num_inference_steps": "{} steps",
    "guidance_scale": "guidance {:g}",
    "size": "{0[0]}×{0[1]} pixels",
    "num_frames": "{} frames",
    "seed": "seed {}",
}
"""What the page says of a run under its title."""


def write_html(report: Mapping[str, Any], clips: Sequence[ClipPair], path: str | Path) -> None:
    """Write the page of a report (the content of report.json) to `path`, as UTF-8; what it lacks is an en dash.

    `clips` holds the pixels of `report["clips"]`, in the same order. A side-by-side video is embedded where the file
    that the clip names lies next to `path`. ValueError if the two lists differ in length, or a trace holds an unknown
    granularity.
    """
    entries = report.get("clips") or []
    if len(entries) != len(clips):
        raise ValueError(f"the report tells of {len(entries)} clips, but the pixels of {len(clips)} were given")
    known, folder = _tolerant(report), Path(path).parent
    page = rendered(
        TEMPLATE,
        report=known,
        run=" · ".join(text.format(known[name]) for name, text in RUN.items() if known[name] is not None),
        granularities=GRANULARITIES,
        counts=_tolerant(known["granularity_counts"] or {}),
        clips=[_clip(_tolerant(entry), pair, folder) for entry, pair in zip(entries, clips, strict=True)],
    )
    write_whole(path, page)


def _tolerant(record: Mapping[str, Any]) -> Mapping[str, Any]:
    """The record, with None for what it lacks."""
    return defaultdict(lambda: None, record)


def _clip(entry: Mapping[str, Any], pair: ClipPair, folder: Path) -> dict[str, Any]:
    """One clip as the template shows it."""
    trace = entry["trace"] or []
    return {
        "entry": entry,
        "film": film(pair),
        "video": _video_uri(entry["side_by_side"], folder),
        "cells": cells(trace),
        "is_measured": any(map(is_measured, trace)),
        "curve": data_uri(image(curve(trace), "svg", transparent=True), "image/svg+xml") if trace else "",
    }


def _video_uri(name: str | None, folder: Path) -> str | None:
    """The named video as a data URI; None where the name is not that of a file in the page's own folder."""
    if not name or Path(name).name != name or not (folder / name).is_file():
        return None
    return data_uri((folder / name).read_bytes(), "video/mp4")
