"""Two requests on one transformer, each with a pipeline of its own and all that has a state in it: at the same time in
threads, and step by step in turn. Each clip is the one that is made alone."""

from __future__ import annotations

import copy
import functools
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from conformance import cogvideox, wan

import mixcache

pytestmark = pytest.mark.filterwarnings("ignore")

MODELS = {
    "wan": next(variant for variant in wan.VARIANTS if variant.name == "wan-t2v"),
    "cogvideox": next(variant for variant in cogvideox.VARIANTS if variant.name == "cogvideox-t2v-ddim"),
}
SHORT: dict[str, Any] = {"num_warmup_steps": 1, "num_cooldown_steps": 0}
"""For loops of 8 steps."""
POLICIES: dict[str, dict[str, Any]] = {
    "always_compute": {},
    "every_nth": {"period": 2, "granularities": "step", **SHORT},
    "every_nth, corrected": {"period": 2, "granularities": "step", "corrector": True, **SHORT},
    "every_nth, cfg": {"period": 2, "granularities": "cfg", **SHORT},
    "every_nth, block": {"period": 2, "granularities": "block", **SHORT},
    "mixcache": {"delta_1": 1e3, "delta_2": 1e3, **SHORT},
    "hindsight": {"error": 1e3, "max_cached_run": 2, **SHORT},
    "hold": {"error": 1e3, **SHORT},
    "replay": {},
}
QUICK = ("every_nth, corrected", "mixcache", "hindsight")


def of_policies(names: tuple[str, ...] = QUICK) -> pytest.MarkDecorator:
    """Runs a test under all policies; but for these only where slow tests are asked for."""
    chosen = [pytest.param(name, marks=[] if name in names else [pytest.mark.slow]) for name in POLICIES]
    return pytest.mark.parametrize("policy", chosen)


class Pair:
    """Two pipelines that share their models; the cache is switched on on the first.

    Each has a tokenizer of its own: how it pads is a state of it, which CogVideoX changes in each call.
    """

    def __init__(self, model: str) -> None:
        self.variant = MODELS[model]
        first = self.variant.build()
        own = {name: copy.deepcopy(getattr(first, name)) for name in ("scheduler", "tokenizer")}
        second = type(first)(**first.components | own)
        second.set_progress_bar_config(disable=True)
        self.pipelines = first, second

    def clip(self, me: int, **more: Any) -> torch.Tensor:
        generator = torch.Generator().manual_seed(me)
        return self.variant.output(self.pipelines[me](generator=generator, **self.variant.arguments() | more))

    def enable(self, policy: str) -> mixcache.Handle:
        settings = dict(POLICIES[policy])
        if policy == "replay":
            settings["trace"] = self.trace
        return mixcache.enable(self.pipelines[0], policy.partition(",")[0], **settings)

    @functools.cached_property
    def trace(self) -> Any:
        with self.enable("every_nth") as handle:
            self.clip(0)
        return handle.trace


@pytest.fixture(scope="module", params=MODELS)
def pair(request: pytest.FixtureRequest) -> Pair:
    return Pair(request.param)


@pytest.fixture(scope="module")
def plain(pair: Pair) -> list[torch.Tensor]:
    return [pair.clip(me) for me in (0, 1)]


def at_once(serve: Callable[[int], None]) -> None:
    """Both in threads; what one of them raises is raised."""
    errors: list[BaseException] = []

    def guarded(me: int) -> None:
        try:
            serve(me)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=guarded, args=(me,), daemon=True) for me in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=120)
    assert not errors, errors
    assert not any(thread.is_alive() for thread in threads)


@pytest.mark.parametrize("num_rounds", [3, pytest.param(20, marks=pytest.mark.slow)])
@of_policies()
def test_clips_made_at_once_are_those_made_alone(
    pair: Pair, plain: list[torch.Tensor], policy: str, num_rounds: int
) -> None:
    with pair.enable(policy) as handle:
        alone = [pair.clip(me) for me in (0, 1)]
        for _ in range(num_rounds):
            clips: dict[int, torch.Tensor] = {}
            start = threading.Barrier(2)

            def serve(me: int, clips: dict[int, torch.Tensor] = clips, start: threading.Barrier = start) -> None:
                start.wait(timeout=60)
                clips[me] = pair.clip(me)

            at_once(serve)
            for me in (0, 1):
                assert torch.equal(clips[me], alone[me])
        summary = handle.summary()
    assert (summary["num_calls_in_full"], summary["held_bytes"]) == (0, 0)
    assert summary["num_steps"] == (2 + 2 * num_rounds) * pair.variant.num_steps
    assert all(torch.equal(a, b) for a, b in zip(alone, plain, strict=True)) == (policy == "always_compute")


@of_policies()
def test_clips_made_step_by_step_in_turn_are_those_made_alone(pair: Pair, policy: str) -> None:
    """No race decides here who comes when: a step of one, a step of the other, one of them a step ahead."""
    with pair.enable(policy) as handle:
        alone = [pair.clip(me) for me in (0, 1)]
        turns = threading.Semaphore(0), threading.Semaphore(1)
        clips: dict[int, torch.Tensor] = {}
        order: list[int] = []

        def wait(me: int) -> None:
            assert turns[me].acquire(timeout=60)

        def serve(me: int) -> None:
            def next_turn(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
                order.append(me)
                turns[1 - me].release()
                wait(me)
                return {}

            wait(me)
            try:
                clips[me] = pair.clip(me, callback_on_step_end=next_turn)
            finally:
                for turn in turns:
                    turn.release(100)

        at_once(serve)
        summary = handle.summary()
    for me in (0, 1):
        assert torch.equal(clips[me], alone[me])
    assert order[: 2 * pair.variant.num_steps - 1] == [1, 0] * (pair.variant.num_steps - 1) + [1]
    assert (summary["num_calls_in_full"], summary["held_bytes"]) == (0, 0)
