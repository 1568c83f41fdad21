"""What a peer measures on a model before it can run: once for each model, call and scheduler."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from mixcache.arguments import told_arguments
from mixcache.bench.methods import Case
from mixcache.generation import final_latents
from mixcache.profiles import fingerprint, weights_hash

SEED = 20241128
"""Of the first calibration prompt; the next ones count up."""
_MEASURED: dict[tuple[str, ...], Any] = {}


def calibrated(peer: str, case: Case, measure: Callable[[Case], Any]) -> Any:
    """What `measure` says of a case, from memory where it was asked before; ValueError without calibration prompts."""
    if not case.calibration_prompts:
        raise ValueError(f"{peer} measures the model before it runs: give Case(calibration_prompts=...)")
    transformer, scheduler = case.pipeline.transformer, case.pipeline.scheduler
    key = (
        peer,
        fingerprint(transformer),
        weights_hash(transformer),
        repr(sorted(told_arguments(case.arguments).items())),
        type(scheduler).__name__ + repr(sorted(scheduler.config.items(), key=str)),
        repr(case.calibration_prompts),
    )
    if key not in _MEASURED:
        _MEASURED[key] = measure(case)
    return _MEASURED[key]


def run_calibration_prompts(case: Case) -> None:
    """One generation for each calibration prompt, without decoding."""
    for index, prompt in enumerate(case.calibration_prompts):
        final_latents(case.pipeline, prompt, seed=SEED + index, **case.arguments)
