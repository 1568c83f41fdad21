"""What a run did, as a picture and as text."""

from __future__ import annotations

import io
from collections import Counter
from typing import Any

from mixcache.decision import Granularity
from mixcache.trace import Trace

from .attachment import RunRecord

COLOURS = {"compute": "#4c566a", "cfg": "#ebcb8b", "block": "#a3be8c", "step": "#88c0d0", "in full": "#bf616a"}
MEANINGS = {
    "compute": "computed",
    "cfg": "negative prompt predicted",
    "block": "middle blocks predicted",
    "step": "cached",
    "in full": "computed, in doubt",
}
ENDS = ("warm-up", "cool-down")
PLANNED = (*ENDS, "cadence")
"""Reasons that every run has; none of them says why nothing was cached, where there are others."""


def did(run: RunRecord) -> list[str]:
    """A word for each step, those of `MEANINGS`."""
    by_step = {entry.step: entry.granularity.value for entry in _followed(run)}
    return [by_step.get(step, "in full") for step in range(run.num_steps)]


def share_computed(run: RunRecord) -> float:
    """Of the model's work."""
    followed = _followed(run)
    num_past = run.num_steps - len(followed)
    return (num_past + followed.computed_share() * len(followed)) / max(1, run.num_steps)


def _followed(run: RunRecord) -> Trace:
    """The steps that were done as the trace says; one that came to be in doubt is in it too."""
    return Trace((entry for entry in run.trace if entry.step not in run.in_full), num_blocks=run.trace.num_blocks)


def why_not(run: RunRecord) -> str | None:
    """Why nothing was cached; None where something was."""
    if run.why_not is not None:
        return f"passed through: {run.why_not}"
    if any(entry.granularity is not Granularity.COMPUTE for entry in run.trace):
        return None
    reasons = [entry.reason for entry in run.trace]
    reasons = [*([reason for reason in reasons if reason not in PLANNED] or reasons), *run.in_full.values()]
    if not reasons:
        return "nothing was sampled"
    if all(reason in ENDS for reason in reasons):
        return f"nothing was cached: {run.num_steps} steps are no more than those at both ends, which are computed"
    reason, count = Counter(reasons).most_common(1)[0]
    return f"nothing was cached: {reason} ({count} time{'s' * (count > 1)})"


def text(run: RunRecord) -> str:
    """A line for each figure."""
    share = share_computed(run)
    lines = [f"sampler      {run.sampler}, {run.num_steps} steps"]
    counts = Counter(did(run)) if run.why_not is None else Counter()
    lines += [f"steps        {', '.join(f'{counts[word]} {MEANINGS[word]}' for word in MEANINGS if counts[word])}"]
    lines += [f"work         {share:.0%} of the model's calls, {1 / share:.2f}x at best"] if run.why_not is None else []
    lines += [f"learnt       from samplings of this kind before: {run.num_before}"] if run.num_before else []
    lines += [f"corrected    {run.num_corrected} cached steps"] if run.num_corrected else []
    lines += [f"memory       {run.peak_bytes / 2**20:.1f} MiB at most"] if run.peak_bytes else []
    lines += [f"in doubt     {reason}" for reason in dict.fromkeys(run.in_full.values())]
    reason = why_not(run)
    lines += [f"why not      {reason}"] if reason else []
    return "\n".join(line for line in lines if not line.endswith("        "))


def picture(run: RunRecord, *, width: int = 960, height: int = 320) -> Any:
    """(1, height, width, 3) floats from 0 to 1, as ComfyUI's images are."""
    import numpy as np
    import torch
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator
    from PIL import Image

    figure = Figure(figsize=(width / 100, height / 100), dpi=100, layout="constrained")
    strip, curve = figure.subplots(2, 1, height_ratios=(1, 2), sharex=True)
    words = did(run) if run.why_not is None else ["compute"] * run.num_steps
    for step, word in enumerate(words):
        strip.bar(step, 1, width=0.9, color=COLOURS[word])
    for word in dict.fromkeys(words):
        strip.bar(0, 0, color=COLOURS[word], label=f"{words.count(word)} {MEANINGS[word]}")
    strip.set_yticks([])
    strip.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=len(MEANINGS), frameon=False)
    errors = _errors(run.trace)
    if errors:
        curve.plot(*zip(*errors, strict=True), marker=".", color=COLOURS["compute"])
        curve.set_yscale("log")
        curve.set_ylabel("error of a cached step")
    else:
        curve.text(
            0.5,
            0.5,
            why_not(run) or "no errors were measured",
            ha="center",
            va="center",
            wrap=True,
            transform=curve.transAxes,
        )
        curve.set_yticks([])
    curve.set_xlabel("step")
    curve.xaxis.set_major_locator(MaxNLocator(integer=True))
    share = share_computed(run)
    figure.suptitle(
        why_not(run) or f"{run.sampler}: {1 / share:.2f}x at best, {run.num_corrected} cached steps corrected",
        fontsize=11,
    )
    content = io.BytesIO()
    figure.savefig(content, format="png")
    pixels = np.asarray(Image.open(content).convert("RGB"), dtype=np.float32) / 255
    return torch.from_numpy(pixels)[None]


def _errors(trace: Trace) -> list[tuple[int, float]]:
    """What caching would have cost, at the computed steps that measured it."""
    return [(entry.step, entry.deviation) for entry in trace if entry.deviation]
