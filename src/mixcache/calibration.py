"""Calibration: what a profile needs to know of a model, measured on plain trajectories of a few prompts.

For each prompt:

- a plain trajectory: the conditional output, the guidance difference and the guided span residual of every step, as
  random samples of their values; their inner products with one another are kept, never the tensors;
- *carry*: in one window of steps the cache reuses the last value and everything else runs in full; the change of the
  final latents over what reuse put in there. Errors of a cache are smooth and alike from step to step, and the model
  carries them on quite differently from noise, so noise cannot stand in for them;
- *impact* (the paper's, for policy `mixcache`): one quantity q (v, d or the span residual r) in one step is replaced by
  q + strength rms(q) noise, the same noise in both branches, since guidance would multiply the difference of two;
  I = rms(change of the final latents) / rms(final latents) / strength;
- the time of a step of each granularity, from schedules that take turns.

Everything is kept in one file beside the result after every clip, and a run that was cut off goes on from there.
"""

from __future__ import annotations

import datetime
import hashlib
import json
import logging
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from statistics import fmean, median
from typing import Any, cast

import numpy as np
import torch

from mixcache import generation
from mixcache.attachment import Handle, enable
from mixcache.calls import CONDITIONAL, UNCONDITIONAL, CallInfo, SpanMode
from mixcache.config import MixCacheConfig
from mixcache.decision import CACHED, Choice, Decision, Granularity
from mixcache.engine import Compute, Engine, Streams, parts_of
from mixcache.metrics import video_psnr
from mixcache.models import row_for
from mixcache.policies import MixCache, Planned, Replay
from mixcache.policies.base import check_count
from mixcache.profiles import FORMAT, Profile, fingerprint, weights_hash
from mixcache.trace import Trace, TraceEntry
from mixcache.zoo import world

logger = logging.getLogger("mixcache")
CALIBRATION_SEED = 4242
STRENGTH = 0.1
NUM_SAMPLES = 16384
"""Values of each tensor that its inner products are taken from."""
NUM_DIMENSIONS = 48
"""Most coordinates of a point in a profile."""
MIN_STEPS = 4
WINDOW = 2
"""Cached steps in a row whose carry is measured."""
AFTER_COMPUTED = "step after a computed one"
Schedule = Sequence[Choice]


def trace_of(schedule: Schedule) -> Trace:
    """A schedule as a trace, for policy `replay`."""
    return Trace(
        TraceEntry(
            generation=0, step=step, num_steps=len(schedule), sigma=0.0, granularity=granularity, order=order, reason=""
        )
        for step, (granularity, order) in enumerate(schedule)
    )


class FixedPlanner:
    """Gives policy `planned` one schedule and expects nothing, so that the guard stays off."""

    band = math.inf

    def __init__(self, schedule: Schedule) -> None:
        self.profile = self
        self._schedule = schedule

    def plan(self, sigmas: tuple[float, ...], guidance: float | None) -> tuple[FixedPlanner, FixedPlanner]:
        """Itself, as schedule and as expectation."""
        return self, self

    def decision(self, index: int) -> Decision:
        """What the schedule says."""
        granularity, order = self._schedule[index]
        return Decision(granularity=granularity, order=order, reason="timed")

    def relative_error(self, order: int, sigma: float, nodes: Sequence[float]) -> float | None:
        """Nothing is expected."""
        return None


def timed_schedule(num_steps: int, granularities: Sequence[Granularity]) -> tuple[Schedule, list[str]]:
    """A schedule in which the granularities take turns, and the name under which each step is timed.

    The time of the first cached step after a computed one is kept apart.
    """
    pattern = [(Granularity.COMPUTE, "compute"), (Granularity.STEP, AFTER_COMPUTED), (Granularity.STEP, "step")]
    pattern += [
        (granularity, granularity.value) for granularity in granularities if granularity is not Granularity.STEP
    ]
    turns = [pattern[(step - 1) % len(pattern)] if step else pattern[0] for step in range(num_steps)]
    schedule = [(granularity, min(1, max(0, step - 2))) for step, (granularity, _) in enumerate(turns)]
    return schedule, [name for _, name in turns]


# ------------------------------------------------------------------------------------------------------------- engines


class PerturbingEngine(Engine):
    """Computes everything, and disturbs one quantity in one step."""

    target: Granularity | None = None
    step: int = 0
    strength: float = STRENGTH
    noise_seed: int = 0

    def call(self, info: CallInfo, compute: Compute, compute_conditional: Compute | None = None) -> torch.Tensor:
        """The computed output, disturbed if this is the step."""
        is_step = info.step == self.step
        self.span_mode = SpanMode.RECORD if is_step and self.target is Granularity.BLOCK else SpanMode.RUN
        output = compute()
        if not is_step or self.target not in (Granularity.STEP, Granularity.CFG):
            return output
        parts = parts_of(output, info)
        if CONDITIONAL in parts:
            self._conditional = parts[CONDITIONAL]
        for branch, part in parts.items():
            if self.target is Granularity.STEP:
                parts[branch] = part + self._noise(part)
            elif branch == UNCONDITIONAL:
                parts[branch] = part + self._noise(part - self._conditional)
        return torch.cat([parts[branch] for branch in info.branches])

    def span_ends(self, streams: Streams) -> Streams:
        """What comes out of the span, with its residuals disturbed if this is the step."""
        if self.span_mode is not SpanMode.RECORD:
            return streams
        return tuple(end + self._noise(end - begin) for begin, end in zip(self._span_input, streams, strict=True))

    def _noise(self, quantity: torch.Tensor) -> torch.Tensor:
        generator = torch.Generator().manual_seed(self.noise_seed)
        noise = torch.randn(quantity.shape, generator=generator).to(quantity)
        return self.strength * quantity.float().square().mean().sqrt().to(quantity) * noise


class RecordingEngine(Engine):
    """Computes everything, and keeps samples of the outputs and of the span residuals."""

    def begin(self) -> None:
        """Forgets what was recorded."""
        self.sigmas: list[float] = []
        self.last_sigma = 0.0
        self._samples: dict[tuple[str, str], list[torch.Tensor]] = {}
        self._places: dict[int, torch.Tensor] = {}
        self._branch = ""

    def call(self, info: CallInfo, compute: Compute, compute_conditional: Compute | None = None) -> torch.Tensor:
        """The computed output."""
        if info.step == len(self.sigmas):
            self.sigmas.append(info.sigma)
            self.last_sigma = info.sigmas[-1] if info.sigmas else 0.0
        self._branch = info.branch
        self.span_mode = SpanMode.RECORD
        output = compute()
        self.span_mode = SpanMode.RUN
        for branch, part in parts_of(output, info).items():
            self._keep("output", branch, part)
        return output

    def span_ends(self, streams: Streams) -> Streams:
        """What comes out of the span; its residual is sampled."""
        self._keep("residual", self._branch, streams[0] - self._span_input[0])
        return streams

    def _keep(self, kind: str, branch: str, value: torch.Tensor) -> None:
        flat = value.detach().flatten()
        if flat.numel() not in self._places:
            generator = torch.Generator().manual_seed(0)
            self._places[flat.numel()] = torch.randperm(flat.numel(), generator=generator)[:NUM_SAMPLES]
        places = self._places[flat.numel()].to(flat.device)
        self._samples.setdefault((kind, branch), []).append(flat[places].to("cpu", torch.float64))

    def matrix(self, kind: str, branch: str) -> torch.Tensor | None:
        """Samples of one quantity, a row for each step; None where a branch was not called at every step."""
        rows = self._samples.get((kind, branch), [])
        return torch.stack(rows) if len(rows) == len(self.sigmas) else None


# --------------------------------------------------------------------------------------------------------- calibration


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
        transformer = pipeline.transformer
        self.row = row_for(transformer, pipeline)
        self._header = hashlib.sha256(
            json.dumps([FORMAT, str(config), fingerprint(transformer), weights_hash(transformer)]).encode()
        ).hexdigest()
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
            num_steps = self._num_steps
            granularities = self._granularities
            for granularity in granularities:
                if granularity is Granularity.CFG:
                    continue
                for first in windows(num_steps, self.config.num_windows):
                    name = f"{index} carry {granularity} {first}"
                    yield name, partial(self._carried, index, granularity, first)
            for granularity in granularities:
                for step in self._impact_steps:
                    name = f"{index} impact {granularity} {step}"
                    yield name, partial(self._impact, index, granularity, step)
            yield f"{index} times", partial(self._times, index)

    def run(self, on_task: Callable[[int, int], None] | None = None) -> Profile:
        """Does what is left, and puts the profile together; `on_task` is told (done, in all)."""
        names: list[str] = []
        for number, (name, task) in enumerate(self.tasks()):
            if not names:
                generation.generate(self.pipeline, self.config.prompts[0], seed=0, **self._arguments(num_steps=2))
            names.append(name)
            if name not in self.done:
                self.done[name] = task()
                logger.debug("%s", name)
                self._keep()
            if on_task:
                on_task(number + 1, self._num_tasks)
        return self._profile()

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

    def _arguments(self, num_steps: int | None = None) -> dict[str, Any]:
        return self.config.arguments | ({"num_inference_steps": num_steps} if num_steps else {})

    def _latents(self, index: int, on_step: generation.OnStep | None = None) -> torch.Tensor:
        """Final latents of a prompt, float32 on the CPU."""
        seed = self.config.seed + index
        prompt = self.config.prompts[index]
        return generation.final_latents(self.pipeline, prompt, seed=seed, on_step=on_step, **self._arguments())

    def _clip(self, index: int) -> np.ndarray:
        seed = self.config.seed + index
        return generation.generate(self.pipeline, self.config.prompts[index], seed=seed, **self._arguments()).clip

    def _attached(self, engine_class: type[Engine]) -> Handle:
        handle = Handle(self.pipeline, MixCacheConfig(policy=MixCache()), self.row, engine_class)
        handle._attach()
        return handle

    def _plain(self, index: int) -> dict[str, Any]:
        handle = self._attached(RecordingEngine)
        engine = cast(RecordingEngine, handle.engine)
        engine.begin()
        try:
            latents = self._latents(index)
        finally:
            handle.disable()
        if len(engine.sigmas) < MIN_STEPS:
            raise ValueError(f"{len(engine.sigmas)} steps are too few to calibrate on; take {MIN_STEPS} at least")
        guidance = handle.denoisers[0].reader.guidance
        cond, uncond = (engine.matrix("output", branch) for branch in (CONDITIONAL, UNCONDITIONAL))
        if cond is None:
            raise ValueError("the model's calls have no conditional branch at every step; it cannot be calibrated")
        differences = torch.zeros_like(cond) if uncond is None else uncond - cond
        rms = latents.double().square().mean().sqrt()
        points = torch.cat([cond, differences]) / rms / math.sqrt(cond.shape[1])
        result: dict[str, Any] = {"latents": latents, "gram": points @ points.T, "sigmas": engine.sigmas}
        result |= {"last_sigma": engine.last_sigma, "guidance": guidance if uncond is not None else None}
        residuals = {b: engine.matrix("residual", b) for b in (CONDITIONAL, UNCONDITIONAL, "cond_uncond")}
        found = [r for r in residuals.values() if r is not None]
        if found and Granularity.BLOCK in self._allowed:
            residual = found[0]
            if len(found) == 2 and guidance is not None:
                residual = found[1] + guidance * (found[0] - found[1])
            residual = residual / residual.square().sum(1, keepdim=True).sqrt()
            result["residual_gram"] = residual @ residual.T
        return result

    @property
    def _allowed(self) -> tuple[Granularity, ...]:
        return tuple(g for g in CACHED if g.value in self.row.granularities)

    @property
    def _granularities(self) -> tuple[Granularity, ...]:
        """Those that the model allows and the plain trajectory could be read for."""
        plain = self.done["0 plain"]
        has = {Granularity.CFG: plain["guidance"] is not None, Granularity.BLOCK: "residual_gram" in plain}
        return tuple(g for g in self._allowed if has.get(g, True))

    @property
    def _num_steps(self) -> int:
        return len(self.done["0 plain"]["sigmas"])

    @property
    def _impact_steps(self) -> list[int]:
        stride = self._num_steps / min(self.config.num_impact_steps, self._num_steps)
        return sorted({int((k + 0.5) * stride) for k in range(min(self.config.num_impact_steps, self._num_steps))})

    def _carried(self, index: int, granularity: Granularity, first: int) -> dict[str, float]:
        """What reuse in a window of steps put into the trajectory, and what of it arrived, over the final rms."""
        plain = self.done[f"{index} plain"]
        cached = range(first, min(first + WINDOW, self._num_steps))
        schedule = [(granularity if step in cached else Granularity.COMPUTE, 0) for step in range(self._num_steps)]
        with enable(self.pipeline, Replay(trace=trace_of(schedule))):
            latents = self._latents(index)
        change = (latents - plain["latents"]).double().square().mean().sqrt()
        result = {"change": float(change / plain["latents"].double().square().mean().sqrt())}
        sigmas = [*plain["sigmas"], plain["last_sigma"]]
        gram = plain["residual_gram"] if granularity is Granularity.BLOCK else guided_gram(plain)
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
        engine = cast(PerturbingEngine, handle.engine)
        engine.target, engine.step, engine.noise_seed = granularity, step, self.config.seed + 1000 * index
        try:
            change = self._latents(index) - plain
        finally:
            handle.disable()
        return (change.square().mean() / plain.square().mean()).sqrt().item() / engine.strength

    def _times(self, index: int) -> dict[str, Any]:
        """Seconds of single steps, plain and of each granularity, and how far a clip is off for its latents' error."""
        schedule, names = timed_schedule(self._num_steps, self._granularities)
        plain_names = ["plain"] * self._num_steps
        seconds: dict[str, list[float]] = {name: [] for name in ("plain", *names)}
        policy = Planned(
            speedup=1.0, choices=tuple(g.value for g in self._granularities), planner=FixedPlanner(schedule)
        )
        self._timed(index, plain_names, seconds)
        with enable(self.pipeline, policy):
            latents = self._timed(index, names, seconds)
        self._timed(index, plain_names, seconds)
        plain = self.done[f"{index} plain"]["latents"]
        change = ((latents - plain).double().square().mean() / plain.double().square().mean()).sqrt()
        clip = self._clip(index)
        with enable(self.pipeline, policy):
            psnr = video_psnr(self._clip(index), clip)
        return {"seconds": seconds, "change": float(change), "psnr_db": psnr}

    def _timed(self, index: int, names: Sequence[str], seconds: dict[str, list[float]]) -> torch.Tensor:
        """A run whose steps' times are added to `seconds` under their names."""
        ends: list[float] = []
        device = self.pipeline._execution_device  # which looks through all modules

        def watch(num_done: int, total: int) -> None:
            generation._synchronize(device)
            ends.append(time.perf_counter())

        latents = self._latents(index, watch)
        for step in range(1, self._num_steps):  # the first step also warms up
            seconds[names[step]].append(ends[step + 1] - ends[step])
        return latents

    # ---------------------------------------------------------------------------------------------------- profile

    def _profile(self) -> Profile:
        count = len(self.config.prompts)
        plains = [self.done[f"{index} plain"] for index in range(count)]
        num_steps, transformer = self._num_steps, self.pipeline.transformer
        points = coordinates(sum(plain["gram"] for plain in plains) / count)
        has_residuals = all("residual_gram" in plain for plain in plains)
        residuals = coordinates(sum(p["residual_gram"] for p in plains) / count) if has_residuals else np.zeros((0, 0))
        sigmas = [float(sigma) for sigma in plains[0]["sigmas"]]
        impacts_by_step = {
            str(g): {str(s): fmean(self.done[f"{i} impact {g} {s}"] for i in range(count)) for s in self._impact_steps}
            for g in self._granularities
        }
        offs = [self.done[f"{index} times"] for index in range(count)]
        psnrs = [off["psnr_db"] + 20 * math.log10(off["change"]) for off in offs if math.isfinite(off["psnr_db"])]
        return Profile(
            format=FORMAT,
            model=self.config.model,
            transformer_class=type(transformer).__name__,
            fingerprint=fingerprint(transformer),
            weights=weights_hash(transformer),
            dtype=str(transformer.dtype),
            guidance=plains[0]["guidance"],
            sigmas=[*sigmas, float(plains[0]["last_sigma"])],
            outputs=rounded(points[:num_steps]),
            differences=rounded(points[num_steps:]),
            residuals=rounded(residuals),
            carry={str(g): self._carry(g) for g in self._granularities if g is not Granularity.CFG},
            costs=self._costs(),
            psnr_at_one=round(fmean(psnrs), 3) if psnrs else 0.0,
            band=round(self._band(plains), 3),
            impacts={name: fmean(values.values()) for name, values in impacts_by_step.items()},
            impacts_by_step=impacts_by_step,
            provenance=self._provenance(),
        )

    def _carry(self, granularity: Granularity) -> list[list[float]]:
        pairs = []
        for first in windows(self._num_steps, self.config.num_windows):
            tasks = [self.done[f"{i} carry {granularity} {first}"] for i in range(len(self.config.prompts))]
            ratios = [math.log(max(t["change"], 1e-9) / t["injected"]) for t in tasks if t["injected"] > 0]
            if ratios:
                pairs.append([self.done["0 plain"]["sigmas"][first], round(math.exp(fmean(ratios)), 4)])
        return pairs

    def _costs(self) -> dict[str, float]:
        """Medians over the steps of all prompts, over that of a plain step.

        A computed step is measured when the next one begins: what a cached step after it takes longer than the one
        after that is the computed one's.
        """
        seconds: dict[str, list[float]] = {}
        for index in range(len(self.config.prompts)):
            for name, values in self.done[f"{index} times"]["seconds"].items():
                seconds.setdefault(name, []).extend(values)
        times = {name: median(values) for name, values in seconds.items() if values}
        measuring = max(0.0, times[AFTER_COMPUTED] - times["step"])
        times["compute"] += measuring
        plain = times["plain"]
        return {name: round(times[name] / plain, 4) for name in ("compute", "step", "cfg", "block") if name in times}

    def _band(self, plains: Sequence[dict[str, Any]]) -> float:
        """The 95th percentile, over prompts and steps, of the error of reuse over that of the mean trajectory."""
        mean = sum(guided_gram(plain) for plain in plains) / len(plains)
        ratios = []
        for plain in plains:
            own = guided_gram(plain)
            for step in range(2, self._num_steps):
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


def windows(num_steps: int, count: int) -> list[int]:
    """First steps of `count` windows, evenly spread over the steps that can be cached, closer at the end."""
    last = num_steps - 1
    shares = [k / max(1, count - 1) for k in range(count)]
    return sorted({max(1, round(1 + (last - 1) * share)) for share in shares})


def guided_gram(plain: dict[str, Any]) -> torch.Tensor:
    """Inner products of the guided outputs of a plain trajectory."""
    gram, count = plain["gram"], len(plain["sigmas"])
    weight = 0.0 if plain["guidance"] is None else 1.0 - plain["guidance"]
    mix = torch.cat([torch.eye(count, dtype=gram.dtype), weight * torch.eye(count, dtype=gram.dtype)], dim=1)
    return mix @ gram @ mix.T


def coordinates(gram: torch.Tensor) -> np.ndarray:
    """Points with these inner products, one row each, as good as `NUM_DIMENSIONS` allow."""
    values, vectors = np.linalg.eigh(gram.numpy())
    order = np.argsort(values)[::-1][:NUM_DIMENSIONS]
    kept = order[values[order] > values[order[0]] * 1e-12]
    return vectors[:, kept] * np.sqrt(values[kept])


def rounded(points: np.ndarray) -> list[list[float]]:
    return [[float(f"{value:.6g}") for value in point] for point in points]


def built_in_prompts(num_prompts: int) -> list[str]:
    """Captions that the built-in models were trained on: those held out stay for the benchmarks."""
    return [scene.caption for scene in world.sample_scenes(num_prompts, CALIBRATION_SEED, held_out=False)]


def calibrate(
    pipeline: Any,
    config: CalibrationConfig,
    out: Path | None = None,
    on_task: Callable[[int, int], None] | None = None,
    *,
    step_counts: Sequence[int] = (),
) -> Profile:
    """The profile of a pipeline's transformer, written to `out` if given.

    `step_counts` are the numbers of denoising steps that it is made for, the first being the one that others are told
    as ranges of; by default that of the config, or of the pipeline. A run that was cut off goes on from `out` with
    `.partial` behind it. ValueError where model or file are wrong.
    """
    counts = tuple(dict.fromkeys(step_counts)) or (config.arguments.get("num_inference_steps"),)
    profiles, unfinished = [], []
    for place, count in enumerate(counts):
        arguments = config.arguments | ({"num_inference_steps": count} if count else {})
        partial_file = out.with_name(f"{out.name}.partial{place or ''}") if out else None
        calibration = Calibration(pipeline, replace(config, arguments=arguments), partial_file)
        unfinished.append(partial_file)

        def told(num_done: int, total: int, place: int = place) -> None:
            if on_task:
                on_task(place * total + num_done, len(counts) * total)

        profiles.append(calibration.run(told))
    profile = replace(profiles[0], others=profiles[1:])
    if out is not None:
        profile.save(out)
        for path in filter(None, unfinished):
            path.unlink(missing_ok=True)
    return profile
