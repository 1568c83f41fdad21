"""Two results of `mixcache bench` held against each other: what changed beyond noise, and whether it is a loss.

A loss is a PSNR that fell, work that rose (a cache that fires less), decisions that are others, a method that fails, or
a method or clips that are gone. Times are told, and never a loss.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any

from mixcache.bench.results import ResultsError

PSNR_NOISE_DB, WORK_NOISE = 0.1, 0.005
"""Changes under these are none, however sure."""
SURE = 2.0
"""Standard errors from which a mean of differences is beyond noise."""
MAX_SEEDS = 6
"""Told of the clips that changed."""
SAME = ("model", "weights", "arguments", "scheduler", "seed")
"""What two results must share to be compared."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Change:
    """What is different in one method."""

    method: str
    what: str
    before: str
    after: str
    is_loss: bool


def compare(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[Change]:
    """The changes from one result to another; ResultsError where they are not of the same case."""
    for name in SAME:
        if before.get(name) != after.get(name):
            raise ResultsError(
                f"these are results of different runs: {name} is {before.get(name)!r} and {after.get(name)!r}"
            )
    if before["records"] and after["records"] and not _keys(before) & _keys(after):
        raise ResultsError("these are results of different runs: no clip is of the same prompt and seed")
    changes: list[Change] = []
    for name in dict.fromkeys((*before["methods"], *after["methods"])):
        changes += _method_changes(name, before, after)
    return changes


def _method_changes(name: str, before: Mapping[str, Any], after: Mapping[str, Any]) -> list[Change]:
    states = [_state(name, result) for result in (before, after)]
    if states[0] != states[1]:
        return [Change(method=name, what="state", before=states[0], after=states[1], is_loss=states[1] != "measured")]
    pairs = _pairs(name, before, after)
    of_method = [record for record in before["records"] if record["method"] == name]
    there = {_key(record) for record, _ in pairs}
    gone = [record for record in of_method if _key(record) not in there]
    found: list[Change | None] = []
    if gone:
        told = {"before": f"{len(of_method)} clips", "after": f"{len(pairs)} of them (without {_seeds(gone)})"}
        found.append(Change(method=name, what="clips", **told, is_loss=True))
    if pairs:
        found += [_decisions(name, pairs), _psnr(name, pairs), _work(name, pairs), _speedup(name, pairs)]
    return [change for change in found if change is not None]


def _state(name: str, result: Mapping[str, Any]) -> str:
    if name not in result["methods"]:
        return "absent"
    failure = result["methods"][name]["failure"]
    return f"fails: {failure}" if failure else "measured"


def _keys(result: Mapping[str, Any]) -> set[tuple[Any, ...]]:
    return {_key(record) for record in result["records"]}


def _key(record: Mapping[str, Any]) -> tuple[Any, ...]:
    """Which clip a record is of, whatever the method."""
    return record["prompt"], record["seed"], record["repeat"]


Pair = tuple[Mapping[str, Any], Mapping[str, Any]]


def _pairs(name: str, before: Mapping[str, Any], after: Mapping[str, Any]) -> list[Pair]:
    """Records of the same prompt, seed and repeat."""
    first, second = ({_key(r): r for r in result["records"] if r["method"] == name} for result in (before, after))
    return [(first[key], second[key]) for key in first if key in second]


def _decisions(name: str, pairs: Sequence[Pair]) -> Change | None:
    """Schedule and work of every clip, which must be the same to the letter."""
    changed = [(a, b) for a, b in pairs if a["schedule"] != b["schedule"] or a["work"] != b["work"]]
    if not changed:
        return None
    before, after = changed[0]
    shown = "schedule" if before["schedule"] != after["schedule"] else "work"
    what = f"decisions of {len(changed)} of {len(pairs)} clips ({_seeds([a for a, _ in changed])})"
    return Change(method=name, what=what, before=before[shown], after=after[shown], is_loss=True)


def _seeds(records: Sequence[Mapping[str, Any]]) -> str:
    """Which clips these are, in a few words."""
    seeds = [str(seed) for seed in dict.fromkeys(record["seed"] for record in records)]
    told = seeds if len(seeds) <= MAX_SEEDS else [*seeds[:MAX_SEEDS], "..."]
    return f"seed {', '.join(told)}"


def _psnr(name: str, pairs: Sequence[Pair]) -> Change | None:
    """The mean PSNR; a clip identical to the plain one, which has none, changes by infinity."""
    values = [tuple(math.inf if r["psnr_db"] is None else r["psnr_db"] for r in pair) for pair in pairs]
    gained = [0.0 if a == b else b - a for a, b in values]
    endless = [gain for gain in gained if math.isinf(gain)]
    if not endless and not _is_beyond(gained, PSNR_NOISE_DB):
        return None
    told = [f"{fmean(value):.2f} dB" for value in zip(*values, strict=True)]
    is_loss = -math.inf in endless if endless else fmean(gained) < 0
    return Change(method=name, what="PSNR", before=told[0], after=told[1], is_loss=is_loss)


def _work(name: str, pairs: Sequence[Pair]) -> Change | None:
    shares = [tuple(1 / r["ideal_speedup"] for r in pair) for pair in pairs]
    gained = [b - a for a, b in shares]
    if not _is_beyond(gained, WORK_NOISE):
        return None
    told = [f"{fmean(share):.1%}" for share in zip(*shares, strict=True)]
    return Change(method=name, what="work done", before=told[0], after=told[1], is_loss=fmean(gained) > 0)


def _speedup(name: str, pairs: Sequence[Pair]) -> Change | None:
    values = [tuple(r["speedup"] for r in pair) for pair in pairs]
    changed = [math.log(b / a) for a, b in values]
    if len(changed) < 3 or not _is_beyond(changed, 0.02):
        return None
    told = [f"{fmean(value):.2f}x" for value in zip(*values, strict=True)]
    return Change(method=name, what="speed-up (never a loss)", before=told[0], after=told[1], is_loss=False)


def _is_beyond(differences: Sequence[float], least: float) -> bool:
    """True if their mean is over `least` and, where several tell of noise, over their standard errors."""
    mean = fmean(differences)
    error = stdev(differences) / math.sqrt(len(differences)) if len(differences) > 1 else 0.0
    return abs(mean) > max(least, SURE * error)
