"""A report as one self-contained HTML page: no request leaves it, pictures and videos are inside."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mixcache.report import figures
from mixcache.report.filmstrip import Film, data_uri, film
from mixcache.report.template import rendered
from mixcache.report.timeline import GRANULARITIES, Cell, Curve, Mark, cells, curve, step_marks
from mixcache.report.video import ClipPair
from mixcache.store import write_whole

TEMPLATE = "report.html.j2"
ASPECTS = ("colour", "shape", "motion", "background")


@dataclass(frozen=True, kw_only=True, slots=True)
class Figure:
    """One number with its name and, if it needs one, a line on how to read it."""

    name: str
    value: str
    note: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """One granularity's part of all steps."""

    granularity: str
    meaning: str
    count: int


@dataclass(frozen=True, kw_only=True, slots=True)
class ClipView:
    """One clip as the template shows it."""

    number: int
    caption: str
    seed: str
    figures: tuple[Figure, ...]
    aspects: tuple[tuple[str, str, str], ...]
    """Aspect, adherence plain, adherence cached; empty where it was not measured."""
    film: Film
    video: str | None
    cells: tuple[Cell, ...]
    step_marks: tuple[Mark, ...]
    sigma_range: tuple[str, str]
    curve: Curve | None


def write_html(report: Mapping[str, Any], clips: Sequence[ClipPair], path: str | Path) -> None:
    """Write the page of a report (the content of report.json) to `path`, as UTF-8.

    `clips` holds the pixels of `report["clips"]`, in the same order. A side-by-side video is embedded where the file
    that the clip names lies next to `path`. ValueError if the two lists differ in length, or a trace holds an unknown
    granularity.
    """
    entries = report.get("clips") or []
    if len(entries) != len(clips):
        raise ValueError(f"the report tells of {len(entries)} clips, but the pixels of {len(clips)} were given")
    folder = Path(path).parent
    views = [
        _clip_view(index, entry, pair, folder) for index, (entry, pair) in enumerate(zip(entries, clips, strict=True))
    ]
    page = rendered(
        TEMPLATE,
        title=f"{plain(report, 'model')} with {plain(report, 'policy')}",
        model=plain(report, "model"),
        policy=plain(report, "policy"),
        run=_run_line(report),
        interrupted=bool(report.get("interrupted")),
        headline=_headline(report),
        parts=_parts(report),
        clips=views,
        rows=_figure_rows(report, entries),
        tables=_tables(report),
    )
    write_whole(path, page)


def plain(record: Mapping[str, Any], key: str) -> str:
    """The record's value in words; an en dash where it has none."""
    return figures.plain_text(record.get(key))


def _run_line(report: Mapping[str, Any]) -> str:
    parts = []
    if report.get("num_inference_steps") is not None:
        parts.append(f"{report['num_inference_steps']} steps")
    if report.get("guidance_scale") is not None:
        parts.append(f"guidance {report['guidance_scale']:g}")
    if report.get("size"):
        width, height = report["size"]
        parts.append(f"{width}×{height} pixels")
    if report.get("num_frames") is not None:
        parts.append(f"{report['num_frames']} frames")
    if report.get("seed") is not None:
        parts.append(f"seed {report['seed']}")
    return " · ".join(parts)


def _headline(report: Mapping[str, Any]) -> tuple[Figure, ...]:
    has_clips = bool(report.get("clips"))
    psnr = figures.psnr(report.get("psnr_db")) if has_clips else figures.ABSENT
    return (
        Figure(name="Speed-up", value=figures.speedup(report.get("speedup")), note="of the denoising loop"),
        Figure(name="PSNR", value=psnr, note="against the plain run; higher is closer"),
        Figure(name="SSIM", value=figures.ssim(report.get("ssim")), note="against the plain run; 1 is the same"),
    )


def _parts(report: Mapping[str, Any]) -> tuple[Part, ...]:
    counts = report.get("granularity_counts") or {}
    return tuple(
        Part(granularity=name, meaning=meaning, count=int(counts.get(name) or 0))
        for name, meaning in GRANULARITIES.items()
    )


def _clip_view(index: int, entry: Mapping[str, Any], pair: ClipPair, folder: Path) -> ClipView:
    trace = entry.get("trace") or []
    plain_aspects, cached_aspects = entry.get("adherence_plain"), entry.get("adherence_cached")
    aspects = tuple(
        (name, figures.share((plain_aspects or {}).get(name)), figures.share((cached_aspects or {}).get(name)))
        for name in dict.fromkeys((*ASPECTS, *(plain_aspects or {}), *(cached_aspects or {})))
    )
    return ClipView(
        number=index + 1,
        caption=str(entry.get("caption") or ""),
        seed=plain(entry, "seed"),
        figures=(
            Figure(name="Plain", value=figures.with_unit(entry.get("seconds_plain"), "s")),
            Figure(name="Cached", value=figures.with_unit(entry.get("seconds_cached"), "s")),
            Figure(name="Speed-up", value=figures.speedup(entry.get("speedup"))),
            Figure(name="PSNR", value=figures.psnr(entry.get("psnr_db"))),
            Figure(name="SSIM", value=figures.ssim(entry.get("ssim"))),
        ),
        aspects=aspects if plain_aspects or cached_aspects else (),
        film=film(pair),
        video=_video_uri(entry.get("side_by_side"), folder),
        cells=cells(trace),
        step_marks=step_marks(trace),
        sigma_range=(plain(trace[0], "sigma"), plain(trace[-1], "sigma"))
        if trace
        else (figures.ABSENT, figures.ABSENT),
        curve=curve(trace),
    )


def _video_uri(name: str | None, folder: Path) -> str | None:
    """The named video as a data URI; None where the name is not that of a file in the page's own folder."""
    if not name or Path(name).name != name or not (folder / name).is_file():
        return None
    return data_uri((folder / name).read_bytes(), "video/mp4")


def _figure_rows(report: Mapping[str, Any], entries: Sequence[Mapping[str, Any]]) -> tuple[tuple[str, ...], ...]:
    """One row per clip and one for all, in the order of the template's columns."""
    rows = [
        (
            f"{index}. {entry.get('caption') or ''}",
            figures.with_unit(entry.get("seconds_plain"), "s"),
            figures.with_unit(entry.get("seconds_cached"), "s"),
            figures.speedup(entry.get("speedup")),
            figures.psnr(entry.get("psnr_db")),
            figures.ssim(entry.get("ssim")),
            figures.share(figures.mean_share(entry.get("adherence_plain"))),
            figures.share(figures.mean_share(entry.get("adherence_cached"))),
        )
        for index, entry in enumerate(entries, start=1)
    ]
    if entries:
        rows.append(
            (
                "All clips",
                figures.with_unit(sum(entry.get("seconds_plain") or 0.0 for entry in entries), "s"),
                figures.with_unit(sum(entry.get("seconds_cached") or 0.0 for entry in entries), "s"),
                figures.speedup(report.get("speedup")),
                figures.psnr(report.get("psnr_db")),
                figures.ssim(report.get("ssim")),
                figures.share(report.get("adherence_plain")),
                figures.share(report.get("adherence_cached")),
            )
        )
    return tuple(rows)


def _tables(report: Mapping[str, Any]) -> tuple[tuple[str, tuple[tuple[str, str], ...]], ...]:
    """The tables at the end: a heading, and names with values."""
    run = (
        ("model", plain(report, "model")),
        ("policy", plain(report, "policy")),
        *_pairs(report.get("settings")),
        ("peak memory", figures.byte_size(report.get("peak_memory_bytes"))),
        ("of it held by the cache", figures.byte_size(report.get("cache_peak_bytes"))),
    )
    others = (("Versions", _pairs(report.get("versions"))), ("Machine", _pairs(report.get("machine"))))
    return (("Settings and memory", run), *((heading, rows) for heading, rows in others if rows))


def _pairs(record: Mapping[str, Any] | None) -> tuple[tuple[str, str], ...]:
    return tuple((str(name), figures.setting(value)) for name, value in (record or {}).items())
