"""What a benchmark does not measure: deviations along a run, and schedules searched with the true error."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import torch

from mixcache import generation
from mixcache.bench.run import Benchmark
from mixcache.decision import Choice, Granularity
from mixcache.hosts.diffusers.attachment import enable
from studies.study.methods import BLOCK, EVEN_IMPACTS, SPEEDUP, STEP, even_schedule, scheduled
from studies.study.search import climb

SEED = 9500


def latents_of(benchmark: Benchmark, index: int) -> torch.Tensor:
    """Of one prompt, with whatever is attached now."""
    prompt, seed = benchmark.prompts[index], benchmark.seed + index
    return generation.final_latents(benchmark.pipeline, prompt, seed=seed, **benchmark.arguments)


def deviations(benchmark: Benchmark, index: int) -> list[dict[str, Any]]:
    """At every step of a run that computes all: sigma, the deviation of order 1, and the distances."""

    def measure() -> list[dict[str, Any]]:
        # thresholds that no deviation is under: the warm-up never ends
        settings = {"delta_1": 0.0, "delta_2": 1e-12, "order": 1, "impacts": EVEN_IMPACTS}
        with enable(benchmark.pipeline, "mixcache", **settings) as handle:
            latents_of(benchmark, index)
        return [
            {"sigma": e.sigma, "deviation": e.deviation, **{g.value: d for g, d in e.distances.items()}}
            for e in handle.trace
        ]

    found: list[dict[str, Any]] = benchmark.store.get(["deviations", index], measure)
    return found


def searched(benchmark: Benchmark, index: int, num_trials: int, block_cost: float) -> dict[str, Any]:
    """The schedule that a search with the true error finds, from the planned one of this prompt."""

    def measure() -> dict[str, Any]:
        plain = latents_of(benchmark, index)
        start, trust, origin = start_of(benchmark, index, block_cost)

        def error_of(schedule: Sequence[Choice]) -> float:
            with scheduled("searched", "", schedule, trust=trust).attached(benchmark.case):
                latents = latents_of(benchmark, index)
            return float((latents - plain).square().mean().sqrt() / plain.square().mean().sqrt())

        best, errors = climb(start, error_of, num_trials, random.Random(SEED + index))
        pairs = [[granularity.value, order] for granularity, order in best]
        return {"origin": origin, "schedule": pairs, "trust": trust, "errors": errors}

    found: dict[str, Any] = benchmark.store.get(["search", index, num_trials, SPEEDUP], measure)
    return found


def start_of(benchmark: Benchmark, index: int, block_cost: float) -> tuple[list[Choice], float, str]:
    """The planned schedule with its trust, or an even one where the model has no profile; and which of them it is."""
    try:
        with enable(benchmark.pipeline, "planned", speedup=SPEEDUP) as handle:
            latents_of(benchmark, index)
            return list(handle.plan.choices), handle.plan.trust, "planned"
    except ValueError:
        num_steps = benchmark.arguments["num_inference_steps"]
        even = even_schedule(num_steps, (STEP, BLOCK), (0.0, block_cost), 1 / SPEEDUP, 1)
        return even, 1.0, "steps and blocks in turn"


def choices_of(search: dict[str, Any]) -> list[Choice]:
    """The schedule of a search, as it is kept."""
    return [(Granularity(name), order) for name, order in search["schedule"]]
