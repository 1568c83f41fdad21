"""The results as people read them: Markdown, a plot, and a self-contained HTML page with frames side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mixcache.bench.records import pareto_front
from mixcache.bench.results import FEWER, SPEEDUPS, levels, points
from mixcache.report.figures import significant
from mixcache.report.filmstrip import Strip, data_uri, image_uris
from mixcache.report.markdown import table
from mixcache.report.plot import image
from mixcache.report.template import rendered
from mixcache.store import write_whole

TEMPLATE = "results.html.j2"
SIDE_BY_SIDE, NEAR = 2.0, 0.25
"""Speed-up at which frames are shown, and how far from it, as a share, they may be."""
NUM_BEST = 4
"""Families that are named at a speed-up once a run is done."""
COLUMNS = {
    "method": "method",
    "seconds": "seconds",
    "speedup": "speed-up",
    "speedup_spread": "± speed-up",
    "ideal": "ideal",
    "of_ideal": "of ideal",
    "psnr_db": "PSNR (dB)",
    "psnr_spread": "± PSNR",
    "margin_db": "over fewer steps (dB)",
    "ssim": "SSIM",
    "lpips": "LPIPS",
    "memory_mib": "memory added (MiB), first setting",
}
PEER_COLOURS = ("C3", "C4", "C5", "C6", "C8", "C9", "navy", "olive", "deeppink", "peru", "slategrey")
"""None of them one of ours, which are the first of matplotlib's cycle."""
BY_TIME = "PSNR (dB) at a speed-up, on each family's best settings, in wall-clock"
BY_WORK = "The same at an ideal speed-up, by work, which does not hang on the times of a few clips"
NEVER_FIRES = "never fires: everything is computed"
MARKS = {"ours": "o", "calibrated": "*", "peer": "s", "fewer": "x", "cadence": "."}


def rows_of(result: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The table's rows: every method that was measured, then those that could not be, with the reason."""
    has_lpips = any(row["lpips"] is not None for row in result["summary"])
    shown = {name: label for name, label in COLUMNS.items() if has_lpips or name != "lpips"}
    rows = []
    for row in result["summary"]:
        added = row["memory_added_bytes"]
        values = dict(row) | {"memory_mib": added / 2**20 if added is not None else None}
        told = {label: values[name] for name, label in shown.items()}
        rows.append(told | {"note": note(row, result["methods"].get(row["method"]))})
    measured = {row["method"] for row in result["summary"]}
    for name, fact in result["methods"].items():
        if name not in measured:
            rows.append({"method": name, "note": fact["failure"] or "not measured yet"})
    return rows


def never_fires(row: Mapping[str, Any]) -> bool:
    return row["family"] != "plain" and row["ideal"] <= 1.0


def idle_reason(fact: Mapping[str, Any]) -> str:
    """What is said of a method that never fires."""
    why = fact.get("when_idle")
    return f"{NEVER_FIRES} ({why})" if why else NEVER_FIRES


def note(row: Mapping[str, Any], fact: Mapping[str, Any] | None) -> str:
    """What a reader must know of a row besides its figures."""
    told = []
    if fact and never_fires(row):
        told.append(idle_reason(fact))
    if fact and fact["origin"].startswith("re-implementation"):
        told.append(fact["origin"])
    return "; ".join(told)


def level_rows(result: Mapping[str, Any], by: str = "speedup") -> list[dict[str, Any]]:
    """PSNR of every family at the speed-ups that are compared, in wall-clock or `by` "ideal", best first at 2x."""
    rows = [
        {"family": family, **{f"{s:g}x": values[f"{s:g}"] for s in SPEEDUPS}}
        for family, values in levels(result["summary"], by).items()
        if any(value is not None for value in values.values())
    ]
    return sorted(rows, key=lambda row: -(row["2x"] or 0.0))


def level_tables(result: Mapping[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """`level_rows` under their titles."""
    return {BY_TIME: level_rows(result), BY_WORK: level_rows(result, "ideal")}


def best_lines(result: Mapping[str, Any]) -> list[str]:
    """The families that are best at each speed-up that is compared, one line each."""
    lines = []
    for speedup in SPEEDUPS:
        reached = [(psnr, family) for family, at in result["at"].items() if (psnr := at[f"{speedup:g}"]) is not None]
        best = sorted(reached, reverse=True)[:NUM_BEST]
        if best:
            lines.append(f"at {f'{speedup:g}x':6} {', '.join(f'{family} {psnr:.1f} dB' for psnr, family in best)}")
    return lines


def case_line(result: Mapping[str, Any]) -> str:
    """What was run, in one paragraph."""
    arguments = result["arguments"]
    told = [
        f"{result['model']}: {len(result['prompts'])} prompts, seed {result['seed']}, repeats: {result['num_repeats']}",
        f"{arguments['num_inference_steps']} steps",
        *([f"guidance {arguments['guidance_scale']:g}"] if "guidance_scale" in arguments else []),
        result["scheduler"],
    ]
    if {"width", "height", "num_frames"} <= set(arguments):
        told.append(f"{arguments['num_frames']} frames of {arguments['width']}x{arguments['height']}")
    if result["calibration_prompts"]:
        told.append(f"{len(result['calibration_prompts'])} other prompts for peers that calibrate themselves")
    told += [f"{name} {value}" for name, value in {**result["versions"], **result["machine"]}.items()]
    return ", ".join(told)


def pace_line(result: Mapping[str, Any]) -> str:
    """How even the machine was, and what was left out of the times."""
    plain = [record for record in result["records"] if record["method"] == "plain"]
    if not plain:
        return "No clip was measured."
    encoding, decoding = (np.median([r[name] for r in plain]) for name in ("encoding_seconds", "decoding_seconds"))
    return (
        f"Seconds are of the denoising loop. Left out of them: {encoding:.2f} s before it (text encoder) and "
        f"{decoding:.2f} s after it (VAE). Plain clips before and after a group of methods differ by "
        f"{noise_of_time(result):.1%} in time (median of {len(result['pace'])} pairs), which is the noise of a single "
        f"speed-up."
    )


def noise_of_time(result: Mapping[str, Any]) -> float:
    """By what share two plain clips around a group of methods differ in time, the median."""
    return float(np.median([abs(after / before - 1) for before, after in result["pace"]]))


def noise_line(result: Mapping[str, Any]) -> str:
    """The plain clips against themselves."""
    told = [
        f"{name}: {'the same to the bit' if value is None else f'{value:.1f} dB'}"
        for name, value in result["noise_floor"].items()
    ]
    return f"Noise floor, the plain clip against itself: {'; '.join(told)}." if told else "No noise floor was measured."


def markdown(result: Mapping[str, Any]) -> str:
    """results.md."""
    columns = ["family", *(f"{s:g}x" for s in SPEEDUPS)]
    lines = [
        f"`{result['command']}`",
        "",
        case_line(result) + ".",
        "",
        "Speed-up is the time of the plain clips around a clip over its own, the median over prompts; ideal is the",
        "inverse of the work that was done (linear layers of the blocks), so of ideal tells the overhead. What leaves",
        "out the products of attention alone (pyramid-attention-broadcast, faster-cache) saves more than that counts.",
        "PSNR and SSIM are means over prompts, against the plain clip of the same seed. Memory is what a method added",
        "while a clip was made.",
        "",
        pace_line(result),
        noise_line(result),
        "",
        *(line for title, rows in level_tables(result).items() for line in (f"{title}:", "", table(rows, columns), "")),
        "Every setting:",
        "",
        table(rows_of(result)),
        "",
    ]
    return "\n".join(lines)


def draw(result: Mapping[str, Any]) -> Any:
    """Quality against speed-up, one line a family: a matplotlib figure."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 6), layout="constrained")
    axes = figure.subplots()
    kinds = {fact["family"]: kind_of(fact) for fact in result["methods"].values()}
    peers = [family for family, kind in kinds.items() if kind == "peer"]
    for family, kind in kinds.items():
        line = pareto_front(points(result["summary"], family))
        if not line:
            continue
        style: dict[str, Any] = {"marker": MARKS[kind], "label": family, "linewidth": 1.2, "markersize": 5}
        if kind in ("ours", "calibrated"):
            style |= {"linewidth": 2.6, "markersize": 8 if kind == "ours" else 11, "zorder": 3}
            ideal = pareto_front(
                [(r["ideal"], r["psnr_db"]) for r in result["summary"] if r["family"] == family and r["psnr_db"]]
            )
            axes.plot(*zip(*ideal, strict=True), linestyle=":", linewidth=1, color="grey", zorder=1)
        elif kind == "peer":
            style |= {"color": PEER_COLOURS[peers.index(family) % len(PEER_COLOURS)]}
        else:
            style |= {"color": "black" if kind == "fewer" else "silver", "linewidth": 1.6 if kind == "fewer" else 0.8}
        if kind == "cadence":
            style |= {"label": None, "zorder": 0}
            axes.annotate(family, line[-1], fontsize=6, color="grey", xytext=(3, -2), textcoords="offset points")
        axes.plot(*zip(*line, strict=True), **style)
    _draw_noise_floor(axes, result["noise_floor"])
    axes.set_xlabel("speed-up of the denoising loop, wall-clock (dotted: ideal, if overhead were zero)")
    axes.set_ylabel("PSNR against the plain clip of the same seed (dB)")
    left, right = axes.get_xlim()
    axes.set_xlim(min(1.0, left), max(1.1, right))  # from the plain pipeline on, and what is slower than it too
    axes.grid(alpha=0.3)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize=7, ncols=2)
    return figure


def _draw_noise_floor(axes: Any, floor: Mapping[str, float | None]) -> None:
    """As lines, or in words where one is so high that it would press all others together."""
    top = axes.get_ylim()[1]
    above = []
    for name, value in floor.items():
        if value is not None and value > 1.2 * top:
            above.append(f"{name}, {value:.0f} dB")
        elif value is not None:
            axes.axhline(value, color="grey", linewidth=0.8, linestyle="--")
            axes.annotate(f"noise floor: {name}", (1.0, value), fontsize=7, color="grey", va="bottom")
    if above:
        told = f"noise floor above what is shown: {'; '.join(above)}"
        axes.annotate(told, (0.01, 0.99), xycoords="axes fraction", fontsize=7, color="grey", va="top")


def kind_of(fact: Mapping[str, Any]) -> str:
    if fact["is_peer"]:
        return "peer"
    if fact["family"] == FEWER:
        return "fewer"
    if fact["family"].startswith("every_nth"):
        return "cadence"
    return "calibrated" if fact["is_calibrated"] else "ours"


def side_by_side(result: Mapping[str, Any], frames_path: Any) -> tuple[list[Strip], list[str]]:
    """A strip of frames of the first prompt for each family, at its setting nearest to `SIDE_BY_SIDE`; and the families
    that have none near it."""
    strips, too_far = [], []
    rows = [row for row in result["summary"] if row["family"] != "plain"]
    chosen = [row for row in result["summary"] if row["family"] == "plain"]
    for family in dict.fromkeys(row["family"] for row in rows):
        of_family = [row for row in rows if row["family"] == family and row["psnr_db"] is not None]
        near = [row for row in of_family if abs(row["speedup"] / SIDE_BY_SIDE - 1) < NEAR]
        if near:
            chosen.append(min(near, key=lambda row: abs(row["speedup"] - SIDE_BY_SIDE)))
        else:
            too_far.append(family)
    for row in chosen:
        path = frames_path(row["method"])
        if path.exists():
            psnr = f", {row['psnr_db']:.1f} dB" if row["psnr_db"] is not None else ""
            label = row["method"] if row["family"] == "plain" else f"{row['method']} ({row['speedup']:.2f}x{psnr})"
            strips.append(Strip(label=label, uris=image_uris(np.load(path) / np.float32(255))))
    return strips, too_far


def html(result: Mapping[str, Any], strips: Sequence[Strip], too_far: Sequence[str] = ()) -> str:
    """report.html; no request leaves it."""
    rows = rows_of(result)
    return rendered(
        TEMPLATE,
        result=result,
        case=case_line(result),
        notes=[pace_line(result), noise_line(result)],
        plot=data_uri(image(draw(result), "svg"), "image/svg+xml"),
        levels=level_tables(result),
        speedups=[f"{s:g}x" for s in SPEEDUPS],
        strips=strips,
        too_far=too_far,
        columns=list(dict.fromkeys(label for row in rows for label in row)),
        rows=rows,
        text=lambda value: value if isinstance(value, str) else "–" if value is None else significant(value),
    )


def write(result: Mapping[str, Any], out: Path, frames_path: Any) -> None:
    """results.md, quality.png and report.html into the folder `out`."""
    write_whole(out / "results.md", markdown(result))
    write_whole(out / "quality.png", image(draw(result), dpi=110))
    write_whole(out / "report.html", html(result, *side_by_side(result, frames_path)))
