"""DBCache of cache-dit (github.com/vipshop/cache-dit): alone, with its TaylorSeer calibrator, and under step masks."""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Iterator
from functools import partial
from importlib import metadata
from importlib.util import find_spec
from typing import Any

from mixcache.bench.methods import Account, Case, Method
from mixcache.bench.peers.leftovers import quiet, restored
from mixcache.hosts.diffusers.denoisers import experts_of

PACKAGE = "cache-dit"
LOGGERS = ("cache_dit", "CACHE_DIT")


class MissingExtraError(ValueError):
    """A peer's package is not installed."""

    def __init__(self, package: str) -> None:
        super().__init__(f"{package} is not installed; it comes with: pip install 'mixcache[bench]'")


def imported() -> Any:
    """The package; MissingExtraError where it is not installed."""
    try:
        return importlib.import_module("cache_dit")
    except ModuleNotFoundError as error:
        if error.name != "cache_dit":
            raise
        raise MissingExtraError(PACKAGE) from error


@contextlib.contextmanager
def enabled(options: dict[str, Any], taylor_order: int, case: Case) -> Iterator[Account]:
    """The pipeline uses DBCache with those options, and a calibrator unless the order is 0."""
    cache_dit = imported()
    pipeline, num_steps = case.pipeline, case.arguments["num_inference_steps"]
    # The unconditional call follows the conditional one: two branches that skip different steps come out worse.
    config = cache_dit.DBCacheConfig(num_inference_steps=num_steps, cfg_diff_compute_separate=False, **options)
    calibrator = cache_dit.TaylorSeerCalibratorConfig(taylorseer_order=taylor_order) if taylor_order else None
    with quiet(*LOGGERS), contextlib.ExitStack() as stack:
        for transformer in experts_of(pipeline).values():
            stack.enter_context(restored(transformer))
        stack.callback(cache_dit.disable_cache, pipeline)
        cache_dit.enable_cache(pipeline, cache_config=config, calibrator_config=calibrator)
        yield dict


def db_cache(
    num_steps: int, num_warmup_steps: int, num_cached_in_a_row: int, threshold: float, taylor_order: int = 0
) -> Method:
    """The first block tells whether the rest may be skipped, or forecast by an order of TaylorSeer (arXiv
    2503.06923)."""
    options = {
        "Fn_compute_blocks": 1,
        "Bn_compute_blocks": 0,
        "max_warmup_steps": num_warmup_steps,
        "max_continuous_cached_steps": num_cached_in_a_row,
        "residual_diff_threshold": threshold,
    }
    setting = f"F1B0_W{num_warmup_steps}MC{num_cached_in_a_row}_R{threshold:g}{_order_word(taylor_order)}"
    return _method("db-cache-taylorseer" if taylor_order else "db-cache", setting, options, taylor_order)


def db_cache_mask(
    num_steps: int, num_first_steps: int, num_cached_in_a_row: int, num_last_steps: int, taylor_order: int
) -> Method:
    """A mask fixed beforehand tells which steps to compute: first and last ones, and one between runs of cached ones.

    Better at the same work than the presets of `cache_dit.steps_mask`, which leave long runs to the end.
    """
    period = num_cached_in_a_row + 1
    mask = [
        int(
            step < num_first_steps
            or (step - num_first_steps) % period == num_cached_in_a_row
            or step >= num_steps - num_last_steps
        )
        for step in range(num_steps)
    ]
    options = {
        "Fn_compute_blocks": 1,
        "Bn_compute_blocks": 0,
        "max_warmup_steps": num_first_steps,
        "steps_computation_mask": mask,
        "steps_computation_policy": "static",
    }
    setting = f"F1B0_SCM first {num_first_steps}, 1 of {period}, last {num_last_steps}{_order_word(taylor_order)}"
    return _method("db-cache-mask", setting, options, taylor_order)


def _order_word(taylor_order: int) -> str:
    return f"_T1O{taylor_order}" if taylor_order else ""


def _method(family: str, setting: str, options: dict[str, Any], taylor_order: int) -> Method:
    version = metadata.version(PACKAGE) if find_spec("cache_dit") else "(not installed)"
    return Method(
        family=family,
        setting=setting,
        attach=partial(enabled, options, taylor_order),
        origin=f"{PACKAGE} {version}",
        is_peer=True,
    )
