"""Why a run was not made faster, or less than was asked for: one sentence for the log and the summary."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable

from mixcache.decision import Granularity
from mixcache.hosts.diffusers.rows import COMPILE_BLOCKS
from mixcache.policies import Bounded
from mixcache.policies.budget import num_computed_for
from mixcache.trace import Trace

NO_BLOCKS = f"the transformer is compiled as a whole: no blocks are left out; {COMPILE_BLOCKS}"
ENDS = ("warm-up", "cool-down")
"""Reasons that every run has."""
NUMBER = re.compile(r"-?\d[\d.e+-]*")
SHORT_OF = 0.95
"""Share of a wished speed-up under which, by work, it counts as not delivered."""


def why_not(run: Trace, in_full: Iterable[str], policy: Bounded, *, leaves_blocks: bool) -> str | None:
    """The reason, or None where the run was made as fast as was asked for.

    `in_full` says of each call that was computed in full why it was; `leaves_blocks` tells that no blocks can be left
    out.
    """
    if not policy.needs.granularities:
        return None
    wish = getattr(policy.policy, "speedup", None)
    num_steps = max((entry.num_steps for entry in run), default=0)
    share = run.computed_share()
    is_cached = any(entry.granularity is not Granularity.COMPUTE for entry in run)
    if leaves_blocks and policy.needs.granularities == (Granularity.BLOCK,):
        return NO_BLOCKS
    if is_cached and (not share or 1 / share >= _least(wish, num_steps)):
        return None
    if len(run) and policy.leaves_nothing(num_steps):
        return (
            f"{num_steps} steps are no more than the {policy.num_warmup_steps} of the warm-up and the "
            f"{policy.num_cooldown_steps} of the cool-down: everything is computed"
        )
    what = "nothing was cached" if not is_cached else f"{1 / share:.2f}x of the wished {wish:g}x by work"
    reasons = [e.reason for e in run if e.granularity is Granularity.COMPUTE]
    reasons = [*([reason for reason in reasons if reason not in ENDS] or reasons), *in_full]
    if not reasons:
        return None
    most, count = Counter(map(without_numbers, reasons)).most_common(1)[0]
    example = next(reason for reason in reasons if without_numbers(reason) == most)
    return f"{what}: {example} ({count} time{'s' * (count > 1)})"


def _least(wish: float | None, num_steps: int) -> float:
    """Speed-up by work from which on a wish counts as delivered: near it, or near what so many steps have nearest."""
    if wish is None or not num_steps:
        return 0.0
    return SHORT_OF * min(wish, num_steps / num_computed_for(wish, num_steps, None))


def without_numbers(text: str) -> str:
    """What is alike in sentences that differ in their numbers."""
    return NUMBER.sub("", text)
