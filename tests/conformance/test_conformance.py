"""Every row of MODELS on the real pipeline classes, built tiny: what is computed is bit-identical, what is left out is
what the definition says, and nothing stays over."""

from __future__ import annotations

import functools
import itertools
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from conformance.variant import Variant
from conformance.variants import (
    AMPLIFIES,
    CACHED,
    IN_FULL,
    SAFE,
    SCHEDULE,
    UNCORRECTED,
    VARIANTS,
    Built,
    assert_equal,
    denoisers,
    generate,
    of_variants,
    recorded,
    steps_of,
)

import mixcache
from mixcache.core.calls import CallInfo, Span
from mixcache.decision import Granularity
from mixcache.hosts.diffusers.overlay import put_on, take_off
from mixcache.hosts.diffusers.rows import row_for
from mixcache.hosts.diffusers.scheduler import is_repeatable
from mixcache.trace import TraceEntry

pytestmark = pytest.mark.filterwarnings("ignore")


# ------------------------------------------------------------------------------------------------------- what is same


@of_variants(SAFE)
def test_what_is_computed_is_bit_identical(variant: Variant, pipeline: Any, plain: Any) -> None:
    with mixcache.enable(pipeline, "always_compute") as handle:
        assert_equal(generate(variant, pipeline), plain)
        assert (handle.summary()["num_calls_in_full"] > 0) == (variant.name in IN_FULL)
    with mixcache.enable(pipeline, "every_nth", granularities="block", num_warmup_steps=1000) as handle:
        assert_equal(generate(variant, pipeline), plain)
    assert_equal(generate(variant, pipeline), plain)


# ---------------------------------------------------------------------------------------------------- what is left out


def expected_work(
    variant: Variant, plain_work: list[list[int]], entries: list[TraceEntry], span: Span
) -> list[list[int]]:
    """The blocks that ought to run in every call that is not left out, by the definition of each granularity."""
    expected = []
    pending = iter(plain_work)
    for calls, entry in zip(steps_of(variant), entries, strict=True):
        for branches in calls:
            blocks = next(pending)
            if entry.granularity is Granularity.BLOCK:
                blocks = [b for b in blocks if not span.first <= b < span.end]
            if entry.granularity is Granularity.STEP:
                continue
            if entry.granularity is Granularity.CFG and branches == ("uncond",):
                continue
            expected.append(blocks)
    return expected


def largest_difference(one: tuple[Any, ...], other: tuple[Any, ...]) -> float:
    pairs = ((torch.as_tensor(a).float(), torch.as_tensor(b).float()) for a, b in zip(one, other, strict=True))
    return max(float((a - b).abs().max()) for a, b in pairs)


class Reference:
    """The definition of `step` and `cfg` of order 0, written out for a known list of calls.

    Where the model predicts v, what is reused is the noise it sees less the signal.
    """

    def __init__(self, variant: Variant, granularities: list[Granularity], scheduler: Any) -> None:
        self.granularities, self.scheduler = granularities, scheduler
        self.pending = deque((step, branches) for step, calls in enumerate(steps_of(variant)) for branches in calls)
        self.last: dict[tuple[int, str], list[torch.Tensor]] = {}
        self.difference: list[torch.Tensor] = []
        self.now: dict[str, list[torch.Tensor]] = {}

    def from_v(self, v: torch.Tensor, latents: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        cumulated = self.scheduler.alphas_cumprod[int(timestep.max())]
        noisy = latents[tuple(slice(size) for size in v.shape)]
        signal = cumulated.sqrt() * noisy - (1 - cumulated).sqrt() * v
        return (1 - cumulated).sqrt() * noisy + cumulated.sqrt() * v - signal

    def to_v(self, velocity: torch.Tensor, latents: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        cumulated = self.scheduler.alphas_cumprod[int(timestep.max())]
        noisy = latents[tuple(slice(size) for size in velocity.shape)]
        # of noisy = sqrt(c) signal + sqrt(1 - c) noise, and velocity = noise - signal
        signal = (noisy - (1 - cumulated).sqrt() * velocity) / (cumulated.sqrt() + (1 - cumulated).sqrt())
        return cumulated.sqrt() * (signal + velocity) - (1 - cumulated).sqrt() * signal

    def call(self, expert: int, compute: Callable[[], Any], latents: Any, timestep: Any) -> Any:
        step, branches = self.pending.popleft()
        granularity = self.granularities[step]
        output = compute()
        leaves, spec = torch.utils._pytree.tree_flatten(output)
        places = [i for i, leaf in enumerate(leaves) if isinstance(leaf, torch.Tensor)]
        predicts_v = self.scheduler.config.get("prediction_type") == "v_prediction"
        if predicts_v:
            leaves = [self.from_v(leaf, latents, timestep) if i in places else leaf for i, leaf in enumerate(leaves)]
        values = {
            branch: [leaves[i].chunk(len(branches))[k] if len(branches) > 1 else leaves[i] for i in places]
            for k, branch in enumerate(branches)
        }
        if granularity is Granularity.STEP:
            values = {branch: self.last[expert, branch] for branch in branches}
        elif granularity is Granularity.CFG:
            cond = values["cond"] if "cond" in values else self.now["cond"]
            if "uncond" in values:
                values["uncond"] = [c + d for c, d in zip(cond, self.difference, strict=True)]
            self.last[expert, "cond"] = cond
            self.last[expert, "uncond"] = values.get("uncond", [])
        elif granularity is Granularity.COMPUTE:
            for branch in branches:
                self.last[expert, branch] = values[branch]
            cond = values["cond"] if "cond" in values else self.now.get("cond")
            if "uncond" in values and cond is not None:
                self.difference = [u - c for u, c in zip(values["uncond"], cond, strict=True)]
        if "cond" in values:
            self.now["cond"] = values["cond"]
        for k, i in enumerate(places):
            pieces = [values[branch][k] for branch in branches]
            leaves[i] = torch.cat(pieces) if len(pieces) > 1 else pieces[0].clone()
        if predicts_v:
            leaves = [self.to_v(leaf, latents, timestep) if i in places else leaf for i, leaf in enumerate(leaves)]
        return torch.utils._pytree.tree_unflatten(leaves, spec)


def generate_by_reference(variant: Variant, pipeline: Any, granularities: list[Granularity]) -> Any:
    reference = Reference(variant, granularities, pipeline.scheduler)
    modules = denoisers(pipeline)
    for expert, module in enumerate(modules):
        inner = module.forward

        module.forward = functools.wraps(inner)(
            lambda *args, _expert=expert, _inner=inner, **kwargs: reference.call(
                _expert,
                lambda: _inner(*args, **kwargs),
                *(args[:2] if len(args) > 1 else (kwargs.get("hidden_states"), kwargs.get("timestep"))),
            )
        )
    try:
        return generate(variant, pipeline)
    finally:
        for module in modules:
            del module.forward


@of_variants(CACHED)
@pytest.mark.parametrize("granularity", ["step", "cfg"])
def test_what_is_left_out_is_what_the_definition_says(
    variant: Variant, pipeline: Any, plain: Any, built: Built, granularity: str
) -> None:
    row = row_for(denoisers(pipeline)[0], pipeline)
    if granularity not in row.granularities:
        pytest.skip(f"the row allows {', '.join(row.granularities)}")
    if granularity == "cfg" and not any("uncond" in branches for calls in steps_of(variant) for branches in calls):
        pytest.skip("one branch")
    with (
        recorded(pipeline) as work,
        mixcache.enable(pipeline, "every_nth", granularities=granularity, **SCHEDULE) as handle,
    ):
        cached = generate(variant, pipeline)
    entries = list(handle.trace)
    chosen = [entry.granularity for entry in entries]
    assert len(entries) == len(steps_of(variant))
    assert chosen.count(Granularity(granularity)) >= 2, chosen
    assert work == expected_work(variant, built.work, entries, handle.engine.span)
    expected = generate_by_reference(variant, pipeline, chosen)
    for a, b in zip(cached, expected, strict=True):
        atol = AMPLIFIES.get(variant.name, 1e-4)
        torch.testing.assert_close(torch.as_tensor(a), torch.as_tensor(b), rtol=1e-3, atol=atol)
    # nothing left out would leave the plain clip
    assert largest_difference(cached, expected) <= 0.05 * largest_difference(cached, plain)


@of_variants(CACHED)
def test_block_runs_are_left_out(variant: Variant, pipeline: Any, built: Built) -> None:
    row = row_for(denoisers(pipeline)[0], pipeline)
    if "block" not in row.granularities:
        pytest.skip(f"the row allows {', '.join(row.granularities)}")
    with (
        recorded(pipeline) as work,
        mixcache.enable(pipeline, "every_nth", granularities="block", **SCHEDULE) as handle,
    ):
        generate(variant, pipeline)
    entries = list(handle.trace)
    assert [entry.granularity for entry in entries].count(Granularity.BLOCK) >= 2
    assert handle.engine.span.num_skipped > 0
    assert work == expected_work(variant, built.work, entries, handle.engine.span)


@of_variants(CACHED)
def test_a_span_left_out_at_identical_inputs_gives_the_computed_output(variant: Variant, pipeline: Any) -> None:
    row = row_for(denoisers(pipeline)[0], pipeline)
    if "block" not in row.granularities:
        pytest.skip(f"the row allows {', '.join(row.granularities)}")
    chosen = iter([step % 3 == 0 for step, calls in enumerate(steps_of(variant)) for _ in calls])
    with mixcache.enable(pipeline, "every_nth", granularities="block", num_warmup_steps=1, period=9) as handle:
        repeated = [(denoiser.transformer, CallsRepeated(denoiser, chosen)) for denoiser in handle.denoisers]
        for transformer, hook in repeated:
            put_on(transformer, hook)
        try:
            generate(variant, pipeline)
        finally:
            for transformer, hook in repeated:
                take_off(transformer, hook)
    assert all(hook.num_repeated for _, hook in repeated)
    assert next(chosen, None) is None


class CallsRepeated:
    """Makes each call of every third step three times, as steps of a trajectory of its own: computed, and with the span
    left out; all must agree. The other calls are not ours. Stands outside of our hooks; `chosen` tells of all calls of
    the pipeline, one after another, which are repeated."""

    covers = ("__call__",)

    def __init__(self, denoiser: Any, chosen: Iterator[bool]) -> None:
        self.denoiser, self.chosen, self.num_repeated = denoiser, chosen, 0

    def call(self, module: Any, inner: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if not next(self.chosen):
            return module.forward(*args, **kwargs)
        self.num_repeated += 1
        reader, engine, outputs = self.denoiser.reader, self.denoiser.engine, []
        for step in range(3):
            reader.read = lambda *_, step=step: CallInfo(
                branch="cond", step=step, num_steps=9, sigma=1 - step / 9, signature=((1,),)
            )
            outputs.append(inner(*args, **kwargs))
        assert engine._record.decision.granularity is Granularity.BLOCK
        for a, b in zip(*(torch.utils._pytree.tree_leaves(o) for o in (outputs[0], outputs[2])), strict=True):
            if isinstance(a, torch.Tensor):
                torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
        return outputs[0]


def num_between(entries: list[TraceEntry]) -> int:
    """Cached steps between two computed ones of the same denoiser in the same trajectory."""
    found = 0
    for _, trajectory in itertools.groupby(entries, key=lambda entry: (entry.generation, entry.num_steps)):
        num_cached, begun = 0, False
        for entry in trajectory:
            if entry.granularity is Granularity.COMPUTE:
                found, num_cached, begun = found + num_cached * begun, 0, True
            else:
                num_cached += 1
    return found


@of_variants(CACHED)
def test_cached_steps_are_corrected(
    variant: Variant, pipeline: Any, plain: Any, record_property: Callable[[str, object], None]
) -> None:
    with mixcache.enable(pipeline, "every_nth", granularities="step", corrector=True, **SCHEDULE) as handle:
        corrected = generate(variant, pipeline)
    scheduler = getattr(pipeline, "scheduler", None)
    reason = UNCORRECTED.get(variant.name, "") if is_repeatable(scheduler) else type(scheduler).__name__
    record_property("corrected", f"no: {reason}" if reason else "yes")
    assert all(bool(torch.as_tensor(part).isfinite().all()) for part in corrected)
    assert handle.summary()["num_corrected"] == (0 if reason else num_between(list(handle.trace)))
    assert_equal(generate(variant, pipeline), plain)


@of_variants([name for name in VARIANTS if name not in SAFE])
def test_what_is_unsafe_is_refused_with_the_reason(
    variant: Variant, record_property: Callable[[str, object], None]
) -> None:
    pipeline = variant.build()
    row = row_for(denoisers(pipeline)[0], pipeline)
    record_property("pipeline", type(pipeline).__name__)
    record_property("refused", row.unsafe)
    with pytest.raises(TypeError, match=f"{type(pipeline).__name__} cannot be cached: {row.unsafe}"):
        mixcache.enable(pipeline)


# ----------------------------------------------------------------------------------------------- one after another


@of_variants(SAFE, every=5)
def test_one_run_leaves_nothing_for_the_next(variant: Variant, pipeline: Any) -> None:
    settings = {"granularities": "step", **SCHEDULE}
    with mixcache.enable(pipeline, "every_nth", **settings):
        fresh = generate(variant, pipeline)
    with mixcache.enable(pipeline, "every_nth", **settings):
        fresh_other = generate(variant, pipeline, other=True)
        assert_equal(generate(variant, pipeline), fresh)
        assert_equal(generate(variant, pipeline, other=True), fresh_other)
        break_off(variant, pipeline)
        assert_equal(generate(variant, pipeline), fresh)


@of_variants([name for name in CACHED if "two-experts" in name])
def test_a_trace_of_two_experts_replays_to_the_same_bits(variant: Variant, pipeline: Any) -> None:
    with mixcache.enable(pipeline, "every_nth", granularities="step", **SCHEDULE) as handle:
        expected = generate(variant, pipeline)
    assert [entry.step for entry in handle.trace] == list(range(variant.num_steps))
    with mixcache.enable(pipeline, "replay", trace=handle.trace) as replayed:
        assert_equal(generate(variant, pipeline), expected)
    assert [e.granularity for e in replayed.trace] == [e.granularity for e in handle.trace]


def break_off(variant: Variant, pipeline: Any) -> None:
    """A run that ends in an exception between two calls, in the middle of the loop."""
    transformer = denoisers(pipeline)[0]
    inner, num_left = transformer.forward, 4

    @functools.wraps(inner)
    def forward(*args: Any, **kwargs: Any) -> Any:
        nonlocal num_left
        num_left -= 1
        if not num_left:
            raise ZeroDivisionError
        return inner(*args, **kwargs)

    transformer.forward = forward
    try:
        with pytest.raises(ZeroDivisionError):
            generate(variant, pipeline)
    finally:
        transformer.forward = inner
