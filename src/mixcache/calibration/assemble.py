"""Puts the profile together from what was measured."""

from __future__ import annotations

import datetime
import math
from collections.abc import Sequence
from dataclasses import replace
from statistics import fmean, median
from typing import Any

import numpy as np
import torch

from mixcache import generation
from mixcache.calibration.engines import STRENGTH
from mixcache.calibration.measured import Measured, guided_gram
from mixcache.decision import Granularity
from mixcache.hosts.diffusers.denoisers import experts_of
from mixcache.planning.profiles import FORMAT, Profile, fingerprint, weights_hash

NUM_DIMENSIONS = 48
"""Most coordinates of a point in a profile."""


class Assembly:
    """The profile of a pipeline's transformer, or of both its experts, as far as no plan has to be tried for it."""

    def __init__(self, pipeline: Any, measured: Measured) -> None:
        self.pipeline, self.config, self.measured = pipeline, measured.config, measured

    def profile(self) -> Profile:
        """All of the profile but what the plans that are made from it tell; asked for when all else is measured."""
        count, plains = self.measured.num_prompts, self.measured.plains
        experts = list(experts_of(self.pipeline).values())
        impacts_by_step = {
            str(g): {
                str(s): fmean(self.measured.done[f"{i} impact {g} {s}"] for i in range(count))
                for s in self.measured.impact_steps
            }
            for g in self.measured.granularities
        }
        means = {name: fmean(values.values()) for name, values in impacts_by_step.items()}
        impacts = {name: mean for name, mean in means.items() if mean > 0}  # 0 where no step has that quantity
        common: dict[str, Any] = {
            "format": FORMAT,
            "model": self.config.model,
            "sensitivity": {
                str(g): self.sensitivity(g) for g in self.measured.granularities if g is not Granularity.CFG
            },
            "damping": 1.0,
            "psnr_at_one": 0.0,
            "impacts": impacts,
            "impacts_by_step": impacts_by_step,
            "provenance": self._provenance(),
        }
        points = coordinates(sum(plain["gram"] for plain in plains) / count)
        seconds = [median(self._time(i)["plain_seconds"][k] for i in range(count)) for k in range(len(experts))]
        spent = [pace * len(steps) for pace, steps in zip(seconds, self.measured.ranges, strict=True)]
        sigmas = [*map(float, plains[0]["sigmas"]), float(plains[0]["last_sigma"])]
        profiles = []
        for k, (expert, steps) in enumerate(zip(experts, self.measured.ranges, strict=True)):
            differences = points[self.measured.num_steps :][steps.start : steps.stop]
            has_residuals = all("residual_grams" in plain for plain in plains)
            residuals = (
                coordinates(sum(p["residual_grams"][k] for p in plains) / count) if has_residuals else np.zeros((0, 0))
            )
            profile = Profile(
                **common,
                transformer_class=type(expert).__name__,
                fingerprint=fingerprint(expert),
                weights=weights_hash(expert),
                dtype=str(expert.dtype),
                guidance=plains[0]["guidances"][k],
                sigmas=sigmas[steps.start : steps.stop + 1],
                outputs=rounded(points[steps.start : steps.stop]),
                differences=rounded(differences),
                residuals=rounded(residuals),
                costs=self.costs(k),
                band=round(self._band(plains, steps), 3),
                share=round(spent[k] / sum(spent), 4) if len(spent) > 1 else 1.0,
            )
            profiles.append(profile)
        return replace(profiles[0], second=profiles[1] if len(profiles) > 1 else None)

    def sensitivity(self, granularity: Granularity) -> list[list[float]]:
        """(sigma, rms over the prompts of what arrives of an error there): a cost is a mean square, and prompts differ
        by more than ten times."""
        pairs = []
        for first in self.measured.windows:
            tasks = [
                self.measured.done[f"{i} sensitivity {granularity} {first}"] for i in range(self.measured.num_prompts)
            ]
            ratios = [t["change"] / t["injected"] for t in tasks if t["injected"] > 0]
            if ratios:
                rms = math.sqrt(fmean(ratio**2 for ratio in ratios))
                pairs.append([self.measured.plain(0)["sigmas"][first], round(rms, 4)])
        return pairs

    def costs(self, place: int = 0) -> dict[str, float]:
        """Medians over the prompts, of one expert."""
        times = [self._time(index)["costs"][place] for index in range(self.measured.num_prompts)]
        return {name: round(median(found[name] for found in times), 4) for name in times[0]}

    def _time(self, index: int) -> dict[str, Any]:
        found: dict[str, Any] = self.measured.done[f"{index} times"]
        return found

    def _band(self, plains: Sequence[dict[str, Any]], steps: range) -> float:
        """The 95th percentile, over prompts and an expert's steps, of the error of reuse over that of the mean
        trajectory."""
        mean = sum(guided_gram(plain) for plain in plains) / len(plains)
        ratios = []
        for plain in plains:
            own = guided_gram(plain)
            for step in steps[2:]:
                errors = [
                    math.sqrt(
                        max(0.0, float(g[step, step] - 2 * g[step, step - 1] + g[step - 1, step - 1]))
                        / float(g[step, step])
                    )
                    for g in (own, mean)
                ]
                ratios.append(errors[0] / max(errors[1], 1e-9))
        return max(1.0, float(np.percentile(ratios, 95)))

    def _provenance(self) -> dict[str, Any]:
        return {
            "seed": self.config.seed,
            "strength": STRENGTH,
            "prompts": list(self.config.prompts),
            "arguments": {k: v for k, v in self.config.arguments.items() if isinstance(v, (int, float, str, bool))},
            "scheduler": type(self.pipeline.scheduler).__name__,
            "num_windows": self.config.num_windows,
            "num_impact_steps": self.config.num_impact_steps,
            "versions": generation.versions(),
            "machine": generation.machine(self.pipeline._execution_device),
            "command": self.config.command,
            "date": datetime.date.today().isoformat(),
        }


def for_each_expert(profile: Profile, **changes: Any) -> Profile:
    """The profile with the same changes to both of two experts."""
    second = replace(profile.second, **changes) if profile.second is not None else None
    return replace(profile, **changes, second=second)


def coordinates(gram: torch.Tensor) -> np.ndarray:
    """Points with these inner products, one row each, as good as `NUM_DIMENSIONS` allow."""
    values, vectors = np.linalg.eigh(gram.numpy())
    order = np.argsort(values)[::-1][:NUM_DIMENSIONS]
    kept = order[values[order] > values[order[0]] * 1e-12]
    return vectors[:, kept] * np.sqrt(values[kept])


def rounded(points: np.ndarray) -> list[list[float]]:
    return [[float(f"{value:.6g}") for value in point] for point in points]
