"""Runs of the pipeline: each is one measurement of a calibration."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from statistics import median
from typing import Any, cast

import numpy as np
import torch

from mixcache import generation
from mixcache.arguments import accepted_arguments
from mixcache.calibration.engines import PerturbingEngine, RecordingEngine
from mixcache.calibration.measured import Measured, guided_gram
from mixcache.calibration.schedules import AFTER_COMPUTED, FixedPlanner, timed_schedule, trace_of
from mixcache.config import MixCacheConfig
from mixcache.core.calls import CONDITIONAL, UNCONDITIONAL
from mixcache.core.observer import Observer
from mixcache.decision import Granularity
from mixcache.hosts.diffusers.attachment import attach, enable
from mixcache.hosts.diffusers.handle import Handle
from mixcache.metrics import video_psnr
from mixcache.planning.profiles import EXPERTS
from mixcache.planning.search import Plan
from mixcache.policies import MixCache, Planned, Replay
from mixcache.predictors import REUSE

MIN_STEPS = 5
"""Of each expert: so few that a step of every granularity is timed."""
WINDOW = 2
"""Cached steps in a row whose sensitivity is measured."""


class Runs:
    """Measures on a pipeline; what an earlier run told is in `measured`, and nothing is written there."""

    def __init__(self, pipeline: Any, measured: Measured) -> None:
        self.pipeline, self.config, self.measured = pipeline, measured.config, measured
        self._plain_clips: dict[int, np.ndarray] = {}

    def warm_up(self) -> None:
        """A call of few steps, of which nothing is kept."""
        few = accepted_arguments(self.pipeline, {"num_inference_steps": 2})
        generation.generate(self.pipeline, self.config.prompts[0], seed=0, **self.config.arguments | few)

    def latents(self, index: int, on_step: generation.OnStep | None = None) -> torch.Tensor:
        """Final latents of a prompt, float32 on the CPU."""
        seed = self.config.seed + index
        prompt = self.config.prompts[index]
        return generation.final_latents(self.pipeline, prompt, seed=seed, on_step=on_step, **self.config.arguments)

    def clip(self, index: int) -> np.ndarray:
        seed = self.config.seed + index
        return generation.generate(self.pipeline, self.config.prompts[index], seed=seed, **self.config.arguments).clip

    def attached(self, engine_class: type[Observer]) -> Handle:
        return attach(self.pipeline, MixCacheConfig(policy=MixCache(impacts={})), engine_class)

    def plain(self, index: int) -> dict[str, Any]:
        handle = self.attached(RecordingEngine)
        engines = [cast(RecordingEngine, denoiser.engine) for denoiser in handle.denoisers]
        for engine in engines:
            engine.begin()
        try:
            latents = self.latents(index)
        finally:
            handle.disable()
        counts = [len(engine.sigmas) for engine in engines]
        check_counts(counts)
        conds, unconds = ([e.matrix("output", branch) for e in engines] for branch in (CONDITIONAL, UNCONDITIONAL))
        found = [cond for cond in conds if cond is not None]
        if len(found) < len(conds):
            raise ValueError("the model's calls have no conditional branch at every step; it cannot be calibrated")
        differences = [
            torch.zeros_like(cond) if uncond is None else uncond - cond
            for cond, uncond in zip(found, unconds, strict=True)
        ]
        guidances = [
            denoiser.reader.guidance if uncond is not None else None
            for denoiser, uncond in zip(handle.denoisers, unconds, strict=True)
        ]
        rms = latents.double().square().mean().sqrt()
        points = torch.cat([*found, *differences]) / rms / math.sqrt(found[0].shape[1])
        result: dict[str, Any] = {"latents": latents, "gram": points @ points.T, "counts": counts}
        result |= {"sigmas": [sigma for engine in engines for sigma in engine.sigmas]}
        result |= {"last_sigma": engines[-1].last_sigma, "guidances": guidances}
        grams = [residual_gram(engine, scale) for engine, scale in zip(engines, guidances, strict=True)]
        if Granularity.BLOCK in self.measured.allowed and all(gram is not None for gram in grams):
            result["residual_grams"] = grams
        return result

    def sensitivity(self, index: int, granularity: Granularity, first: int) -> dict[str, float]:
        """What reuse in a window of steps put into the trajectory, and what of it arrived, over the final rms."""
        plain = self.measured.plain(index)
        own = next(steps for steps in self.measured.ranges if first in steps)
        cached = range(first, min(first + WINDOW, own.stop))
        schedule = [
            (granularity if step in cached else Granularity.COMPUTE, REUSE) for step in range(self.measured.num_steps)
        ]
        ends = [steps.stop for steps in self.measured.ranges]
        with enable(self.pipeline, Replay(trace=trace_of(schedule, ends=ends))):
            latents = self.latents(index)
        change = (latents - plain["latents"]).double().square().mean().sqrt()
        result = {"change": float(change / plain["latents"].double().square().mean().sqrt())}
        sigmas = [*plain["sigmas"], plain["last_sigma"]]
        is_block = granularity is Granularity.BLOCK
        gram = torch.block_diag(*plain["residual_grams"]) if is_block else guided_gram(plain)
        moves = np.zeros(self.measured.num_steps)
        for step in cached:
            step_size = sigmas[step] - sigmas[step + 1]
            moves[first - 1] += step_size
            moves[step] -= step_size
        return result | {"injected": math.sqrt(max(0.0, float(moves @ gram.numpy() @ moves)))}

    def impact(self, index: int, granularity: Granularity, step: int) -> float:
        """Change of the final latents by a Gaussian disturbance of one quantity in one step."""
        plain = self.measured.plain(index)["latents"]
        handle = self.attached(PerturbingEngine)
        place = next(k for k, steps in enumerate(self.measured.ranges) if step in steps)
        engine = cast(PerturbingEngine, handle.denoisers[place].engine)
        engine.target, engine.step = granularity, step - self.measured.ranges[place].start
        engine.noise_seed = self.config.seed + 1000 * index
        try:
            change = self.latents(index) - plain
        finally:
            handle.disable()
        return (change.square().mean() / plain.square().mean()).sqrt().item() / engine.strength

    def times(self, index: int) -> dict[str, Any]:
        """For each expert what a step of each granularity takes, over a plain step, and the seconds of that."""
        found = self._timed_costs(index, [g for g in self.measured.granularities if g is not Granularity.BLOCK])
        if (
            Granularity.BLOCK in self.measured.granularities
        ):  # apart: computed steps then measure more, which is left out
            apart = self._timed_costs(index, [Granularity.STEP, Granularity.BLOCK])
            for costs, also in zip(found["costs"], apart["costs"], strict=True):
                costs["block"] = also["block"]
        return found

    def _timed_costs(self, index: int, granularities: Sequence[Granularity]) -> dict[str, Any]:
        """Medians over the steps of a run, over that of the plain ones before and after it.

        A computed step counts as a plain one and what it is measured for, which is done when the next one begins: what
        a cached step after it takes longer than the one after that. Its own time would say no more, for its noise.
        """
        turns = [
            timed_schedule(len(steps), self.measured.of_expert(k, granularities))
            for k, steps in enumerate(self.measured.ranges)
        ]
        names = [(k, name) for k, (_, of_expert) in enumerate(turns) for name in of_expert]
        plain = [(k, "plain") for k, _ in names]
        planner = FixedPlanner(
            [choice for schedule, _ in turns for choice in schedule], arrivals=self.measured.arrivals
        )
        policy = Planned(speedup=1.0, granularities=tuple(map(str, granularities)), planner=planner)
        seconds: dict[tuple[int, str], list[float]] = {}
        self._timed(index, plain, seconds)
        with enable(self.pipeline, policy):
            self._timed(index, names, seconds)
        self._timed(index, plain, seconds)
        times = {name: median(values) for name, values in seconds.items()}
        costs = []
        for k in range(len(turns)):
            own = {name: times[place, name] for place, name in times if place == k}
            own["compute"] = own["plain"] + max(0.0, own[AFTER_COMPUTED] - own["step"])
            kept = ("compute", *map(str, self.measured.of_expert(k, granularities)))
            costs.append({name: own[name] / own["plain"] for name in kept})
        return {"costs": costs, "plain_seconds": [times[k, "plain"] for k in range(len(turns))]}

    def _timed(self, index: int, names: Sequence[tuple[int, str]], seconds: dict[tuple[int, str], list[float]]) -> None:
        """A run whose steps' times are added to `seconds` under their names, each with the place of its expert."""
        ends: list[float] = []
        device = self.pipeline._execution_device  # which looks through all modules

        def watch(num_done: int, total: int) -> None:
            generation.synchronize(device)
            ends.append(time.perf_counter())

        self.latents(index, watch)
        num_steps = self.measured.num_steps
        if len(ends) != num_steps + 1:
            raise ValueError(
                f"the pipeline tells of {len(ends) - 1} steps and its transformer does {num_steps}: they cannot be "
                f"timed with {type(self.pipeline.scheduler).__name__}; take another scheduler"
            )
        for step in range(1, num_steps):  # the first step also warms up
            seconds.setdefault(names[step], []).append(ends[step + 1] - ends[step])

    def planned(self, index: int, plan: Plan, speedup: float) -> dict[str, float]:
        """PSNR of the clip of a plan for a speed-up, and what was foretold of it with `psnr_at_one` 0."""
        planner = FixedPlanner(plan.choices, plan.damping, self.measured.arrivals)
        with enable(self.pipeline, Planned(speedup=speedup, planner=planner)):
            clip = self.clip(index)
        psnr = video_psnr(clip, self._plain_clip(index))
        return {"psnr_db": psnr, "foretold_db": plan.psnr_db, "speedup": plan.speedup}

    def _plain_clip(self, index: int) -> np.ndarray:
        """Made again only for another prompt."""
        if index not in self._plain_clips:
            self._plain_clips = {index: self.clip(index)}
        return self._plain_clips[index]


def check_counts(counts: Sequence[int]) -> None:
    """ValueError where an expert did too few steps to be measured."""
    if not any(counts):
        raise ValueError("the calls of this pipeline do not say enough to cache them; there is nothing to calibrate")
    if len(counts) == 1 and counts[0] < MIN_STEPS:
        raise ValueError(f"{counts[0]} steps are too few to calibrate on; take {MIN_STEPS} at least")
    for name, count in zip(EXPERTS, counts, strict=False):
        if count < MIN_STEPS:
            raise ValueError(
                f"{name} does {count} of the {sum(counts)} steps, too few to calibrate on; take so many that each "
                f"expert does {MIN_STEPS} at least"
            )


def residual_gram(engine: RecordingEngine, guidance: float | None) -> torch.Tensor | None:
    """Inner products of the guided span residuals over their norms; None where none were recorded."""
    residuals = [engine.matrix("residual", branch) for branch in (CONDITIONAL, UNCONDITIONAL, "cond_uncond")]
    found = [residual for residual in residuals if residual is not None]
    if not found:
        return None
    residual = found[0]
    if len(found) == 2 and guidance is not None:
        residual = found[1] + guidance * (found[0] - found[1])
    residual = residual / residual.square().sum(1, keepdim=True).sqrt()
    return residual @ residual.T
