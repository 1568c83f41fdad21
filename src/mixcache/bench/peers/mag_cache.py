"""MagCache (arXiv 2506.09045) of diffusers, with the ratios that its own calibration mode measures on the model."""

from __future__ import annotations

import ast
import contextlib
import io
from typing import Any

import diffusers
import numpy as np

from mixcache.bench.methods import Case, Method
from mixcache.bench.peers.calibrated import calibrated, run_calibration_prompts
from mixcache.bench.peers.diffusers_caches import diffusers_method, enabled, words

FAMILY = "mag-cache"


def mag_cache(num_steps: int, threshold: float, max_skip_steps: int, retention_ratio: float) -> Method:
    """Steps are skipped while the residuals' measured change of magnitude adds up to less than a threshold."""

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
