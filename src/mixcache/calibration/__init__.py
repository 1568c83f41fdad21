"""Calibration: what a profile knows of a model beyond what any cached generation shows.

Six clips for each number of steps: two prompts, each made plain, and cached at two values of `error` of policy `hold`.
The plain one is a run in which nothing may be cached: it shows how fast outputs change at every step. The others show
what an `error` costs, as PSNR against it. With `impacts`, the paper's perturbation analysis comes on top: one quantity
in one step of an otherwise computed trajectory is disturbed, and the change of the final latents over the disturbance
is its impact (policy `mixcache`).
"""

from __future__ import annotations

import datetime
import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any, cast

import torch

from mixcache import generation
from mixcache.arguments import check_call, told_arguments
from mixcache.calibration.perturbing import STRENGTH, PerturbingEngine
from mixcache.config import MixCacheConfig
from mixcache.decision import CACHED, Granularity
from mixcache.hosts.diffusers.attachment import attach, enable
from mixcache.hosts.diffusers.denoisers import experts_of
from mixcache.metrics import video_psnr
from mixcache.policies import Hold, MixCache
from mixcache.profiles import FORMAT, Expert, Profile, profile_of
from mixcache.store import write_json
from mixcache.zoo import world

CALIBRATION_SEED = 4242
ERRORS = (0.25, 0.6)
"""Of the cached clips."""
NOTHING = 1e-9
"""An `error` at which nothing is cached."""
IMPACT_PLACES = (0.125, 0.375, 0.625, 0.875)
"""Shares of the steps at which impacts are measured."""


@dataclass(frozen=True, kw_only=True)
class CalibrationConfig:
    """What is measured."""

    model: str
    prompts: tuple[str, ...]
    arguments: dict[str, Any] = field(default_factory=dict)
    """Of the pipeline's call."""
    impacts: bool = False
    """Measures impacts too, on the first prompt: 8 clips for each granularity."""
    seed: int = CALIBRATION_SEED
    command: str = field(default="", repr=False)
    """What makes this profile again."""

    def __post_init__(self) -> None:
        if not self.prompts:
            raise ValueError("calibration needs a prompt at least")


def built_in_prompts(num_prompts: int) -> list[str]:
    """Captions that the built-in models were trained on: those held out stay for the benchmarks."""
    return [scene.caption for scene in world.sample_scenes(num_prompts, CALIBRATION_SEED, held_out=False)]


def calibrate(
    pipeline: Any,
    config: CalibrationConfig,
    out: Path | None = None,
    on_clip: Callable[[int, int], None] | None = None,
    *,
    step_counts: Sequence[int] = (),
) -> Profile:
    """The profile of a pipeline's transformer, or of both its experts, written to `out` if given.

    `step_counts` are the numbers of denoising steps that it is made with; by default that of the config, or of the
    pipeline. `on_clip` is told (done, in all). A run that was cut off goes on from `out` with `.partial` behind it.
    ValueError where model or file are wrong.
    """
    counts = tuple(dict.fromkeys(step_counts)) or (None,)
    measured = Measured(pipeline, config, out.with_name(f"{out.name}.partial") if out else None, counts)
    tasks = list(measured.tasks())
    num_done, total = 0, sum(count for _, count, _ in tasks)
    for name, count, task in tasks:
        measured.once(name, task)
        num_done += count
        if on_clip:
            on_clip(num_done, total)
    profile = measured.profile()
    if out is not None:
        profile.save(out)
        out.with_name(f"{out.name}.partial").unlink(missing_ok=True)
    return profile


class Measured:
    """The measurements of one profile, each with a name; those done are kept in the file `unfinished`."""

    def __init__(
        self,
        pipeline: Any,
        config: CalibrationConfig,
        unfinished: Path | None,
        step_counts: Sequence[int | None] = (None,),
    ) -> None:
        self.step_counts = step_counts
        self.pipeline, self.config, self.unfinished = pipeline, config, unfinished
        with enable(pipeline, "always_compute") as handle:  # ValueError or TypeError where it cannot be cached
            self.granularities = [g for g in CACHED if g.value in handle.row.granularities]
        check_call(pipeline, config.arguments)
        self.experts = list(experts_of(pipeline).values())
        self.known = profile_of(config.model, self.experts)
        """What these clips have shown so far, and not what a shipped profile says."""
        self.done: dict[str, Any] = {}
        self._header = self._identity()
        if unfinished is not None and unfinished.exists():
            self._resume(unfinished)

    def _identity(self) -> str:
        """A hash of all that the results hang on."""
        experts = [asdict(Expert.of(expert)) for expert in self.experts]
        scheduler = self.pipeline.scheduler
        # diffusers' notes about itself come in another order in each process
        settings = {name: value for name, value in scheduler.config.items() if not name.startswith("_")}
        own = str(replace(self.config, arguments=told_arguments(self.config.arguments)))
        facts = [FORMAT, ERRORS, list(self.step_counts), own, experts, type(scheduler).__name__, settings]
        return hashlib.sha256(json.dumps(facts, default=str).encode()).hexdigest()

    def _resume(self, unfinished: Path) -> None:
        try:
            saved = json.loads(unfinished.read_text())
            header, done = saved["header"], dict(saved["done"])
            known = Profile.parse(json.dumps(saved["known"]), str(unfinished))
        except Exception as error:  # a damaged file fails in many ways
            raise ValueError(f"{unfinished} is no calibration to go on from; delete it to begin anew") from error
        if header != self._header:
            raise ValueError(
                f"{unfinished} is of another calibration (model, prompts or settings); delete it to begin anew"
            )
        self.done, self.known = done, known

    def tasks(self) -> Iterator[tuple[str, int, Callable[[], Any]]]:
        """All measurements: a name, the clips that it takes, and what to do."""
        for count in self.step_counts:
            for index in range(len(self.config.prompts)):
                yield f"{count} {index}", 1 + len(ERRORS), partial(self._psnrs, count, index)
        if self.config.impacts:
            for granularity in self.granularities:
                for place in IMPACT_PLACES:
                    yield f"{granularity} {place}", 2, partial(self._impact, self.step_counts[0], granularity, place)

    def once(self, name: str, task: Callable[[], Any]) -> None:
        """Does a task that is not done yet, and keeps what it gave."""
        if name in self.done:
            return
        self.done[name] = task()
        if self.unfinished is not None:
            write_json(self.unfinished, {"header": self._header, "done": self.done, "known": asdict(self.known)})

    def _arguments(self, count: int | None) -> dict[str, Any]:
        return self.config.arguments | ({"num_inference_steps": count} if count else {})

    def _psnrs(self, count: int | None, index: int) -> list[list[float]]:
        """Rows of `Profile.psnrs` of a prompt's clips."""
        plain, rows = None, []
        for error in (NOTHING, *ERRORS):
            with enable(self.pipeline, Hold(error=error, profile=self.known)) as handle:
                made = generation.generate(
                    self.pipeline, self.config.prompts[index], seed=self.config.seed + index, **self._arguments(count)
                )
                self.known = self.known.with_learnt(cast(Hold, handle.policy.policy).learnt)
                num_steps = handle.trace.generation(-1)[-1].num_steps if len(handle.trace) else 0
                if not num_steps:
                    raise ValueError("the calls of this pipeline do not say enough to cache them; nothing to calibrate")
            if plain is None:
                plain = made.clip
            elif handle.summary().granularity_counts["step"]:
                rows.append([error, num_steps, round(min(99.0, video_psnr(made.clip, plain)), 3)])
        return rows

    def _impact(self, count: int | None, granularity: Granularity, place: float) -> float:
        """Relative change of the final latents by a relative disturbance in one step; 0 where it has none."""
        arguments, prompt = self._arguments(count), self.config.prompts[0]

        def latents() -> torch.Tensor:
            made = generation.final_latents(self.pipeline, prompt, seed=self.config.seed, **arguments)
            return made.double()

        handle = attach(self.pipeline, MixCacheConfig(policy=MixCache(impacts={})), PerturbingEngine)
        try:
            engines = [cast(PerturbingEngine, denoiser.engine) for denoiser in handle.denoisers]
            plain = latents()
            engines[0].target, engines[0].step = granularity, int(place * engines[0].num_steps)
            engines[0].noise_seed = self.config.seed
            change = latents() - plain
        finally:
            handle.disable()
        return float((change.square().mean() / plain.square().mean()).sqrt() / STRENGTH)

    def profile(self) -> Profile:
        """All of it put together."""
        impacts = {}
        for granularity in self.granularities if self.config.impacts else ():
            impact = fmean(self.done[f"{granularity} {place}"] for place in IMPACT_PLACES)
            if impact > 0:
                impacts[granularity.value] = impact
        psnrs = [row for rows in self.done.values() if isinstance(rows, list) for row in rows]
        return replace(self.known, impacts=impacts, psnrs=psnrs, provenance=self._provenance())

    def _provenance(self) -> dict[str, Any]:
        return {
            "seed": self.config.seed,
            "prompts": list(self.config.prompts),
            "arguments": {k: v for k, v in self.config.arguments.items() if isinstance(v, (int, float, str, bool))},
            "scheduler": type(self.pipeline.scheduler).__name__,
            "versions": generation.versions(),
            "machine": generation.machine(self.pipeline._execution_device),
            "command": self.config.command,
            "date": datetime.date.today().isoformat(),
        }
