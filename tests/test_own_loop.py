"""A host of one's own, without diffusers: a loop of thirty lines on the seam's public names alone.

The transformer of four blocks is arithmetic, so that the expected clip of each granularity is a reference of a few
lines.
"""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch

from mixcache import Bounded, EveryNth, Trace
from mixcache.core import CallInfo, End, Engine, Span
from mixcache.trace import TraceWriter

NUM_STEPS = 9
SIGMAS = [1 - step / NUM_STEPS for step in range(NUM_STEPS + 1)]
SCALE = 3.0
TEXTS = {"cond": 0.5, "uncond": -0.25}


def block(index: int, x: torch.Tensor, sigma: float) -> torch.Tensor:
    return x + torch.sin(x * (index + 1) + sigma) / 4


class Call:
    """How a call of the transformer is carried out."""

    def __init__(self, latents: torch.Tensor, text: float, sigma: float) -> None:
        self.latents, self._sigma = latents, sigma
        self._first = block(0, latents + text, sigma)

    def full(self, *, records: bool) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
        after = block(2, block(1, self._first, self._sigma), self._sigma)
        return block(3, after, self._sigma), (after - self._first,) if records else ()

    def without_span(self, residuals: tuple[torch.Tensor, ...]) -> torch.Tensor:
        return block(3, self._first + residuals[0], self._sigma)

    def conditional(self) -> None:
        return None


class Euler:
    """A solver that can go back."""

    def __init__(self) -> None:
        self.step = 0

    def state(self) -> int:
        return self.step

    def restore(self, state: int) -> None:
        self.step = state

    def advance(self, output: torch.Tensor, timestep: Any, sample: torch.Tensor) -> torch.Tensor:
        self.step += 1
        return sample + (SIGMAS[self.step] - SIGMAS[self.step - 1]) * output


def noise() -> torch.Tensor:
    return torch.randn(2, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def denoised(policy: EveryNth) -> tuple[torch.Tensor, Trace]:
    """The loop, as a user writes it."""
    latents, trace, solver = noise(), Trace(num_blocks=4), Euler()
    bounded = Bounded(policy=policy, num_warmup_steps=1, num_cooldown_steps=1)
    engine = Engine(bounded, Span(1, 3, 4), lambda: SCALE, TraceWriter(trace))
    for step, sigma in enumerate(SIGMAS[:-1]):
        outputs = {}
        for branch, text in TEXTS.items():
            info = CallInfo(branch=branch, step=step, num_steps=NUM_STEPS, sigma=sigma, signature=(latents.shape,))
            outputs[branch] = engine.call(info, Call(latents, text, sigma))
        output = torch.lerp(outputs["uncond"], outputs["cond"], SCALE)
        output, latents = engine.solve(solver, output, sigma, latents)
        latents = solver.advance(output, sigma, latents)
        engine.solved(latents)
    engine.end(End.DONE)
    assert engine.held_bytes == 0
    return latents, trace


def reference(granularities: list[str]) -> torch.Tensor:
    """The definition of each granularity of order 0, without the engine."""
    latents, last, difference, residuals = noise(), {}, torch.zeros(()), {}
    for step, (granularity, sigma) in enumerate(zip(granularities, SIGMAS, strict=False)):
        outputs = {}
        for branch, text in TEXTS.items():
            call = Call(latents, text, sigma)
            if granularity == "step":
                outputs[branch] = last[branch]
            elif granularity == "block":
                outputs[branch] = call.without_span(residuals[branch])
            elif granularity == "cfg" and branch == "uncond":
                outputs[branch] = outputs["cond"] + difference
            else:
                outputs[branch], residual = call.full(records=True)
                if granularity == "compute":
                    last[branch], residuals[branch] = outputs[branch], residual
        if granularity == "compute":
            difference = outputs["uncond"] - outputs["cond"]
        velocity = torch.lerp(outputs["uncond"], outputs["cond"], SCALE)
        latents = latents + (SIGMAS[step + 1] - sigma) * velocity
    return latents


PLAIN = reference(["compute"] * NUM_STEPS)


@pytest.mark.parametrize("granularity", ["step", "cfg", "block"])
def test_each_granularity_does_what_it_says(granularity: str) -> None:
    latents, trace = denoised(EveryNth(granularities=granularity, period=2))
    chosen = [entry.granularity.value for entry in trace]
    assert chosen.count(granularity) == 3
    torch.testing.assert_close(latents, reference(chosen), rtol=1e-6, atol=1e-6)
    assert trace.computed_share() == pytest.approx({"step": 6, "cfg": 7.5, "block": 7.5}[granularity] / 9)


def test_what_is_computed_is_bit_identical() -> None:
    assert torch.equal(denoised(EveryNth(period=1))[0], PLAIN)


def test_corrected_steps_come_nearer_to_the_plain_clip() -> None:
    apart = {
        (period, corrector): float((denoised(EveryNth(period=period, corrector=corrector))[0] - PLAIN).norm())
        for period, corrector in itertools.product((2, 3), (False, True))
    }
    assert apart[2, True] < 0.7 * apart[2, False]
    assert apart[3, True] < apart[3, False]
    _, trace = denoised(EveryNth(period=2, corrector=True))
    assert sum(entry.num_corrected for entry in trace) == 3
