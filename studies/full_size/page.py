"""gpu.md: the tables of all models in a folder."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mixcache.report.markdown import table
from studies.full_size.medians import AFTER_COMPUTED, PLAIN_STEP

Row = dict[str, Any]
MIB = 2**20
METHODS = {
    "schedule": "mixcache, by noise level",
    "schedule_by_place": "mixcache, by place",
    "first_block_cache": "FirstBlockCache (diffusers), forced",
    "taylorseer_lite": "TaylorSeer lite (diffusers)",
    "taylorseer": "TaylorSeer (diffusers)",
    "db_cache": "DBCache (cache-dit), masked",
}
INTRODUCTION = """# Models of full size

The architectures of public checkpoints at their real size with **random weights**: milliseconds and memory depend on
the shapes, quality on the weights, so none is told here. No text encoder and no VAE; times are of the denoising loop,
medians, the plain pipeline and the cached one taking turns. A video shorter than the model's usual one is the longest
that fitted into memory. Models named `tiny-` are no models: they try the benchmark out.
"""
STEPS = """## A step of each granularity

Milliseconds. *plain*: nothing attached; *compute*: attached, computed in full; *step (first)*: the first cached step
after a computed one, which also looks at what the computed one gave.
"""
OVERHEAD = """## What deciding and measuring cost

Milliseconds a step over the plain one, and as a share of it, where every step is computed: `always_compute` only stands
there; `hindsight` with a budget that nothing fits tries every granularity at every step.
"""
SCHEDULES = """## A whole schedule

Ours is the schedule of policy `planned` at a speed-up of 2 on the built-in model, or the one that was given: carried
over by noise level, the nearest one, which on a scheduler with other noise levels caches fewer or more steps; and by
place in the loop, which does not. *ideal*: if only the blocks that run took time. The other caches are made to leave
out as much block work as the schedule by place (TaylorSeer as nearly as an interval can). Compiled blocks are one
graph each under mixcache; under the other caches they may break, since their hooks stand inside. *added*: peak
memory over the plain one's; without a GPU what our cache held. *choices*: a letter a step, # computed, s step, g cfg,
b block, capitals where extrapolated.
"""


def write_page(folder: Path) -> Path:
    """Writes gpu.md anew from all gpu-*.json of the folder; files that are no results are left out."""
    results = [result for path in sorted(folder.glob("gpu-*.json")) if (result := _read(path)) is not None]
    path = folder / "gpu.md"
    path.write_text(page(results))
    return path


def _read(path: Path) -> dict[str, Any] | None:
    try:
        result = json.loads(path.read_text())
    except ValueError:
        return None
    is_result = isinstance(result, dict) and {"header", "found", "entries"} <= result.keys()
    return result if is_result else None


def page(results: list[dict[str, Any]]) -> str:
    """The page as Markdown."""
    steps = [_step_row(label, entry) for label, name, entry in _entries(results) if name == "steps"]
    overhead = [
        row for label, name, entry in _entries(results) if name == "overhead" for row in _overhead_rows(label, entry)
    ]
    schedules = [_schedule_row(label, name, entry) for label, name, entry in _entries(results) if name in METHODS]
    parts = [INTRODUCTION, table([_model_row(result) for result in results]), ""]
    for text, rows in ((STEPS, steps), (OVERHEAD, overhead), (SCHEDULES, schedules)):
        if rows:
            parts += [text, table(rows), ""]
    notes = [*_failures(results), *_doubts(results)]
    if notes:
        parts += ["## What failed, and what to doubt", "", *(f"- {note}" for note in notes), ""]
    return "\n".join(parts)


def _model_row(result: dict[str, Any]) -> Row:
    header = result["header"]
    facts = {**header["versions"], **header["machine"]}
    return {
        "model": header["model"],
        "config of": header["source"],
        "size": "x".join(str(side) for side in header["size"]),
        "frames": result["found"].get("num_frames"),
        "steps": header["num_steps"],
        "dtype": header["dtype"],
        "on": ", ".join(f"{name} {value}" for name, value in facts.items()),
    }


def _entries(results: list[dict[str, Any]]) -> Iterator[tuple[Row, str, dict[str, Any]]]:
    """Of every entry that did not fail: the first cells of its row, its mode, and what its ways came to."""
    for result in results:
        for name, entry in result["entries"].items():
            phase, mode = name.split("/")
            if "ways" in entry:
                yield {"model": result["header"]["model"], "blocks": phase}, mode, entry["ways"]


def _step_row(label: Row, ways: dict[str, Any]) -> Row:
    times, forced = ways["plain"]["step_ms"], ways["forced"]["step_ms"]
    return label | {
        "plain": times.get(PLAIN_STEP),
        "compute": forced.get("compute"),
        "block": forced.get("block"),
        "cfg": forced.get("cfg"),
        "step (first)": forced.get(f"step{AFTER_COMPUTED}"),
        "step": forced.get("step"),
        "added (MiB)": _mib(ways["forced"]["added_bytes"]),
    }


def _overhead_rows(label: Row, ways: dict[str, Any]) -> Iterator[Row]:
    plain = ways["plain"]["step_ms"].get(PLAIN_STEP)
    for name, way in ways.items():
        computed = way["step_ms"].get("compute")
        if name != "plain" and plain and computed is not None:
            yield label | {
                "policy": name,
                "plain step (ms)": plain,
                "over it (ms)": computed - plain,
                "share": f"{(computed - plain) / plain:+.2%}",
                "share of the loop": f"{1 / way['speedup'] - 1:+.2%}",
                "added (MiB)": _mib(way["added_bytes"]),
            }


def _schedule_row(label: Row, mode: str, ways: dict[str, Any]) -> Row:
    way = ways["peer" if "peer" in ways else "schedule"]
    times = way["step_ms"]
    names = ("step", "skipped", f"step{AFTER_COMPUTED}", f"skipped{AFTER_COMPUTED}")
    return label | {
        "cache": METHODS[mode],
        "speed-up": way["speedup"],
        "ideal": way["ideal_speedup"],
        "plain step (ms)": ways["plain"]["step_ms"].get(PLAIN_STEP),
        "skipped step (ms)": next((times[name] for name in names if name in times), None),
        "added (MiB)": _mib(way["added_bytes"]),
        "choices": way["choices"],
    }


def _failures(results: list[dict[str, Any]]) -> Iterator[str]:
    for result in results:
        for name, entry in result["entries"].items():
            if "failed" in entry:
                yield f"{result['header']['model']}, {name}: {entry['failed']}"
        for num_frames in result["found"].get("num_frames_too_many", []):
            yield f"{result['header']['model']}: {num_frames} frames do not fit into memory"


def _doubts(results: list[dict[str, Any]]) -> Iterator[str]:
    """Runs in which something did not go as meant."""
    meanings = {
        "num_non_finite": "outputs were not finite, and not cached",
        "num_calls_in_full": "calls said too little, and were computed in full",
        "num_graphs": "graphs were compiled while it was timed",
    }
    for label, mode, ways in _entries(results):
        for way, values in ways.items():
            for key, meaning in meanings.items():
                if values.get(key):
                    yield f"{label['model']}, {label['blocks']}/{mode}, {way}: {values[key]} {meaning}"


def _mib(num_bytes: int | None) -> float | None:
    return None if num_bytes is None else num_bytes / MIB
