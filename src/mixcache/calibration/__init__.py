"""Calibration: what a profile needs to know of a model, measured on plain trajectories of a few prompts.

For each prompt:

- a plain trajectory: the conditional output, the guidance difference and the guided span residual of every step, as
  random samples of their values; their inner products with one another are kept, never the tensors;
- *sensitivity*: in one window of steps the cache reuses the last value and everything else runs in full; the change
  of the final latents over what reuse put in there. Errors of a cache are smooth and alike from step to step, and the
  model carries them on quite differently from noise, so noise cannot stand in for them;
- *impact* (the paper's, for policy `mixcache`): one quantity q (v, d or the span residual r) in one step is replaced by
  q + strength rms(q) noise, the same noise in both branches, since guidance would multiply the difference of two;
  I = rms(change of the final latents) / rms(final latents) / strength;
- the time of a step of each granularity, from schedules that take turns.

Then plans made from all this are run, each with several dampings in extrapolation: a cached step moves the latents, the
model answers, and an extrapolation carries the answer on, which no plain trajectory shows. The damping with the best
clips goes into the profile, and what was foretold of these clips against their PSNR gives its `psnr_at_one`.

Everything is kept in one file beside the result after every clip, and a run that was cut off goes on from there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from mixcache.calibration.config import CALIBRATION_SEED, CalibrationConfig
from mixcache.calibration.tasks import Calibration
from mixcache.planning.profiles import Profile
from mixcache.zoo import world

__all__ = ["CALIBRATION_SEED", "Calibration", "CalibrationConfig", "built_in_prompts", "calibrate"]


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
    """The profile of a pipeline's transformer, or of both its experts, written to `out` if given.

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
