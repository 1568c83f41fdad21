"""Measures trials clip by clip, and keeps what was measured."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any, cast

import torch

from mixcache import generation
from mixcache.attachment import Handle, enable
from mixcache.bench.methods import Method
from mixcache.bench.records import Record
from mixcache.bench.run import WARM_UP_STEPS
from mixcache.bench.source import code_hash
from mixcache.calibration.schedules import Schedule, trace_of
from mixcache.config import MixCacheConfig
from mixcache.decision import Granularity
from mixcache.generation import Generated
from mixcache.metrics import adherence, video_psnr, video_ssim
from mixcache.models import row_for
from mixcache.policies import Replay
from mixcache.profiles import profile_for, weights_hash
from mixcache.store import Store
from studies.study.engines import ENGINES
from studies.study.search import climb
from studies.study.settings import BLOCK, EVEN_IMPACTS, SEED, SPEEDUP, STEP
from studies.study.trials import Trial, even_schedule, planned_trial


class Study:
    """Measures trials on prompts; what the store holds is not measured again."""

    def __init__(self, pipeline: Any, prompts: Sequence[str], arguments: Mapping[str, Any], store: Store) -> None:
        self.pipeline, self.prompts, self.arguments, self.store = pipeline, prompts, dict(arguments), store
        profile = profile_for(pipeline.transformer)
        calibrated = profile.digest if profile else ""
        self.model = [weights_hash(pipeline.transformer), calibrated[:16], code_hash()]
        self.skipped: dict[str, str] = {}
        """Methods that could not be run, and why."""
        self._plain: dict[tuple[int, int], Generated] = {}
        self._plain_latents: dict[tuple[int, int], torch.Tensor] = {}
        self._planners: dict[tuple[float, int], Any] = {}

    def measured(self, kind: str, identity: Any, index: int, measure: Callable[[], Any]) -> Any:
        """From the store, or measured on the prompt of that index."""
        arguments = {k: v for k, v in self.arguments.items() if k != "num_inference_steps"}
        return self.store.get([kind, self.model, arguments, identity, self.prompts[index], SEED + index], measure)

    def record(self, trial: Trial, index: int) -> Record | None:
        """One row on one prompt; None where the method cannot be run."""
        if trial.method.name in self.skipped:
            return None
        try:
            values = self.measured("clip", trial.identity, index, lambda: asdict(self._record(trial, index)))
        except ValueError as reason:
            if trial.method.policy != "planned":
                raise
            self.skipped[trial.method.name] = str(reason)
            return None
        return Record(**values | {"method": trial.method.name})

    def _record(self, trial: Trial, index: int) -> Record:
        prompt, plain = self.prompts[index], self.plain(trial.num_steps, index)
        count = trial.method.num_inference_steps
        summary: dict[str, Any] = {"ideal_speedup": trial.num_steps / (count or trial.num_steps)}
        with self.attached(trial) as handle:
            made = self._generate(count or trial.num_steps, index)
            if handle is not None:
                summary = handle.summary()
        psnr = video_psnr(made.clip, plain.clip)
        return Record(
            method=trial.method.name,
            prompt=prompt,
            seed=SEED + index,
            denoising_seconds=made.denoising_seconds,
            speedup=plain.denoising_seconds / made.denoising_seconds,
            ideal_speedup=summary["ideal_speedup"],
            psnr_db=psnr if math.isfinite(psnr) else None,
            ssim=video_ssim(made.clip, plain.clip),
            adherence=adherence(made.clip, prompt).mean,
            cache_peak_bytes=summary.get("peak_bytes", 0),
            granularity_counts=summary.get("granularity_counts", {}),
        )

    @contextmanager
    def attached(self, trial: Trial) -> Iterator[Handle | None]:
        """The pipeline with the trial's method on it; None for the plain pipeline."""
        settings = dict(trial.method.settings)
        if trial.schedule:
            trace = trace_of([(Granularity(name), order) for name, order in trial.schedule], trial.trust)
            row = row_for(self.pipeline.transformer, self.pipeline)
            config = MixCacheConfig(policy=Replay(trace=trace))
            handle = Handle(self.pipeline, config, row, ENGINES[trial.engine])
            handle._attach()
        elif trial.method.policy is None:
            yield None
            return
        else:
            if trial.method.policy == "planned":
                settings["planner"] = self._planner(trial)
            handle = enable(self.pipeline, trial.method.policy, **settings)
        try:
            yield handle
        finally:
            handle.disable()

    def _planner(self, trial: Trial) -> Any:
        """A planner that knows these noise levels already: a user plans once, so it is no part of the time."""
        key = (trial.method.settings["speedup"], trial.num_steps)
        if key not in self._planners:
            with enable(self.pipeline, "planned", speedup=key[0]) as handle:
                self._latents(trial.num_steps, 0)
                self._planners[key] = handle.config.settings["planner"]
        return self._planners[key]

    def _generate(self, num_steps: int, index: int) -> Generated:
        arguments = self.arguments | {"num_inference_steps": num_steps}
        return generation.generate(self.pipeline, self.prompts[index], seed=SEED + index, **arguments)

    def plain(self, num_steps: int, index: int) -> Generated:
        """The clip that nothing was left out of, made once."""
        if (num_steps, index) not in self._plain:
            if not self._plain:
                self._generate(WARM_UP_STEPS, index)
            self._plain[num_steps, index] = self._generate(num_steps, index)
        return self._plain[num_steps, index]

    def _latents(self, num_steps: int, index: int) -> torch.Tensor:
        arguments = self.arguments | {"num_inference_steps": num_steps}
        return generation.final_latents(self.pipeline, self.prompts[index], seed=SEED + index, **arguments)

    def deviations(self, num_steps: int, index: int) -> list[dict[str, Any]]:
        """At every step of a run that computes all: sigma, the deviation of order 1, and the distances."""
        # thresholds that no deviation is under: the warm-up never ends
        settings = {"delta_1": 0.0, "delta_2": 1e-12, "order": 1, "impacts": EVEN_IMPACTS}
        measuring = Method(family="", policy="mixcache", settings=settings)
        trial = Trial(part="b", method=measuring, num_steps=num_steps, num_prompts=1)

        def measure() -> list[dict[str, Any]]:
            with self.attached(trial) as handle:
                self._latents(num_steps, index)
                entries = list(cast(Handle, handle).trace)
            return [
                {"sigma": e.sigma, "deviation": e.deviation, **{g.value: d for g, d in e.distances.items()}}
                for e in entries
            ]

        return cast(list[dict[str, Any]], self.measured("deviations", trial.identity, index, measure))

    def searched(self, num_steps: int, index: int, num_trials: int, block_cost: float) -> dict[str, Any]:
        """The schedule that a search with the true error finds, from the planned one of this prompt."""

        trust = 1.0

        def error_of(schedule: Schedule) -> float:
            with self.attached(schedule_trial("", schedule, 1, trust)):
                latents = self._latents(num_steps, index)
            plain = self._plain_latents[num_steps, index]
            return float((latents - plain).square().mean().sqrt() / plain.square().mean().sqrt())

        def measure() -> dict[str, Any]:
            nonlocal trust
            if (num_steps, index) not in self._plain_latents:
                self._plain_latents[num_steps, index] = self._latents(num_steps, index)
            try:
                with self.attached(planned_trial("e", num_steps, 1, SPEEDUP)) as handle:
                    self._latents(num_steps, index)
                    plan = cast(Handle, handle).plan
                start, trust, origin = list(plan.choices), plan.trust, "planned"
            except ValueError:
                even = even_schedule(num_steps, (STEP, BLOCK), (0.0, block_cost), 1 / SPEEDUP, 1)
                start, origin = [(Granularity(name), order) for name, order in even], "steps and blocks in turn"
            best, errors = climb(start, error_of, num_trials, random.Random(SEED + index))
            pairs = [[granularity.value, order] for granularity, order in best]
            return {"origin": origin, "schedule": pairs, "trust": trust, "errors": errors}

        return cast(dict[str, Any], self.measured("search", [num_steps, num_trials, SPEEDUP], index, measure))


def schedule_trial(name: str, schedule: Any, num_prompts: int, trust: float = 1.0) -> Trial:
    """A schedule of part e as a row; its items are pairs of a granularity and an order."""
    pairs = tuple((str(granularity), int(order)) for granularity, order in schedule)
    method = Method(family=name)
    return Trial(part="e", method=method, num_steps=len(pairs), num_prompts=num_prompts, schedule=pairs, trust=trust)
