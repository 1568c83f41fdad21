"""What policy `hold` is expected to do at a number of steps: as letters, and as rows for each round speed-up."""

from __future__ import annotations

import math
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import replace

from mixcache.decision import Choice, Granularity, Measurement, Step, Trial
from mixcache.policies import Bounded, Hold
from mixcache.policies.budget import LEAST_STEPS
from mixcache.policies.way import Way
from mixcache.predictors import REUSE

SPEEDUPS = (1.25, 1.5, 1.75, 2.0, 2.5, 3.0, 4.0, 5.0)
LETTERS = {Granularity.COMPUTE: "#", Granularity.STEP: "s", Granularity.CFG: "g", Granularity.BLOCK: "b"}


def letters(choices: Sequence[Choice]) -> str:
    """One letter a step; a capital where the predictor extrapolates."""
    return "".join(LETTERS[g].upper() if predictor.num_values > 1 else LETTERS[g] for g, predictor in choices)


def foretold(policy: Hold, sigmas: Sequence[float], way: Way) -> str:
    """The letters of a run in which outputs change at the rates of `way`; `sigmas` are the noise levels of the steps,
    and the one at which the last step arrives. The policy learns nothing from it."""
    return carried_out(replace(policy, learnt=deepcopy(policy.learnt)), sigmas, way)


def carried_out(
    policy: Hold, sigmas: Sequence[float], way: Way, *, offset: int = 0, num_computed_before: int = 0
) -> str:
    """As `foretold`, but the policy learns as from a generation; the steps of a second expert come after those of the
    first, `offset` of them, of which so many were computed."""
    bounded, num_steps = Bounded(policy=policy, **policy.default_bounds), len(sigmas) - 1
    state, done, last = bounded.init(), "", math.nan
    for index, sigma in enumerate(sigmas[:-1]):
        num_cached = len(done) - len(done.rstrip("s"))
        usable = {Granularity.STEP: num_cached + 1} if index else {}
        step = Step(
            index=index,
            num_steps=num_steps,
            offset=offset,
            num_computed_before=num_computed_before,
            sigma=sigma,
            ages=usable,
            history_lengths=usable,
            num_cached=num_cached,
            sigmas=tuple(sigmas),
        )
        decision = bounded.decide(step, state)
        done += LETTERS[decision.granularity]
        if decision.granularity is Granularity.COMPUTE:
            error = math.exp(way.log_rate((last + sigma) / 2)) * (last - sigma) if index else math.nan
            trials: dict[Choice, Trial] = {(Granularity.STEP, REUSE): Trial(missed=error**2)} if index else {}
            bounded.observe(Measurement(step=index, sigma=sigma, deviation=None, trials=trials), state)
            last = sigma
    return done


def frontier_rows(sigmas: Sequence[float], policy: Hold) -> list[str]:
    """For each round speed-up that so many steps allow: the speed-up, the computed steps, and which they are expected
    to be, from what the policy has learnt or the prior says."""
    way, rows = policy.learnt.way, []
    for speedup in SPEEDUPS if len(sigmas) > LEAST_STEPS else ():
        try:
            done = foretold(Hold(speedup=speedup, learnt=policy.learnt), sigmas, way)
        except ValueError:  # out of reach
            break
        rows.append(f"{speedup:5.2f}x  {done.count('#'):3d} computed  {done}")
    return rows
