"""The page and the figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from mixcache.bench.results import FEWER
from mixcache.report.figures import significant
from mixcache.report.markdown import table
from studies.study.methods import COOL_DOWNS, ORDER_0, ORDER_2, SPEEDUP, WARM_UPS, WITH_BLOCK, WITH_CFG
from studies.study.summary import CURVES, HINDSIGHT, Points, Row, level, lines, points

COLUMNS = (
    *("method", "ideal", "wall_clock", "psnr_db", "psnr_spread", "ssim", "adherence", "margin_db", "num_prompts"),
    "note",
)


def db(value: float) -> str:
    return f"{value:+.1f} dB"


def _by_name(rows: Sequence[Row], part: str) -> dict[str, Row]:
    return {row["method"]: row for row in rows if row["part"] == part and row["psnr_db"] is not None}


def interference_sentence(rows: Sequence[Row]) -> str:
    found = _by_name(rows, "a")
    told = []
    for order in (0, 1):
        stacked, turn = (found.get(f"cfg{n}, order {order}") for n in ("+block in one step", ", block in turn"))
        if stacked and turn:
            told.append(
                f"cfg and block stacked in one step are {db(stacked['psnr_db'] - turn['psnr_db'])} from one per step "
                f"with order {order} (ideal {significant(stacked['ideal'])} and {significant(turn['ideal'])})"
            )
    for pair in ("cfg, block", "step, block", "step, cfg"):
        fed, clean = found.get(f"{pair} in turn, histories fed, order 1"), found.get(f"{pair} in turn, order 1")
        if fed and clean:
            told.append(f"histories fed with approximations are {db(fed['psnr_db'] - clean['psnr_db'])} with {pair}")
    return _sentence(told)


def boundary_sentence(rows: Sequence[Row]) -> str:
    found = _by_name(rows, "b")
    told = []
    for granularity in ("step", "cfg", "block"):
        for end, lengths in (("warm-up", WARM_UPS), ("cool-down", COOL_DOWNS)):
            of_end = {}
            for length in lengths:
                warm_up, cool_down = (length, 3) if end == "warm-up" else (4, length)
                row = found.get(f"{granularity}, warm-up {warm_up}, cool-down {cool_down}")
                if row and row["margin_db"] is not None:
                    of_end[length] = row
            if len(of_end) > 1:
                best = max(of_end, key=lambda length: of_end[length]["margin_db"])
                rise = of_end[max(of_end)]["psnr_db"] - of_end[min(of_end)]["psnr_db"]
                told.append(
                    f"for {granularity} a {end} of {best} is the best against fewer plain steps of the same work "
                    f"({min(of_end)} to {max(of_end)} give {db(rise)} before the lost time is counted)"
                )
    return _sentence(told)


def ablation_sentence(rows: Sequence[Row]) -> str:
    found = _by_name(rows, "c")
    whole = found.pop("mixcache", None)
    if whole is None or whole["margin_db"] is None:
        return _sentence([])
    told = [f"policy `mixcache` is {db(whole['margin_db'])} from fewer plain steps of the same work"]
    told += [
        f"{name} {db(row['margin_db'] - whole['margin_db'])} from that"
        for name, row in found.items()
        if row["margin_db"] is not None
    ]
    return _sentence(told)


def curve_sentence(rows: Sequence[Row], num_steps: int) -> str:
    reached = {curve: level(line, SPEEDUP) for curve, line in lines(rows, num_steps).items()}
    ranked = sorted(((v, curve) for curve, v in reached.items() if v is not None), reverse=True)
    told = [f"{curve} {value:.1f} dB" for value, curve in ranked]
    sentence = _sentence([f"at an ideal speed-up of {SPEEDUP:g}: {', '.join(told)}"] if told else [])
    few = min((r["num_prompts"] for r in rows if r["curve"] == WITH_CFG and r["psnr_db"] is not None), default=0)
    chosen = points(rows, HINDSIGHT, num_steps, range(few)) if few else []
    for curve in (WITH_CFG, WITH_BLOCK, ORDER_0, ORDER_2):
        gaps = [psnr - at for ideal, psnr in points(rows, curve, num_steps) if (at := level(chosen, ideal)) is not None]
        if gaps:
            sentence += f" {curve.capitalize()}: {db(fmean(gaps))} from hindsight as it is, on the same prompts."
    return sentence


def oracle_sentence(rows: Sequence[Row]) -> str:
    found = _by_name(rows, "e")
    searched = found.get("searched")
    if searched is None:
        return _sentence([])
    told = [f"the searched schedules are at {searched['psnr_db']:.1f} dB, ideal {significant(searched['ideal'])}"]
    told += [
        f"{row['method']} is {row['below_searched_db']:.1f} dB below"
        for row in found.values()
        if row.get("below_searched_db") is not None
    ]
    return _sentence(told)


def _sentence(told: Sequence[str]) -> str:
    text = "; ".join(told) or "nothing was measured that tells"
    return text[0].upper() + text[1:] + "."


def markdown(result: Mapping[str, Any]) -> str:
    """The results as a page: a section for each question."""
    rows: list[Row] = result["rows"]
    arguments, first = result["arguments"], result["num_steps"][0]
    text = [
        "# Which rules pay",
        "",
        f"`{result['command']}`",
        "",
        f"Guidance {arguments['guidance_scale']:g}, {result['scheduler']}, {arguments['num_frames']} frames of "
        f"{arguments['width']}x{arguments['height']}, held-out captions; "
        + ", ".join(f"{name} {value}" for name, value in {**result["versions"], **result["machine"]}.items()),
        "",
        "`ideal` is the speed-up by the block work left out, without noise; `wall_clock` that of the denoising loop, "
        "the median over prompts; PSNR (mean and spread over prompts) and SSIM are against the plain clip of the same "
        "seed, and no PSNR means an identical clip; `margin_db` is the PSNR over that of fewer plain steps of the same "
        "ideal speed-up, an en dash outside their range.",
        "",
        "![Quality against speed-up, and the deviation over sigma](method-study.png)",
    ]
    sections: list[tuple[str, str, int, str]] = [
        ("a", "Interference", first, interference_sentence(rows)),
        ("b", "The ends of the trajectory", first, boundary_sentence(rows)),
        ("c", "The parts of policy mixcache", first, ablation_sentence(rows)),
        *(("d", "Orders and curves", count, curve_sentence(rows, count)) for count in result["num_steps"]),
        ("e", "Distance to a searched schedule", first, oracle_sentence(rows)),
    ]
    for part, title, count, sentence in sections:
        of_part = [r for r in rows if r["part"] == part and r["num_steps"] == count]
        if part == "d" and of_part:
            of_part = [r for r in rows if r["part"] == "plain" and r["num_steps"] == count] + of_part
        if of_part:
            columns = [c for c in COLUMNS if any(r.get(c) is not None for r in of_part)]
            columns += ["below_searched_db"] if part == "e" else []
            text += ["", f"## {title}, {count} steps", "", sentence, "", table(of_part, columns)]
        if part == "a" and of_part:
            text += ["", "A `step` step leaves everything out, so stacking cfg or block on it changes nothing there."]
    return "\n".join([*text, ""])


def draw(result: Mapping[str, Any]) -> Any:
    """Quality against ideal speed-up, a panel for each step count, and the deviation over sigma: a figure."""
    from matplotlib.figure import Figure

    curves: dict[str, dict[str, Points]] = result["curves"]
    figure = Figure(figsize=(6.5 * (len(curves) + 1), 5), layout="constrained")
    panels = figure.subplots(1, len(curves) + 1)
    for panel, (count, of_count) in zip(panels, curves.items(), strict=False):
        for number, curve in enumerate(CURVES):
            if of_count.get(curve):
                style = {"color": "black", "linestyle": "--"} if curve == FEWER else {"color": f"C{number}"}
                panel.plot(*zip(*of_count[curve], strict=True), marker="o", markersize=4, label=curve, **style)
        panel.set(xlabel="ideal speed-up", ylabel="PSNR (dB) to the plain clip", title=f"{count} steps", xlim=(1, 4))
    for name, line in result["deviations"].items():
        panels[-1].plot(*zip(*line, strict=True), marker=".", label=name)
    panels[-1].set(
        xlabel="sigma", ylabel="relative L1 error of the prediction", title="deviation, order 0 unless named"
    )
    panels[-1].set_yscale("log")
    panels[-1].invert_xaxis()
    for panel in panels:
        panel.grid(alpha=0.3)
        if panel.lines:
            panel.legend(fontsize="small")
    return figure
