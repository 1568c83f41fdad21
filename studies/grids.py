"""The settings of each peer that `studies.search` tries: what its documentation offers, on a grid."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import Any

from mixcache.bench.peers.peer import Options

TIMESTEPS = ([100, 800], [-1, 681], [-1, 950], [-1, 990])
"""First and last one in which attention may be skipped; the last range is nearly all of a shifted schedule."""
THRESHOLDS = (0.02, 0.03, 0.04, 0.06, 0.08, 0.12, 0.16, 0.24, 0.3)


def every(**axes: Sequence[Any]) -> list[Options]:
    """All settings that take one value of each axis."""
    return [dict(zip(axes, values, strict=True)) for values in product(*axes.values())]


GRIDS: dict[str, list[Options]] = {
    "first-block-cache": every(
        threshold=(0.015, 0.02, 0.025, 0.03, 0.035, 0.04, 0.05, 0.06, 0.08, 0.1, 0.12, 0.16, 0.2)
    ),
    "mag-cache": every(
        threshold=(0.01, 0.015, 0.02, 0.03, 0.04, 0.06, 0.09, 0.12, 0.24),
        max_skip_steps=(2, 3, 4),
        retention_ratio=(0.1, 0.2),
    ),
    "taylorseer": [
        *every(cache_interval=(2, 3, 4, 5, 6), max_order=(0, 1, 2), num_first_steps=(3, 4, 6), num_last_steps=(1, 3)),
        *every(cache_interval=(2,), max_order=(0, 1, 2), num_first_steps=(3, 12), num_last_steps=(5, 8, 16)),
        *every(cache_interval=(2,), max_order=(1, 2), num_first_steps=(12, 20), num_last_steps=(3,)),
        *every(cache_interval=(3, 5), max_order=(1, 2), num_first_steps=(4,), num_last_steps=(3,), is_lite=(False,)),
    ],
    "sea-cache": every(
        threshold=(0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.6, 0.8, 1.0),
        residual_order=(0, 1),
        max_consecutive_cached=(0, 2, 3),
        cache_end_steps=(1, 3),
    ),
    "pyramid-attention-broadcast": [
        *every(spatial=(2, 3, 4, 6), timesteps=TIMESTEPS),
        *every(cross=(2, 3, 6), timesteps=TIMESTEPS),
    ],
    "faster-cache": [
        {},
        *every(attention_only=(True,), weight=(0.0, 0.3), timesteps=TIMESTEPS),
        *every(
            timesteps=([-1, 1], [-1, 681]),
            unconditional_batch_skip_range=(2, 3, 5, 8),
            unconditional_batch_timestep_skip_range=([-1, 641], [-1, 900]),
        ),
    ],
    "db-cache": every(num_warmup_steps=(2, 4), num_cached_in_a_row=(1, 2, 3, 5), threshold=THRESHOLDS),
    "db-cache-taylorseer": every(
        num_warmup_steps=(2, 4), num_cached_in_a_row=(1, 2, 3, 4), threshold=THRESHOLDS[1:], taylor_order=(1, 2)
    ),
    "db-cache-mask": [
        *every(
            num_first_steps=(2, 4, 6),
            num_cached_in_a_row=(1, 2, 3, 4, 5),
            num_last_steps=(1, 3),
            taylor_order=(0, 1, 2),
        ),
        *every(num_first_steps=(4, 12), num_cached_in_a_row=(1,), num_last_steps=(5, 8, 16), taylor_order=(1, 2)),
        *every(num_first_steps=(12, 20), num_cached_in_a_row=(1,), num_last_steps=(3,), taylor_order=(1, 2)),
    ],
    "teacache": every(threshold=(0.03, 0.04, 0.05, 0.06, 0.07, 0.08, 0.1, 0.12, 0.15, 0.2, 0.25, 0.3)),
    # the paper's ret_steps are 10 of 50
    "easycache": every(threshold=(0.01, 0.015, 0.02, 0.03, 0.04, 0.05, 0.07, 0.1, 0.15, 0.2), share_first=(0.1, 0.2)),
    # the authors recommend w of 0.5 to 1
    "spectrum": every(window=(2, 3), flex=(0.0, 0.25, 0.75, 1.5, 3.0), weight=(0.5, 1.0), num_first_steps=(3, 5)),
}
"""By the name of the family."""
