"""What an engine asks of the other ranks where several run one clip: one decision for all, and sums over their shards.

A transformer whose tokens are spread over several devices meets in every attention. A rank that leaves a call out while
another enters it waits for ever, so rank 0 decides and the others follow. `mixcache.hosts.ranks` carries it out.
"""

from __future__ import annotations

from collections.abc import Collection, Hashable, Mapping, Sequence
from typing import Any, Protocol, TypeVar

from mixcache.decision import Decision, Granularity
from mixcache.predictors import PREDICTORS, Predictor, damped, undamped

Name = TypeVar("Name", bound=Hashable)
GRANULARITIES = tuple(Granularity)


class AloneError(Exception):
    """Another rank cannot tell what this call is and computes it in full: so does this one."""


class Agreement(Protocol):
    """The ranks that run one clip, as one of them sees them. Each question is put by all of them, in one order; what
    one of them raises is raised by all."""

    @property
    def leads(self) -> bool:
        """True on rank 0."""

    def meet(self, place: Mapping[str, Any], trajectory: Mapping[str, Any] | None) -> None:
        """A call begins, at this place; the first of a trajectory says what else all must have alike. ValueError where
        that differs, RuntimeError where the run has failed or is over on another rank, AloneError."""

    def total(self, values: Mapping[Name, float], shards: Collection[Name]) -> dict[Name, float]:
        """Those of `shards` summed over the ranks; of the others rank 0's. Not finite where one rank's is not."""

    def decide(self, code: tuple[int, float]) -> tuple[int, float]:
        """What rank 0 gives."""

    def in_full(self, reason: str) -> None:
        """This rank computes its call in full: the others do too."""

    def begin(self) -> None:
        """A run begins."""

    def end(self) -> None:
        """The run is done; RuntimeError where it failed on another rank."""

    def fail(self, error: BaseException) -> None:
        """The run failed here: the others raise this at their next question. RuntimeError with what another rank failed
        with, where it is that which ended a wait here."""


def encoded(decision: Decision, predictors: Sequence[Predictor]) -> tuple[int, float]:
    """A decision as a number and a damping; `predictors` are those of the policy. ValueError for any other one."""
    known = [*predictors, *PREDICTORS.values()]
    predictor, damping = decision.predictor, 1.0
    if predictor not in known:
        predictor, damping = undamped(predictor)
    if predictor not in known:
        raise ValueError(f"predictor {predictor} is not one of the policy's: name it in Needs(predictors=...)")
    return GRANULARITIES.index(decision.granularity) + len(GRANULARITIES) * known.index(predictor), damping


def decoded(code: tuple[int, float], predictors: Sequence[Predictor]) -> Decision:
    """The decision that `encoded` gave, as the ranks that follow trace it."""
    place, granularity = divmod(code[0], len(GRANULARITIES))
    predictor = damped([*predictors, *PREDICTORS.values()][place], code[1])
    return Decision(granularity=GRANULARITIES[granularity], predictor=predictor, reason="as rank 0 decided")
