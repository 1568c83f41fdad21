"""What a calibration has measured so far, and what follows from it for all later measurements."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import torch

from mixcache.calibration.config import CalibrationConfig
from mixcache.calibration.schedules import windows
from mixcache.decision import Granularity


class Measured:
    """Results by the name of their task; the first plain trajectory, "0 plain", says what there is to measure."""

    def __init__(self, config: CalibrationConfig, allowed: Sequence[Granularity]) -> None:
        self.config = config
        self.allowed = tuple(allowed)
        """Granularities that the model allows."""
        self.done: dict[str, Any] = {}

    def plain(self, index: int) -> dict[str, Any]:
        """The plain trajectory of a prompt."""
        found: dict[str, Any] = self.done[f"{index} plain"]
        return found

    @property
    def plains(self) -> list[dict[str, Any]]:
        """Those of all prompts."""
        return [self.plain(index) for index in range(self.num_prompts)]

    @property
    def num_prompts(self) -> int:
        return len(self.config.prompts)

    @property
    def granularities(self) -> tuple[Granularity, ...]:
        """Those that the model allows and the plain trajectory could be read for; `cfg` where one expert has it."""
        plain = self.plain(0)
        is_guided = any(guidance is not None for guidance in plain["guidances"])
        has = {Granularity.CFG: is_guided, Granularity.BLOCK: "residual_grams" in plain}
        return tuple(g for g in self.allowed if has.get(g, True))

    @property
    def num_steps(self) -> int:
        return len(self.plain(0)["sigmas"])

    @property
    def ranges(self) -> list[range]:
        """Steps of the loop that each expert does."""
        ends = list(itertools.accumulate(self.plain(0)["counts"]))
        return [range(first, end) for first, end in zip([0, *ends], ends, strict=False)]

    @property
    def windows(self) -> list[int]:
        """First steps of the windows in which sensitivity is measured: never one that begins an expert's range."""
        begins = {steps.start for steps in self.ranges}
        return sorted({first + (first in begins) for first in windows(self.num_steps, self.config.num_windows)})

    @property
    def impact_steps(self) -> list[int]:
        stride = self.num_steps / min(self.config.num_impact_steps, self.num_steps)
        return sorted({int((k + 0.5) * stride) for k in range(min(self.config.num_impact_steps, self.num_steps))})

    def of_expert(self, place: int, granularities: Sequence[Granularity]) -> list[Granularity]:
        """Without `cfg` where this expert is not guided."""
        is_guided = self.plain(0)["guidances"][place] is not None
        return [g for g in granularities if is_guided or g is not Granularity.CFG]

    @property
    def arrivals(self) -> list[tuple[float, int]]:
        """For each expert the noise level at which it arrives, and the step at which it is done."""
        plain = self.plain(0)
        sigmas = [*plain["sigmas"], plain["last_sigma"]]
        return [(sigmas[steps.stop], steps.stop) for steps in self.ranges]


def guided_gram(plain: dict[str, Any]) -> torch.Tensor:
    """Inner products of the guided outputs of a plain trajectory."""
    gram, num_steps = plain["gram"], len(plain["sigmas"])
    weights = [
        0.0 if guidance is None else 1.0 - guidance
        for guidance, count in zip(plain["guidances"], plain["counts"], strict=True)
        for _ in range(count)
    ]
    weight = torch.diag(torch.tensor(weights, dtype=gram.dtype))
    mix = torch.cat([torch.eye(num_steps, dtype=gram.dtype), weight], dim=1)
    return mix @ gram @ mix.T
