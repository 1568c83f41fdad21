"""The measurements of one profile, one number of steps at a time: tasks with names, so that a run that was cut off goes
on."""

from __future__ import annotations

import datetime
import hashlib
import itertools
import json
import logging
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from statistics import fmean, median
from typing import Any, cast

import numpy as np
import torch

from mixcache import generation
from mixcache.arguments import accepted_arguments, check_call, told_arguments
from mixcache.calibration.engines import STRENGTH, PerturbingEngine, RecordingEngine
from mixcache.calibration.schedules import AFTER_COMPUTED, FixedPlanner, timed_schedule, trace_of, windows
from mixcache.config import MixCacheConfig
from mixcache.core.calls import CONDITIONAL, UNCONDITIONAL
from mixcache.core.engine import Engine
from mixcache.decision import CACHED, Granularity
from mixcache.hosts.diffusers.attachment import attach, enable
from mixcache.hosts.diffusers.denoisers import experts_of
from mixcache.hosts.diffusers.handle import Handle
from mixcache.hosts.diffusers.scheduler import is_repeatable
from mixcache.metrics import video_psnr
from mixcache.planning.experts import planner_for
from mixcache.planning.profiles import EXPERTS, FORMAT, Profile, fingerprint, weights_hash
from mixcache.planning.search import KEPT_PER_LEVEL, Plan
from mixcache.planning.trajectory import DOUBT
from mixcache.policies import MixCache, Planned, Replay
from mixcache.policies.base import check_count
from mixcache.policies.mixcache import EVEN_IMPACTS

logger = logging.getLogger("mixcache")
CALIBRATION_SEED = 4242
NUM_DIMENSIONS = 48
"""Most coordinates of a point in a profile."""
MIN_STEPS = 5
"""Of each expert: so few that a step of every granularity is timed."""
LAYOUT = 3
"""Of what the tasks leave in the unfinished file."""
WINDOW = 2
"""Cached steps in a row whose carry is measured."""
TRUSTS = (1.0, 0.75, 0.5, 0.25, 0.0)
PLANNED_SPEEDUPS = (1.5, 2.2)
"""Plans of every trust are run at these."""
PLANNED_CHOICES = ("step", "cfg")
WORK = {"compute": 1.0, "step": 0.01, "cfg": 0.5}
"""Costs of the plans that are tried: of the work alone, so that they are the same on every machine."""
IDENTICAL_DB = 120.0
"""Counts as the PSNR of equal clips."""


@dataclass(frozen=True, kw_only=True)
class CalibrationConfig:
    """What is measured."""

    model: str
    prompts: tuple[str, ...]
    arguments: dict[str, Any] = field(default_factory=dict)
    """Of the pipeline's call."""
    num_windows: int = 8
    """Places along the trajectory where carry is measured."""
    num_impact_steps: int = 4
    """Steps at which impacts are measured."""
    seed: int = CALIBRATION_SEED
    command: str = field(default="", repr=False)
    """What makes this profile again."""

    def __post_init__(self) -> None:
        if not self.prompts:
            raise ValueError("calibration needs a prompt at least")
        for name in ("num_windows", "num_impact_steps"):
            check_count(name, getattr(self, name), 1)


class Calibration:
    """The measurements of one profile, each a task with a name; what is done is kept in the file `unfinished`."""

    def __init__(self, pipeline: Any, config: CalibrationConfig, unfinished: Path | None = None) -> None:
        self.pipeline, self.config, self.unfinished = pipeline, config, unfinished
        self.experts = list(experts_of(pipeline).values())
        with enable(pipeline, "always_compute") as handle:  # ValueError or TypeError where it cannot be cached
            self.row = handle.row
        check_call(pipeline, config.arguments)
        scheduler = [type(pipeline.scheduler).__name__, dict(pipeline.scheduler.config)]
        model = [value for e in self.experts for value in (fingerprint(e), weights_hash(e), str(e.dtype))]
        own = str(replace(config, arguments=told_arguments(config.arguments)))
        self._header = hashlib.sha256(
            json.dumps([FORMAT, LAYOUT, DOUBT, KEPT_PER_LEVEL, own, *model, scheduler], default=str).encode()
        ).hexdigest()
        self._frontiers: dict[float, list[Plan]] = {}
        self._plain_clips: dict[int, np.ndarray] = {}
        self.done: dict[str, Any] = {}
        if unfinished is not None and unfinished.exists():
            self.done = self._resumed(unfinished)

    def _resumed(self, unfinished: Path) -> dict[str, Any]:
        try:
            saved = torch.load(unfinished, weights_only=True)
            header, done = saved["header"], dict(saved["done"])
        except Exception as error:  # a damaged file fails in many ways
            raise ValueError(f"{unfinished} is no calibration to go on from; delete it to begin anew") from error
        if header != self._header:
            raise ValueError(
                f"{unfinished} is of another calibration (model, prompts or settings); delete it to begin anew"
            )
        return done

    def tasks(self) -> Iterator[tuple[str, Callable[[], Any]]]:
        """All measurements by name, in order; later ones need the first."""
        for index in range(len(self.config.prompts)):
            yield f"{index} plain", partial(self._plain, index)
            granularities = self._granularities
            for granularity in granularities:
                if granularity is Granularity.CFG:
                    continue
                for first in self._windows:
                    name = f"{index} carry {granularity} {first}"
                    yield name, partial(self._carried, index, granularity, first)
            for granularity in granularities:
                for step in self._impact_steps:
                    name = f"{index} impact {granularity} {step}"
                    yield name, partial(self._impact, index, granularity, step)
            yield f"{index} times", partial(self._times, index)
        for index in range(len(self.config.prompts)):
            for trust in TRUSTS:
                for speedup in PLANNED_SPEEDUPS:
                    yield f"{index} plan {trust:g} {speedup:g}", partial(self._planned, index, trust, speedup)

    def run(self, on_task: Callable[[int, int], None] | None = None) -> Profile:
        """Does what is left, and puts the profile together; `on_task` is told (done, in all)."""
        names: list[str] = []
        for number, (name, task) in enumerate(self.tasks()):
            if not names:
                generation.generate(self.pipeline, self.config.prompts[0], seed=0, **self._few_steps())
            names.append(name)
            if name not in self.done:
                self.done[name] = task()
                logger.debug("%s", name)
                self._keep()
            if on_task:
                on_task(number + 1, self._num_tasks)
        trust, psnr_at_one = self._trusted()
        return for_each_expert(self._measured, trust=trust, psnr_at_one=round(psnr_at_one, 3))

    @property
    def _num_tasks(self) -> int:
        """Known once the first plain trajectory is there."""
        return sum(1 for _ in self.tasks())

    def _keep(self) -> None:
        if self.unfinished is not None:
            writing = self.unfinished.with_name(f"{self.unfinished.name}.writing")
            torch.save({"header": self._header, "done": self.done}, writing)
            writing.replace(self.unfinished)

    # ------------------------------------------------------------------------------------------------------- runs

    def _few_steps(self) -> dict[str, Any]:
        """Arguments of a call that warms up."""
        few = accepted_arguments(self.pipeline, {"num_inference_steps": 2})
        return self.config.arguments | few

    def _latents(self, index: int, on_step: generation.OnStep | None = None) -> torch.Tensor:
        """Final latents of a prompt, float32 on the CPU."""
        seed = self.config.seed + index
        prompt = self.config.prompts[index]
        return generation.final_latents(self.pipeline, prompt, seed=seed, on_step=on_step, **self.config.arguments)

    def _clip(self, index: int) -> np.ndarray:
        seed = self.config.seed + index
        return generation.generate(self.pipeline, self.config.prompts[index], seed=seed, **self.config.arguments).clip

    def _attached(self, engine_class: type[Engine]) -> Handle:
        return attach(self.pipeline, MixCacheConfig(policy=MixCache(impacts=EVEN_IMPACTS)), engine_class)

    def _plain(self, index: int) -> dict[str, Any]:
        handle = self._attached(RecordingEngine)
        engines = [cast(RecordingEngine, denoiser.engine) for denoiser in handle.denoisers]
        for engine in engines:
            engine.begin()
        try:
            latents = self._latents(index)
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
        if Granularity.BLOCK in self._allowed and all(gram is not None for gram in grams):
            result["residual_grams"] = grams
        return result

    @property
    def _allowed(self) -> tuple[Granularity, ...]:
        return tuple(g for g in CACHED if g.value in self.row.granularities)

    @property
    def _granularities(self) -> tuple[Granularity, ...]:
        """Those that the model allows and the plain trajectory could be read for; `cfg` where one expert has it."""
        plain = self.done["0 plain"]
        is_guided = any(guidance is not None for guidance in plain["guidances"])
        has = {Granularity.CFG: is_guided, Granularity.BLOCK: "residual_grams" in plain}
        return tuple(g for g in self._allowed if has.get(g, True))

    @property
    def _num_steps(self) -> int:
        return len(self.done["0 plain"]["sigmas"])

    @property
    def _ranges(self) -> list[range]:
        """Steps of the loop that each expert does."""
        ends = list(itertools.accumulate(self.done["0 plain"]["counts"]))
        return [range(first, end) for first, end in zip([0, *ends], ends, strict=False)]

    @property
    def _windows(self) -> list[int]:
        """First steps of the windows in which carry is measured: never one that begins an expert's range."""
        begins = {steps.start for steps in self._ranges}
        return sorted({first + (first in begins) for first in windows(self._num_steps, self.config.num_windows)})

    @property
    def _impact_steps(self) -> list[int]:
        stride = self._num_steps / min(self.config.num_impact_steps, self._num_steps)
        return sorted({int((k + 0.5) * stride) for k in range(min(self.config.num_impact_steps, self._num_steps))})

    def _carried(self, index: int, granularity: Granularity, first: int) -> dict[str, float]:
        """What reuse in a window of steps put into the trajectory, and what of it arrived, over the final rms."""
        plain = self.done[f"{index} plain"]
        own = next(steps for steps in self._ranges if first in steps)
        cached = range(first, min(first + WINDOW, own.stop))
        schedule = [(granularity if step in cached else Granularity.COMPUTE, 0) for step in range(self._num_steps)]
        ends = [steps.stop for steps in self._ranges]
        with enable(self.pipeline, Replay(trace=trace_of(schedule, ends=ends))):
            latents = self._latents(index)
        change = (latents - plain["latents"]).double().square().mean().sqrt()
        result = {"change": float(change / plain["latents"].double().square().mean().sqrt())}
        sigmas = [*plain["sigmas"], plain["last_sigma"]]
        is_block = granularity is Granularity.BLOCK
        gram = torch.block_diag(*plain["residual_grams"]) if is_block else guided_gram(plain)
        moves = np.zeros(self._num_steps)
        for step in cached:
            way = sigmas[step] - sigmas[step + 1]
            moves[first - 1] += way
            moves[step] -= way
        return result | {"injected": math.sqrt(max(0.0, float(moves @ gram.numpy() @ moves)))}

    def _impact(self, index: int, granularity: Granularity, step: int) -> float:
        """Change of the final latents by a Gaussian disturbance of one quantity in one step."""
        plain = self.done[f"{index} plain"]["latents"]
        handle = self._attached(PerturbingEngine)
        place = next(k for k, steps in enumerate(self._ranges) if step in steps)
        engine = cast(PerturbingEngine, handle.denoisers[place].engine)
        engine.target, engine.step = granularity, step - self._ranges[place].start
        engine.noise_seed = self.config.seed + 1000 * index
        try:
            change = self._latents(index) - plain
        finally:
            handle.disable()
        return (change.square().mean() / plain.square().mean()).sqrt().item() / engine.strength

    def _times(self, index: int) -> dict[str, Any]:
        """For each expert what a step of each granularity takes, over a plain step, and the seconds of that."""
        found = self._timed_costs(index, [g for g in self._granularities if g is not Granularity.BLOCK])
        if Granularity.BLOCK in self._granularities:  # apart: computed steps then measure more, which is left out
            apart = self._timed_costs(index, [Granularity.STEP, Granularity.BLOCK])
            for costs, also in zip(found["costs"], apart["costs"], strict=True):
                costs["block"] = also["block"]
        return found

    def _timed_costs(self, index: int, granularities: Sequence[Granularity]) -> dict[str, Any]:
        """Medians over the steps of a run, over that of the plain ones before and after it.

        A computed step counts as a plain one and what it is measured for, which is done when the next one begins: what
        a cached step after it takes longer than the one after that. Its own time would say no more, for its noise.
        """
        turns = [timed_schedule(len(steps), self._of_expert(k, granularities)) for k, steps in enumerate(self._ranges)]
        names = [(k, name) for k, (_, of_expert) in enumerate(turns) for name in of_expert]
        plain = [(k, "plain") for k, _ in names]
        planner = FixedPlanner([choice for schedule, _ in turns for choice in schedule], arrivals=self._arrivals)
        policy = Planned(speedup=1.0, choices=tuple(map(str, granularities)), planner=planner)
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
            kept = ("compute", *map(str, self._of_expert(k, granularities)))
            costs.append({name: own[name] / own["plain"] for name in kept})
        return {"costs": costs, "plain_seconds": [times[k, "plain"] for k in range(len(turns))]}

    def _of_expert(self, place: int, granularities: Sequence[Granularity]) -> list[Granularity]:
        """Without `cfg` where this expert is not guided."""
        is_guided = self.done["0 plain"]["guidances"][place] is not None
        return [g for g in granularities if is_guided or g is not Granularity.CFG]

    @property
    def _arrivals(self) -> list[tuple[float, int]]:
        """For each expert the noise level at which it arrives, and the step at which it is done."""
        plain = self.done["0 plain"]
        sigmas = [*plain["sigmas"], plain["last_sigma"]]
        return [(sigmas[steps.stop], steps.stop) for steps in self._ranges]

    def _timed(self, index: int, names: Sequence[tuple[int, str]], seconds: dict[tuple[int, str], list[float]]) -> None:
        """A run whose steps' times are added to `seconds` under their names, each with the place of its expert."""
        ends: list[float] = []
        device = self.pipeline._execution_device  # which looks through all modules

        def watch(num_done: int, total: int) -> None:
            generation.synchronize(device)
            ends.append(time.perf_counter())

        self._latents(index, watch)
        if len(ends) != self._num_steps + 1:
            raise ValueError(
                f"the pipeline tells of {len(ends) - 1} steps and its transformer does {self._num_steps}: they cannot "
                f"be timed with {type(self.pipeline.scheduler).__name__}; take another scheduler"
            )
        for step in range(1, self._num_steps):  # the first step also warms up
            seconds.setdefault(names[step], []).append(ends[step + 1] - ends[step])

    def _planned(self, index: int, trust: float, speedup: float) -> dict[str, float]:
        """PSNR of the clip of a plan, and what was foretold of it with `psnr_at_one` 0."""
        plan = self._plan(trust, speedup)
        planner = FixedPlanner(plan.choices, plan.trust, self._arrivals)
        with enable(self.pipeline, Planned(speedup=speedup, planner=planner)):
            clip = self._clip(index)
        psnr = video_psnr(clip, self._plain_clip(index))
        return {"psnr_db": psnr, "foretold_db": plan.psnr_db, "speedup": plan.speedup}

    def _plan(self, trust: float, speedup: float) -> Plan:
        """The plan of one trust that comes nearest to a speed-up in work, which is the same on any machine."""
        if trust not in self._frontiers:
            profile = with_shares_of_work(for_each_expert(self._measured, trust=trust, costs=WORK))
            corrects = is_repeatable(self.pipeline.scheduler)
            planner = planner_for(profile, speedup=1.0, choices=PLANNED_CHOICES, corrects=corrects)
            self._frontiers[trust] = planner.frontier(profile.loop_sigmas, None)
        return min(self._frontiers[trust], key=lambda plan: abs(plan.speedup - speedup))

    def _plain_clip(self, index: int) -> np.ndarray:
        """Made again only for another prompt."""
        if index not in self._plain_clips:
            self._plain_clips = {index: self._clip(index)}
        return self._plain_clips[index]

    # ---------------------------------------------------------------------------------------------------- profile

    def _trusted(self) -> tuple[float, float]:
        """The trust whose plans gave the best clips, and the PSNR at a harm of 1 that they tell."""
        runs = {trust: self._runs(trust) for trust in TRUSTS}
        best = max(TRUSTS, key=lambda trust: psnr_of(runs[trust]))
        offs = [run["psnr_db"] - run["foretold_db"] for run in runs[best]]
        finite = [off for off in offs if math.isfinite(off)]
        return best, fmean(finite) if finite else 0.0

    def _runs(self, trust: float) -> list[dict[str, float]]:
        """What was seen of the plans of one trust."""
        indices = range(len(self.config.prompts))
        return [self.done[f"{i} plan {trust:g} {speedup:g}"] for speedup in PLANNED_SPEEDUPS for i in indices]

    @cached_property
    def _measured(self) -> Profile:
        """All of the profile but what the plans that are made from it tell; asked for when all else is measured."""
        count = len(self.config.prompts)
        plains = [self.done[f"{index} plain"] for index in range(count)]
        impacts_by_step = {
            str(g): {str(s): fmean(self.done[f"{i} impact {g} {s}"] for i in range(count)) for s in self._impact_steps}
            for g in self._granularities
        }
        means = {name: fmean(values.values()) for name, values in impacts_by_step.items()}
        impacts = {name: mean for name, mean in means.items() if mean > 0}  # 0 where no step has that quantity
        common: dict[str, Any] = {
            "format": FORMAT,
            "model": self.config.model,
            "carry": {str(g): self._carry(g) for g in self._granularities if g is not Granularity.CFG},
            "trust": 1.0,
            "psnr_at_one": 0.0,
            "impacts": impacts,
            "impacts_by_step": impacts_by_step,
            "provenance": self._provenance(),
        }
        points = coordinates(sum(plain["gram"] for plain in plains) / count)
        seconds = [median(self._time(i)["plain_seconds"][k] for i in range(count)) for k in range(len(self.experts))]
        spent = [pace * len(steps) for pace, steps in zip(seconds, self._ranges, strict=True)]
        sigmas = [*map(float, plains[0]["sigmas"]), float(plains[0]["last_sigma"])]
        profiles = []
        for k, (expert, steps) in enumerate(zip(self.experts, self._ranges, strict=True)):
            differences = points[self._num_steps :][steps.start : steps.stop]
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
                costs=self._costs(k),
                band=round(self._band(plains, steps), 3),
                share=round(spent[k] / sum(spent), 4) if len(spent) > 1 else 1.0,
            )
            profiles.append(profile)
        return replace(profiles[0], second=profiles[1] if len(profiles) > 1 else None)

    def _carry(self, granularity: Granularity) -> list[list[float]]:
        """(sigma, rms over the prompts of what arrives of an error there): harm is a mean square, and prompts differ by
        more than ten times."""
        pairs = []
        for first in self._windows:
            tasks = [self.done[f"{i} carry {granularity} {first}"] for i in range(len(self.config.prompts))]
            ratios = [t["change"] / t["injected"] for t in tasks if t["injected"] > 0]
            if ratios:
                rms = math.sqrt(fmean(ratio**2 for ratio in ratios))
                pairs.append([self.done["0 plain"]["sigmas"][first], round(rms, 4)])
        return pairs

    def _time(self, index: int) -> dict[str, Any]:
        found: dict[str, Any] = self.done[f"{index} times"]
        return found

    def _costs(self, place: int = 0) -> dict[str, float]:
        """Medians over the prompts, of one expert."""
        times = [self._time(index)["costs"][place] for index in range(len(self.config.prompts))]
        return {name: round(median(found[name] for found in times), 4) for name in times[0]}

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


def psnr_of(runs: Sequence[dict[str, float]]) -> float:
    """Mean PSNR (dB) of the runs of plans, at the mean of `PLANNED_SPEEDUPS`: on a line through what was seen at the
    speed-ups that the plans have."""
    speedups = np.asarray([run["speedup"] for run in runs])
    psnrs = np.asarray([min(run["psnr_db"], IDENTICAL_DB) for run in runs])
    if np.ptp(speedups) < 1e-6:
        return float(psnrs.mean())
    return float(np.polyval(np.polyfit(speedups, psnrs, 1), fmean(PLANNED_SPEEDUPS)))


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


def for_each_expert(profile: Profile, **changes: Any) -> Profile:
    """The profile with the same changes to both of two experts."""
    second = replace(profile.second, **changes) if profile.second is not None else None
    return replace(profile, **changes, second=second)


def with_shares_of_work(profile: Profile) -> Profile:
    """The profile with shares of the loop that are those of the calls, the same on every machine."""
    if profile.second is None:
        return profile
    calls = [(len(p.sigmas) - 1) * (1 if p.guidance is None else 2) for p in (profile, profile.second)]
    second = replace(profile.second, share=calls[1] / sum(calls))
    return replace(profile, share=calls[0] / sum(calls), second=second)


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


def coordinates(gram: torch.Tensor) -> np.ndarray:
    """Points with these inner products, one row each, as good as `NUM_DIMENSIONS` allow."""
    values, vectors = np.linalg.eigh(gram.numpy())
    order = np.argsort(values)[::-1][:NUM_DIMENSIONS]
    kept = order[values[order] > values[order[0]] * 1e-12]
    return vectors[:, kept] * np.sqrt(values[kept])


def rounded(points: np.ndarray) -> list[list[float]]:
    return [[float(f"{value:.6g}") for value in point] for point in points]
