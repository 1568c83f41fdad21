"""The results of a benchmark as one file: put together, and read back."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mixcache.bench.methods import Method
from mixcache.bench.records import Record, best_at, on_line, summarise

FORMAT = 1
SPEEDUPS = (1.5, 2.0, 2.5, 3.0)
"""At which the lines are compared."""
FACTS = ("family", "setting", "origin", "is_peer", "is_calibrated", "when_idle")
"""What is written down of a method."""
FEWER = "fewer steps"
GONE = ("adherence",)
"""Of a record, what files of before hold beside the rest."""


class ResultsError(ValueError):
    """A results file that cannot be used."""


def assemble(
    case: Mapping[str, Any],
    methods: Sequence[Method],
    survey: Mapping[str, Mapping[str, Any]],
    records: Sequence[Record],
    noise_floor: Mapping[str, float | None],
    pace: Sequence[Sequence[float]],
) -> dict[str, Any]:
    """Everything that was measured, and what follows from it.

    `case` says what was run on what: command, model, arguments, versions, machine. `pace` holds the seconds of the
    plain clips around each group of methods.
    """
    facts = {m.name: {**{name: getattr(m, name) for name in FACTS}, **survey[m.name]} for m in methods}
    rows = summarise(records)
    for row in rows:
        row |= {name: facts.get(row["method"], {}).get(name) for name in ("family", "memory_added_bytes")}
        row["family"] = row["family"] or row["method"]
    fewer = points(rows, FEWER)
    for row in rows:
        level = on_line(fewer, row["speedup"])
        row["margin_db"] = None if level is None or row["psnr_db"] is None else row["psnr_db"] - level
    result = {"format": FORMAT, **case, "methods": facts, "noise_floor": dict(noise_floor), "pace": list(pace)}
    return result | {"summary": rows, "at": levels(rows), "records": [asdict(record) for record in records]}


def levels(rows: Sequence[Mapping[str, Any]], by: str = "speedup") -> dict[str, dict[str, float | None]]:
    """The PSNR of each family at each of `SPEEDUPS`, see `best_at`, in wall-clock or `by` "ideal"."""
    return {
        family: {f"{speedup:g}": best_at(points(rows, family, by=by), speedup) for speedup in SPEEDUPS}
        for family in dict.fromkeys(row["family"] for row in rows)
        if family != "plain"
    }


def points(rows: Sequence[Mapping[str, Any]], family: str, by: str = "speedup") -> list[tuple[float, float]]:
    """(speed-up, PSNR) of a family's settings that changed something."""
    return [(row[by], row["psnr_db"]) for row in rows if row["family"] == family and row["psnr_db"] is not None]


def load(path: str | Path) -> dict[str, Any]:
    """A results file; ResultsError where it is none, or of a newer format."""
    try:
        found = json.loads(Path(path).read_text())
    except OSError as error:
        raise ResultsError(f"the results {path} cannot be read: {error.strerror}") from None
    except ValueError:
        raise ResultsError(f"{path} is no results file: it is not JSON") from None
    if not isinstance(found, dict) or not {"methods", "records", "format"} <= set(found):
        raise ResultsError(f"{path} is no results file of `mixcache bench`")
    if not isinstance(found["format"], int) or found["format"] > FORMAT:
        raise ResultsError(
            f"{path} has format {found['format']}, and this mixcache knows {FORMAT} at most; use a newer mixcache"
        )
    try:
        [Record(**{name: record[name] for name in record if name not in GONE}) for record in found["records"]]
    except TypeError as error:
        raise ResultsError(f"{path} holds a record that cannot be read: {error}") from None
    return found
