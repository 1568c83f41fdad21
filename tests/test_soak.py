"""A long service: prompts, sizes, numbers of steps and policies change, a run in ten breaks off, and nothing grows."""

from __future__ import annotations

import gc
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

import mixcache

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

SHORT: dict[str, Any] = {"num_warmup_steps": 1, "num_cooldown_steps": 0}
POLICIES: tuple[tuple[str, dict[str, Any]], ...] = (
    ("always_compute", {}),
    ("every_nth", {"granularities": "step", "corrector": True, "period": 2, **SHORT}),
    ("every_nth", {"granularities": "cfg", "period": 2, **SHORT}),
    ("every_nth", {"granularities": "block", "period": 2, **SHORT}),
    ("mixcache", {"delta_1": 1e3, "delta_2": 1e3, **SHORT}),
    ("hindsight", {"error": 1e3, "max_cached_run": 2, **SHORT}),
)
PROMPTS = ("a small red circle moving left", "a big blue square moving right", "nothing")
WIDTHS, NUM_STEPS = (16, 32), (4, 6, 9)
NUM_GENERATIONS = 300
GROWTH_BYTES = 4 << 20
"""That the process may grow by in the second half of them, for the allocator's sake; none was seen."""


class Request(NamedTuple):
    policy: int
    """Place in POLICIES."""
    prompt: str
    width: int
    num_steps: int

    def generate(self, pipeline: Any, generate: Callable[..., torch.Tensor], **more: Any) -> torch.Tensor:
        return generate(pipeline, self.prompt, self.num_steps, width=self.width, **more)


def requests_in_turn() -> list[Request]:
    """Each policy serves for 25 requests and comes twice."""
    choose = random.Random(0)
    return [
        Request(place // 25 % len(POLICIES), choose.choice(PROMPTS), choose.choice(WIDTHS), choose.choice(NUM_STEPS))
        for place in range(NUM_GENERATIONS)
    ]


def num_live_tensors() -> int:
    gc.collect()
    return sum(issubclass(type(thing), torch.Tensor) for thing in gc.get_objects())


def resident_bytes() -> int:
    try:
        import psutil
    except ImportError:
        statm = Path("/proc/self/statm")
        if not statm.exists():
            pytest.skip("neither psutil nor /proc")
        return int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return psutil.Process().memory_info().rss


def breaks_off(error: type[BaseException]) -> Callable[..., dict[str, Any]]:
    def callback(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        if step == 2:
            raise error
        return {}

    return callback


def test_nothing_grows_and_no_clip_is_a_wrong_one(
    make_pipeline: Callable[..., Any], generate: Callable[..., torch.Tensor]
) -> None:
    served = requests_in_turn()
    fresh: dict[Request, torch.Tensor] = {}
    for request in set(served):
        policy, settings = POLICIES[request.policy]
        with mixcache.enable(pipeline := make_pipeline(), policy, **settings):
            fresh[request] = request.generate(pipeline, generate)

    pipeline, handle = make_pipeline(), None
    live: list[int] = []
    resident: list[int] = []
    for place, request in enumerate(served):
        if place % 25 == 0:
            if handle is not None:
                handle.disable()
            live.append(num_live_tensors())
            resident.append(resident_bytes())
            policy, settings = POLICIES[request.policy]
            handle = mixcache.enable(pipeline, policy, **settings)
        if place % 10 == 5:
            error = KeyboardInterrupt if place % 20 == 5 else ZeroDivisionError
            with pytest.raises(error):
                request.generate(pipeline, generate, callback_on_step_end=breaks_off(error))
        else:
            assert torch.equal(request.generate(pipeline, generate), fresh[request])
        assert handle.summary()["held_bytes"] == 0
        if place % 25 == 24:
            live.append(num_live_tensors())
    handle.disable()
    before, during = [live[0], *live[2::2]], live[1::2]
    live.append(num_live_tensors())
    assert live[-1] == before[1]
    assert len(set(before[1:])) == 1  # the first run makes what stays
    assert max(during[len(POLICIES) :]) <= max(during[: len(POLICIES)])
    assert resident_bytes() - resident[len(resident) // 2] <= GROWTH_BYTES
