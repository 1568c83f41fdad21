"""What is compared: a method is one way of running a pipeline, its family a line in the plot, its setting a point."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """What all methods of a benchmark have in common."""

    pipeline: Any
    arguments: Mapping[str, Any]
    """Of the pipeline's call, without prompt and generator."""
    calibration_prompts: tuple[str, ...] = ()
    """For methods that calibrate themselves; none of them is measured on."""


Account = Callable[[], dict[str, Any]]
"""Asked after a generation: what a method says of itself, such as `granularity_counts`; may be empty."""
Attach = Callable[[Case], AbstractContextManager[Account]]
"""Makes the pipeline of a case use a method while the context is open, and leaves nothing of it behind."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Method:
    """One row of a benchmark: a policy of ours, a peer that `attach` puts on, or the plain pipeline (neither)."""

    family: str
    """What a user would call it; the same for all its settings."""
    setting: str = ""
    """What tells it from the others of its family, in the library's own words."""
    policy: str | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Of the policy."""
    attach: Attach | None = field(default=None, compare=False)
    origin: str = "mixcache"
    """Whose code runs: "mixcache", a package with its version, or "re-implementation of" a paper."""
    is_peer: bool = False
    """True for methods that are not ours."""
    is_calibrated: bool = False
    """True if it was told something that was measured on this model beforehand."""
    when_idle: str = ""
    """Why it would compute everything, for the row of a method that does."""
    num_inference_steps: int | None = None
    """Steps of the pipeline, where they are fewer than the benchmark's."""

    @property
    def name(self) -> str:
        return f"{self.family}, {self.setting}" if self.setting else self.family

    @contextlib.contextmanager
    def attached(self, case: Case) -> Iterator[Account]:
        """The pipeline of the case uses this method; gives what can be asked of it after a generation."""
        if self.attach is not None:
            with self.attach(case) as account:
                yield account
        elif self.policy is not None:
            from mixcache.hosts.diffusers.attachment import enable

            with enable(case.pipeline, self.policy, **self.settings) as handle:
                yield lambda: account_of(handle)
        else:
            yield dict


def account_of(handle: Any) -> dict[str, Any]:
    """What a handle of ours says after one generation: the choices as one letter a step among them."""
    from mixcache.report.frontier import letters

    summary = handle.summary()
    return {
        "granularity_counts": dict(summary.granularity_counts),
        "schedule": letters([(entry.granularity, entry.predictor) for entry in handle.trace]),
        "cache_bytes": summary.peak_bytes,
    }


PLAIN = Method(family="plain")


def fewer_steps(num_steps: int) -> Method:
    """The plain pipeline with fewer steps: what any cache has to beat."""
    return Method(family="fewer steps", setting=f"{num_steps} steps", num_inference_steps=num_steps)


def policy_method(policy: str, **settings: Any) -> Method:
    """A policy of ours, told by its settings."""
    setting = ", ".join(f"{name} {value}" for name, value in settings.items()) or "defaults"
    return Method(family=policy, setting=setting, policy=policy, settings=settings)


def cadence(granularity: str, period: float, predictor: str) -> Method:
    """`every_nth` of a single granularity; family and predictor make a line."""
    return Method(
        family=f"every_nth {granularity}, {predictor}",
        setting=f"period {period:g}",
        policy="every_nth",
        settings={"granularities": granularity, "period": period, "predictor": predictor},
    )


MANY_STEPS = 35
"""Number of steps over which a family has its settings for many; those for few lie far from them."""
Family = Callable[[int], Sequence[Method]]
"""What one name of `--methods` stands for, at a number of denoising steps."""
