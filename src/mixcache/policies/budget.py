"""What a wished speed-up leaves to compute. Pure Python.

Of `n` steps, `k` computed and the others cached at a share `c` of a computed one's time, the loop is faster by

    n / (k + (n - k) c)
"""

from __future__ import annotations

import math
from collections.abc import Callable

USUAL_CACHED_SHARE = 0.02
"""Time of a cached step over that of a computed one, until it is measured."""
LEAST_COMPUTED = 4
"""Of any loop: with fewer every clip is another one."""
LEAST_STEPS = 10
"""Of a loop in which a wish is followed: a few distilled steps have nothing to spare."""
WIDTH = 16.0
"""Factor within which a limit is looked for, both ways."""


def speedup_of(num_computed: int, num_steps: int, cached_share: float | None) -> float:
    """Of a loop in which so many steps are computed."""
    share = USUAL_CACHED_SHARE if cached_share is None else cached_share
    return num_steps / (num_computed + (num_steps - num_computed) * share)


def num_computed_for(speedup: float, num_steps: int, cached_share: float | None) -> int:
    """The number of computed steps whose speed-up comes nearest to the wish, as a ratio."""
    counts = range(min(LEAST_COMPUTED, num_steps), num_steps + 1)
    return min(counts, key=lambda k: abs(math.log(speedup_of(k, num_steps, cached_share) / speedup)))


def check_reach(speedup: float, num_steps: int, *, is_part: bool = False) -> None:
    """ValueError where a loop of so many steps cannot be so much faster, or only with another clip; `is_part` says that
    they are those of one of two experts, or of a loop that begins in mid-way."""
    if speedup == 1:
        return
    if num_steps < LEAST_STEPS and not is_part:
        raise ValueError(
            f"speedup={speedup:g} with {num_steps} steps would only break the clip: none of them is redundant; take "
            "fewer steps, or speedup=1"
        )
    most = speedup_of(min(LEAST_COMPUTED, num_steps), num_steps, None)
    if speedup > most + 0.05 and not is_part:
        raise ValueError(f"speedup={speedup:g} cannot be reached with {num_steps} steps; they allow 1 to {most:.1f}")


def solved(num_computed: Callable[[float], int], wanted: int, near: float) -> float:
    """The limit at which `num_computed`, which falls with it, is nearest to what is wanted; `near` if that will do."""
    found = num_computed(near)
    if found == wanted:
        return near
    low, high = (near, near * WIDTH) if found > wanted else (near / WIDTH, near)
    best = (abs(found - wanted), near)
    for _ in range(9):
        middle = math.sqrt(low * high)
        found = num_computed(middle)
        best = min(best, (abs(found - wanted), middle))
        if found == wanted:
            break
        low, high = (middle, high) if found > wanted else (low, middle)
    return best[1]
