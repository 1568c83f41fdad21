"""How far the default is from the best schedule that a search finds with the plain clip at hand.

    python -m studies.oracle --settings wan-30 cogvideox-20 --out docs/results

For each of some training captions `hold` makes the clip at a wished 2x; then schedules of as many computed steps, with
reuse and the same correction, are tried in their true error: from `hold`'s own and from every second step on, one
computed and one cached step change places, and what is better is kept. A lower bound of what knowing
the future is worth: the search is local and short.
"""

from __future__ import annotations

import argparse
import contextlib
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, ClassVar

from rich.console import Console

from mixcache.bench.methods import Account, Case, Method, account_of
from mixcache.decision import Decision, Granularity, Measurement, Step
from mixcache.hosts.diffusers.attachment import enable
from mixcache.policies import Hold, Policy, Replay
from mixcache.policies.base import Needs
from mixcache.report.markdown import table
from mixcache.store import write_json, write_whole
from studies.hard import SETTINGS, Trials

SPEEDUP = 2.0
NUM_CAPTIONS = 4


@dataclass(frozen=True, kw_only=True)
class Schedule(Policy):
    """Computes the steps that it is told; the others repeat, and are corrected through a parabola."""

    name: ClassVar[str] = "schedule"
    default_bounds: ClassVar[dict[str, int]] = Replay.default_bounds
    computed: tuple[int, ...] = ()

    @property
    def needs(self) -> Needs:
        return replace(Hold().needs, trials=False)

    def init(self) -> None:
        return None

    def decide(self, step: Step, state: None) -> Decision:
        granularity = Granularity.COMPUTE if step.index in self.computed else Granularity.STEP
        return Decision(granularity=granularity, reason="as told")

    def observe(self, measurement: Measurement, state: None) -> None:
        pass


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--settings", nargs="+", choices=SETTINGS, default=["wan-30", "cogvideox-20"])
    parser.add_argument("--num-tries", type=int, default=60, help="schedules for a caption")
    parser.add_argument("--work", type=Path, default=Path("build/hard"))
    parser.add_argument("--out", type=Path, help="folder for oracle.json and oracle.md")
    args = parser.parse_args(arguments)
    rows: list[dict[str, Any]] = []
    for name in args.settings:
        trials = Trials(name, NUM_CAPTIONS, is_held_out=False, work=args.work)
        for index in range(NUM_CAPTIONS):
            rows.append({"setting": name, "caption": index} | best_of(trials, index, args.num_tries))
            Console(soft_wrap=True).print(rows[-1])
    if args.out:
        args.out.mkdir(parents=True, exist_ok=True)
        write_json(args.out / "oracle.json", rows)
        write_whole(args.out / "oracle.md", page(rows, args.num_tries))


def best_of(trials: Trials, index: int, num_tries: int) -> dict[str, Any]:
    """Of a caption: the PSNR (dB) of the default, of every second step, and of the best schedule with as many computed
    steps as the default, with both schedules as letters."""
    num_steps = trials.num_steps

    def quality(computed: frozenset[int]) -> float:
        policy = Schedule(computed=tuple(sorted(computed)))
        method = Method(family=f"schedule {letters(computed, num_steps)}", attach=partial(attached, policy))
        return trials.value(method, index)[1]

    own = computed_by_default(trials, index)
    default = quality(own)
    second = frozenset(range(0, num_steps, 2)) | {num_steps - 1}
    best, best_quality = own, default
    draw = random.Random(index)
    for count in range(num_tries):
        start = with_as_many(second, len(own), num_steps, draw) if count == 0 else swapped(best, num_steps, draw)
        if count == 0 and len(second) == len(own) and quality(second) > quality(start):
            start = second
        if (found := quality(start)) > best_quality:
            best, best_quality = start, found
    return {
        "num_computed": len(own),
        "default": default,
        "every second": quality(second),
        "best": best_quality,
        "schedule": letters(own, num_steps),
        "best schedule": letters(best, num_steps),
    }


@contextlib.contextmanager
def attached(policy: Policy, case: Case) -> Iterator[Account]:
    """The pipeline of the case has this policy."""
    with enable(case.pipeline, policy) as handle:
        yield partial(account_of, handle)


def computed_by_default(trials: Trials, index: int) -> frozenset[int]:
    """Steps that `hold` computes."""
    with enable(trials.pipeline, speedup=SPEEDUP) as handle:
        trials.make(index)
    return frozenset(entry.step for entry in handle.trace if entry.granularity is Granularity.COMPUTE)


def swapped(computed: frozenset[int], num_steps: int, draw: random.Random) -> frozenset[int]:
    """Two steps change places; the first two and the last stay computed."""
    out = draw.choice(sorted(computed - {0, 1, num_steps - 1}))
    into = draw.choice(sorted(frozenset(range(2, num_steps - 1)) - computed))
    return computed - {out} | {into}


def with_as_many(computed: frozenset[int], count: int, num_steps: int, draw: random.Random) -> frozenset[int]:
    """A schedule with so many computed steps, the first two and the last among them, near another one."""
    kept = {0, 1, num_steps - 1}
    free = sorted(computed - kept)
    draw.shuffle(free)
    others = sorted(frozenset(range(num_steps)) - computed - kept)
    draw.shuffle(others)
    return frozenset(kept) | frozenset((free + others)[: count - len(kept)])


def letters(computed: frozenset[int], num_steps: int) -> str:
    return "".join("#" if step in computed else "." for step in range(num_steps))


def page(rows: Sequence[dict[str, Any]], num_tries: int) -> str:
    told = [
        {
            "setting": row["setting"],
            "computed": row["num_computed"],
            "hold, 2x": f"{row['default']:.1f}",
            "every second step": f"{row['every second']:.1f}",
            "best found": f"{row['best']:.1f}",
            "hold's schedule": f"`{row['schedule']}`",
            "best schedule": f"`{row['best schedule']}`",
        }
        for row in rows
    ]
    behind = median(row["best"] - row["default"] for row in rows)
    return "\n".join(
        [
            "# The oracle\n",
            f"Written by `python -m studies.oracle --num-tries {num_tries} --out docs/results`: of "
            f"{NUM_CAPTIONS} training captions in each "
            f"setting, PSNR (dB) of the decoded clip; {num_tries} schedules were tried for each with the plain clip at "
            f"hand. The default is {behind:.1f} dB behind (median).\n",
            table(told),
            "",
        ]
    )


if __name__ == "__main__":
    main()
