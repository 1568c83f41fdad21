"""Schedules searched with the true error, by climbing."""

from __future__ import annotations

import random
from collections.abc import Callable

from mixcache.calibration.schedules import Schedule
from mixcache.decision import Granularity


def neighbour(schedule: Schedule, rng: random.Random) -> Schedule:
    """Another schedule of the same cost: a cached step moved, another order, or two neighbours swapped.

    The first step stays computed.
    """
    changed = list(schedule)
    cached = [i for i, (granularity, _) in enumerate(schedule) if granularity is not Granularity.COMPUTE]
    computed = [i for i in range(1, len(schedule)) if i not in cached]
    borders = [i for i in range(1, len(schedule) - 1) if (i in cached) != (i + 1 in cached)]
    kinds = (["order"] if cached else []) + (["move", "swap"] if borders else [])
    kind = rng.choice(kinds) if kinds else ""
    if kind == "order":
        i = rng.choice(cached)
        changed[i] = (changed[i][0], 1 - min(1, changed[i][1]))
    elif kind:
        i = rng.choice(borders if kind == "swap" else cached)
        j = i + 1 if kind == "swap" else rng.choice(computed)
        changed[i], changed[j] = changed[j], changed[i]
    return changed


def climb(
    start: Schedule, error_of: Callable[[Schedule], float], num_trials: int, rng: random.Random
) -> tuple[Schedule, list[float]]:
    """The best of `num_trials` schedules, each a neighbour of the best before it, and the least error after each."""
    best, errors, seen = start, [error_of(start)], {tuple(start)}
    while len(errors) < num_trials:
        fresh = next((s for s in (neighbour(best, rng) for _ in range(50)) if tuple(s) not in seen), None)
        if fresh is None:
            break
        seen.add(tuple(fresh))
        error = error_of(fresh)
        if error < errors[-1]:
            best = fresh
        errors.append(min(error, errors[-1]))
    return best, errors
