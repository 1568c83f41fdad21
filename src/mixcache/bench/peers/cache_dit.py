"""DBCache of cache-dit (github.com/vipshop/cache-dit): alone, with its TaylorSeer calibrator, and under step masks."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from functools import partial
from importlib import metadata
from importlib.util import find_spec
from typing import Any

from mixcache.attachment import experts_of
from mixcache.bench.methods import MANY_STEPS, Account, Case, Method
from mixcache.bench.peers.extras import imported
from mixcache.bench.peers.leftovers import quiet, restored

PACKAGE = "cache-dit"
LOGGERS = ("cache_dit", "CACHE_DIT")


@contextlib.contextmanager
def enabled(options: dict[str, Any], taylor_order: int, case: Case) -> Iterator[Account]:
    """The pipeline uses DBCache with those options, and a calibrator unless the order is 0."""
    cache_dit = imported("cache_dit", PACKAGE)
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


def db_caches(num_steps: int) -> list[Method]:
    """The first block tells whether the rest may be skipped."""
    many = ((4, 1, 0.02), (4, 2, 0.02), (4, 2, 0.03), (4, 2, 0.06), (4, 3, 0.06), (4, 5, 0.12))
    few = ((2, 1, 0.03), (2, 2, 0.04), (2, 2, 0.06), (2, 2, 0.12), (2, 3, 0.12), (2, 4, 0.12))
    return [_db_cache("db-cache", *options) for options in (many if num_steps > MANY_STEPS else few)]


def db_caches_taylorseer(num_steps: int) -> list[Method]:
    """The rest is forecast rather than reused (TaylorSeer, arXiv 2503.06923)."""
    many = ((4, 1, 0.02, 1), (4, 1, 0.04, 1), (4, 2, 0.06, 2), (4, 3, 0.06, 2), (4, 4, 0.08, 2), (4, 5, 0.12, 2))
    few = ((4, 1, 0.03, 1), (4, 1, 0.06, 1), (4, 1, 0.12, 1), (2, 2, 0.06, 1), (4, 3, 0.3, 1))
    return [_db_cache("db-cache-taylorseer", *options) for options in (many if num_steps > MANY_STEPS else few)]


def db_caches_mask(num_steps: int) -> list[Method]:
    """A mask fixed beforehand tells which steps to compute: first and last ones, and one between runs of cached ones.

    Better at the same work than the presets of `cache_dit.steps_mask`, which leave long runs to the end. Forecast
    where there are many steps, reused where there are few.
    """
    many = ((5, 1, 3, 2), (6, 2, 3, 2), (5, 3, 3, 2), (4, 4, 4, 2), (4, 5, 4, 1))
    few = ((5, 1, 3, 0), (3, 1, 1, 0), (3, 2, 3, 0), (3, 2, 1, 0), (2, 3, 3, 0), (2, 3, 1, 0))
    return [_masked(num_steps, *options) for options in (many if num_steps > MANY_STEPS else few)]


def _db_cache(
    family: str, num_warmup_steps: int, num_cached_in_a_row: int, threshold: float, taylor_order: int = 0
) -> Method:
    options = {
        "Fn_compute_blocks": 1,
        "Bn_compute_blocks": 0,
        "max_warmup_steps": num_warmup_steps,
        "max_continuous_cached_steps": num_cached_in_a_row,
        "residual_diff_threshold": threshold,
    }
    setting = f"F1B0_W{num_warmup_steps}MC{num_cached_in_a_row}_R{threshold:g}{_order_word(taylor_order)}"
    return _method(family, setting, options, taylor_order)


def _masked(
    num_steps: int, num_first_steps: int, num_cached_in_a_row: int, num_last_steps: int, taylor_order: int
) -> Method:
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
