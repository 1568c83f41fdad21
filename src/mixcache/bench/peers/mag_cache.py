"""MagCache (arXiv 2506.09045) of diffusers, with the ratios that its own calibration mode measures on the model."""

from __future__ import annotations

import ast
import contextlib
import io
from typing import Any

import diffusers
import numpy as np

from mixcache.bench.methods import MANY_STEPS, Case, Method
from mixcache.bench.peers.calibrated import calibrated, run_calibration_prompts
from mixcache.bench.peers.diffusers_caches import diffusers_method, enabled, words

FAMILY = "mag-cache"


def mag_caches(num_steps: int) -> list[Method]:
    """The first tenth of the steps is computed; longer runs of skipped steps for the higher thresholds."""
    many = ((0.01, 2), (0.02, 2), (0.04, 2), (0.06, 3), (0.09, 4), (0.12, 4))
    few = ((0.015, 2), (0.02, 2), (0.04, 2), (0.06, 2), (0.12, 4), (0.24, 4))
    return [_mag_cache(threshold, in_a_row, 0.1) for threshold, in_a_row in (many if num_steps > MANY_STEPS else few)]


def _mag_cache(threshold: float, max_skip_steps: int, retention_ratio: float) -> Method:
    def make_config(case: Case) -> Any:
        return diffusers.MagCacheConfig(
            threshold=threshold,
            max_skip_steps=max_skip_steps,
            retention_ratio=retention_ratio,
            num_inference_steps=case.arguments["num_inference_steps"],
            mag_ratios=calibrated(FAMILY, case, magnitude_ratios),
        )

    setting = words(threshold=threshold, max_skip_steps=max_skip_steps, retention_ratio=retention_ratio)
    return diffusers_method(FAMILY, setting, make_config, is_calibrated=True)


def magnitude_ratios(case: Case) -> list[float]:
    """Of each step, the mean over the calibration prompts, conditional and unconditional calls alike: diffusers takes
    one list for both."""
    num_steps = case.arguments["num_inference_steps"]

    def calibrating(case: Case) -> Any:
        return diffusers.MagCacheConfig(calibrate=True, num_inference_steps=num_steps)

    printed = io.StringIO()
    with enabled(calibrating, case), contextlib.redirect_stdout(printed):
        run_calibration_prompts(case)
    lists = [ast.literal_eval(line) for line in printed.getvalue().splitlines() if line.startswith("[1.0")]
    return [float(ratio) for ratio in np.mean(lists, axis=0)]
