"""What is measured, mode by mode: the ways of caching that take turns with the plain pipeline in each."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

from mixcache.attachment import enable
from mixcache.calibration.schedules import timed_schedule, trace_of
from mixcache.decision import CACHED, Granularity
from mixcache.models import row_for
from mixcache.policies import Replay
from mixcache.report.frontier import letters
from studies.full_size import peers
from studies.full_size.medians import PLAIN_STEP, step_names
from studies.full_size.runs import Account, Subject, Way
from studies.full_size.schedules import Schedule

NEVER = 1e-30
"""An error budget that nothing fits."""
Forced = Callable[[Subject], Schedule]


@contextlib.contextmanager
def plain(subject: Subject) -> Iterator[Account]:
    """Nothing is attached."""
    yield lambda: {"steps": [PLAIN_STEP] * subject.num_steps}


@contextlib.contextmanager
def attached(subject: Subject, policy: Any, **settings: Any) -> Iterator[Account]:
    """A policy of ours; the account is of the last generation."""
    with enable(subject.pipeline, policy, **settings) as handle:

        def account() -> dict[str, Any]:
            trace, summary = handle.trace.generation(-1), handle.summary()
            return {
                "steps": step_names([entry.granularity.value for entry in trace]),
                "choices": letters([(entry.granularity, entry.order) for entry in trace]),
                "ideal_speedup": 1 / trace.computed_share() if trace.computed_share() else None,
                "cache_bytes": summary["peak_bytes"],
                "num_non_finite": summary["num_non_finite"],
                "num_calls_in_full": summary["num_calls_in_full"],
            }

        yield account


@contextlib.contextmanager
def forced(subject: Subject, schedule: Forced) -> Iterator[Account]:
    """Policy `replay` of a schedule; cached steps are corrected, as under the policies that make schedules."""
    with attached(subject, Replay(trace=trace_of(schedule(subject), corrects=True))) as account:
        yield account


def tour(subject: Subject, num_steps: int | None = None) -> Schedule:
    """All granularities that the model allows, in turn."""
    row = row_for(subject.pipeline.transformer, subject.pipeline)
    allowed = [g for g in CACHED if g.value in row.granularities]
    if not subject.family.has_two_branches:
        allowed.remove(Granularity.CFG)
    return list(timed_schedule(num_steps or subject.num_steps, allowed)[0])


def carried_over(subject: Subject) -> Schedule:
    """The schedule of the built-in model, by noise level."""
    return subject.schedule


def put_in_place(subject: Subject) -> Schedule:
    """The schedule of the built-in model, by place in the loop."""
    return subject.placed


ALL = ("step", "cfg", "block")
PLAIN = Way(name="plain", attached=plain)
STEPS = Way(name="forced", attached=partial(forced, schedule=tour))
SCHEDULE = Way(name="schedule", attached=partial(forced, schedule=carried_over))
PLACED = Way(name="schedule", attached=partial(forced, schedule=put_in_place))
OVERHEAD = (
    Way(name="always_compute", attached=partial(attached, policy="always_compute")),
    Way(name="hindsight", attached=partial(attached, policy="hindsight", error=NEVER)),
    Way(name="hindsight with block", attached=partial(attached, policy="hindsight", error=NEVER, choices=ALL)),
)
PLAIN_BESIDE_PEER = Way(name="plain", attached=plain, warms_up=True)


def _peer(attach: Any) -> tuple[Way, ...]:
    return PLAIN_BESIDE_PEER, Way(name="peer", attached=attach, warms_up=True)


MODES: dict[str, Sequence[Way]] = {
    "steps": (PLAIN, STEPS),
    "schedule": (PLAIN, SCHEDULE),
    "schedule_by_place": (PLAIN, PLACED),
    "overhead": (PLAIN, *OVERHEAD),
    "first_block_cache": _peer(peers.first_block_cache),
    "taylorseer_lite": _peer(partial(peers.taylorseer, is_lite=True)),
    "taylorseer": _peer(partial(peers.taylorseer, is_lite=False)),
    "db_cache": _peer(peers.db_cache),
}
"""In the order in which they are measured."""
ENOUGH_STEPS = {"steps": 11, "overhead": 6}
"""Modes that look at single steps: in the first, every kind of step comes twice."""
