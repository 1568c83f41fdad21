"""No clip is ever a wrong one, on the real pipeline classes: with the default policy and with cached steps corrected.

What a cached clip is held against here is known without a second implementation: a model whose answer stays the same,
the same run with its tensors spoilt, the same run alone, the plain clip of a copy.
"""

from __future__ import annotations

import copy
import functools
import inspect
import pickle
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from operator import attrgetter
from typing import Any

import pytest
import torch
from conformance.variant import Variant
from conformance.variants import (
    CACHED,
    SCHEDULE,
    UNCORRECTED,
    Built,
    assert_equal,
    denoisers,
    generate,
    of_variants,
    steps_of,
)

import mixcache
from mixcache.core.velocity import v_from_velocity, velocity_from_v
from mixcache.hosts.diffusers.levels import mixes_of
from mixcache.hosts.diffusers.overlay import hooks_on
from mixcache.hosts.diffusers.packing import first_tensor, named_arguments, signature_of
from mixcache.hosts.diffusers.rows import row_for
from mixcache.hosts.diffusers.scheduler import is_repeatable

Clip = tuple[torch.Tensor, ...]
Action = Callable[[int, torch.Tensor, torch.Tensor], None]
"""Gets the number of a step of the scheduler, and the output and the sample that it was given."""

POLICIES: dict[str, dict[str, Any]] = {
    # which in loops as short as these caches only where it is allowed nearly everything; the default never does where
    # a model of random weights gives another output at each step
    "hindsight": {
        "policy": "hindsight",
        "error": 1e3,
        "num_warmup_steps": 1,
        "num_cooldown_steps": 0,
        "max_cached_run": 2,
    },
    "corrected": {"policy": "every_nth", "granularities": "step", "corrector": True, **SCHEDULE},
}
UNCORRECTED_POLICY: dict[str, Any] = {"policy": "every_nth", "granularities": "step", **SCHEDULE}
FAST = (
    "wan-t2v",
    "hunyuan-video-true-cfg",
    "motif-apg",
    "helios-euler-no-guidance",
    "cogvideox-t2v-ddim",
    "ltx-t2v",
    "latte-ddim",
    "kandinsky5-t2v",
)
"""Of different families, and what they do for others as well: two calls and one, a guider with a memory, no guidance,
v-prediction, latents written to in place. All others are slow tests."""
CHANGES_ON_THE_WAY = dict.fromkeys(
    ("ltx2-i2v", "ltx2-condition", "ltx2-in-context"),
    "the scheduler is given no combination of the branches but what is made of them and the latents, which changes "
    "from step to step though the model does not; that is what is interpolated where a step is corrected",
)
"""Variants in which a model that stays the same gives the plain clip within 1e-2 only, where steps are corrected, and
why."""

pytestmark = pytest.mark.filterwarnings("ignore")
variants = of_variants(CACHED, fast=FAST)
policies = pytest.mark.parametrize("policy", POLICIES)


@pytest.fixture(scope="module")
def alone(built: Built, variant: Variant) -> Callable[[str], Clip]:
    """The clip of a policy, with nothing else going on."""

    @functools.cache
    def clip(policy: str) -> Clip:
        with mixcache.enable(built.pipeline, **POLICIES[policy]) as handle:
            made = generate(variant, built.pipeline)
        assert handle.trace.counts()["step"] >= 2, handle.summary()
        return made

    return clip


class Outside:
    """Stands in for `scheduler.step`, outside of whatever covers it, and does something after each step. A copy of the
    scheduler steps itself, and no more."""

    def __init__(self, scheduler: Any, action: Action) -> None:
        functools.update_wrapper(self, scheduler.step)  # pipelines look at its signature
        self.scheduler, self.action, self.num_steps = scheduler, action, 0

    def __call__(self, model_output: Any, timestep: Any, sample: Any, *args: Any, **kwargs: Any) -> Any:
        answer = type(self.scheduler).step(self.scheduler, model_output, timestep, sample, *args, **kwargs)
        self.num_steps += 1
        self.action(self.num_steps, model_output, sample)
        return answer

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        own = memo[id(self.scheduler)]
        return functools.partial(type(own).step, own)


@contextmanager
def after_each_step(pipeline: Any, action: Action) -> Iterator[Outside]:
    scheduler = getattr(pipeline, "scheduler", None)
    if not hasattr(scheduler, "step"):
        pytest.skip("no scheduler")
    scheduler.step = Outside(scheduler, action)
    try:
        yield scheduler.step
    finally:
        del scheduler.step


def in_mid_run(pipeline: Any, variant: Variant, action: Callable[[], Any]) -> Clip:
    """A clip with something done after its third step: by a callback, or where the pipeline takes none, or the variant
    has one of its own, after that of its scheduler."""
    arguments = variant.arguments()
    done: list[Any] = []

    def callback(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        if step == 2 and not done:
            done.append(action())
        return {}

    def after_step(number: int, *_: Any) -> None:
        if number == 3:
            stand_in = vars(pipeline.scheduler).pop("step")  # which whoever copies the scheduler is not to see
            try:
                done.append(action())
            finally:
                pipeline.scheduler.step = stand_in

    name = "callback_on_step_end"
    if name in inspect.signature(type(pipeline).__call__).parameters and name not in arguments:
        clip = generate(variant, pipeline, **{name: callback})
    else:
        with after_each_step(pipeline, after_step):
            clip = generate(variant, pipeline)
    assert done
    return clip


def assert_close(one: Clip, other: Clip, tolerance: float = 1e-3) -> None:
    for a, b in zip(as_tensors(one), as_tensors(other), strict=True):
        assert bool(a.isfinite().all())
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance * float(b.abs().max()))


def as_tensors(clip: Clip) -> list[torch.Tensor]:
    return [torch.as_tensor(part).double() for part in clip]


def is_equal(one: Clip, other: Clip) -> bool:
    return all(torch.equal(a, b) for a, b in zip(as_tensors(one), as_tensors(other), strict=True))


def distance(one: Clip, other: Clip) -> float:
    """Relative to `other`, in rms."""
    pairs = list(zip(as_tensors(one), as_tensors(other), strict=True))
    return (
        sum(float((a - b).square().sum()) for a, b in pairs) / sum(float(b.square().sum()) for _, b in pairs)
    ) ** 0.5


# ---------------------------------------------------------------------------------------- a model that stays the same


class SameAnswers:
    """A denoiser that gives each branch its very first answer, for the rest of the run; inside of our hooks. Where it
    predicts v, what stays the same is the velocity."""

    def __init__(self, variant: Variant, pipeline: Any, transformer: Any) -> None:
        self.pipeline, self.latents = pipeline, row_for(transformer, pipeline).latents
        self.num_calls = max(map(len, steps_of(variant)))
        self.inner, self.signature = transformer.forward, signature_of(transformer)
        self.answers: dict[Any, tuple[list[Any], Any]] = {}
        self.moment: Any = None
        self.place = 0

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        named = named_arguments(self.signature, args, kwargs)
        latents, timestep = first_tensor(named[self.latents]), named.get("timestep")
        moment = tuple(torch.as_tensor(timestep).flatten().tolist()) if timestep is not None else None
        # all calls of a step have one timestep, and each step is computed as a whole or not at all
        self.place = (self.place + 1) % self.num_calls if moment == self.moment else 0
        self.moment = moment
        mixes = mixes_of(self.pipeline.scheduler, [max(moment)]) if moment else []
        mix = mixes[0] if mixes else None
        key = (self.place, latents.shape)
        if key not in self.answers:
            leaves, form = torch.utils._pytree.tree_flatten(self.inner(*args, **kwargs))
            self.answers[key] = [self.kept(leaf, latents, mix) for leaf in leaves], form
        leaves, form = self.answers[key]
        return torch.utils._pytree.tree_unflatten([self.given(leaf, latents, mix) for leaf in leaves], form)

    def kept(self, leaf: Any, latents: torch.Tensor, mix: Any) -> Any:
        return velocity_from_v(leaf, latents, mix).clone() if isinstance(leaf, torch.Tensor) else leaf

    def given(self, leaf: Any, latents: torch.Tensor, mix: Any) -> Any:
        return v_from_velocity(leaf, latents, mix).clone() if isinstance(leaf, torch.Tensor) else leaf


@contextmanager
def same_answers(variant: Variant, pipeline: Any) -> Iterator[None]:
    with ExitStack() as stack:
        for transformer in denoisers(pipeline):
            model = SameAnswers(variant, pipeline, transformer)
            transformer.forward = functools.wraps(model.inner)(functools.partial(model.forward))
            stack.callback(vars(transformer).pop, "forward")
        yield


@variants
def test_a_model_that_stays_the_same_gives_the_plain_clip(variant: Variant, pipeline: Any) -> None:
    with same_answers(variant, pipeline):
        plain = generate(variant, pipeline)
    for policy in (*POLICIES.values(), UNCORRECTED_POLICY):
        with same_answers(variant, pipeline), mixcache.enable(pipeline, **policy) as handle:
            cached = generate(variant, pipeline)
        assert handle.trace.counts()["step"] >= 2
        is_rough = variant.name in CHANGES_ON_THE_WAY and policy is not UNCORRECTED_POLICY
        assert_close(cached, plain, 1e-2 if is_rough else 1e-3)


# --------------------------------------------------------------------------------------- guidance of another scale


@contextmanager
def scale_that_changes(pipeline: Any) -> Iterator[None]:
    """Takes turns of two guidance scales from step to step."""
    name = row_for(denoisers(pipeline)[0], pipeline).guidance
    if name is None:
        pytest.skip("no guidance scale")
    owner_name, _, attribute = name.rpartition(".")
    owner = attrgetter(owner_name)(pipeline) if owner_name else pipeline
    if not owner_name and not attribute.startswith("_"):
        attribute = f"_{attribute}"
    before = vars(owner).get(attribute)

    def change(number: int, *_: Any) -> None:
        scale = getattr(owner, attribute, None)
        if isinstance(scale, (int, float)) and scale > 1:
            setattr(owner, attribute, scale * 1.6 if number % 2 else scale / 1.6)

    with after_each_step(pipeline, change):
        try:
            yield
        finally:
            if owner_name:
                setattr(owner, attribute, before)


@variants
def test_guidance_that_changes_at_each_step_is_corrected_for_the_better(
    variant: Variant, pipeline: Any, plain: Clip
) -> None:
    if not is_repeatable(pipeline.scheduler) or variant.name in UNCORRECTED:
        pytest.skip("nothing is corrected")
    with scale_that_changes(pipeline):
        expected = generate(variant, pipeline)
    if is_equal(expected, plain):
        pytest.skip("the pipeline reads its scale once")
    with scale_that_changes(pipeline), mixcache.enable(pipeline, **UNCORRECTED_POLICY):
        uncorrected = distance(generate(variant, pipeline), expected)
    with scale_that_changes(pipeline), mixcache.enable(pipeline, **POLICIES["corrected"]):
        corrected = distance(generate(variant, pipeline), expected)
    assert corrected <= 1.1 * uncorrected


# ------------------------------------------------------------------------------------ tensors spoilt after their use


@variants
@policies
def test_what_a_pipeline_writes_to_after_a_step_is_not_what_is_kept(
    variant: Variant, pipeline: Any, plain: Clip, alone: Callable[[str], Clip], policy: str
) -> None:
    def spoil(which: set[str]) -> Action:
        def action(number: int, model_output: Any, sample: Any) -> None:
            for name, value in (("output", model_output), ("sample", sample)):
                if name in which:
                    value.fill_(7.0)

        return action

    harmless = set()
    for name in ("output", "sample"):
        with after_each_step(pipeline, spoil({name})) as outside:
            if is_equal(generate(variant, pipeline), plain) and outside.num_steps:
                harmless.add(name)
    with after_each_step(pipeline, spoil(harmless)):
        if not harmless or not is_equal(generate(variant, pipeline), plain):
            pytest.skip("the plain clip is another one")
    expected = alone(policy)
    with after_each_step(pipeline, spoil(harmless)), mixcache.enable(pipeline, **POLICIES[policy]):
        assert_equal(generate(variant, pipeline), expected)


# --------------------------------------------------------------------------------------------------- two runs in turn


def second_of(pipeline: Any) -> Any:
    """Another pipeline with the same models, whose scheduler and guiders are its own."""
    second = copy.copy(pipeline)
    for name in ("scheduler", "guider", "guider_2"):
        if getattr(pipeline, name, None) is not None:
            vars(second)[name] = copy.deepcopy(getattr(pipeline, name))
    return second


@variants
@policies
def test_a_run_in_the_middle_of_another_changes_neither(
    variant: Variant, pipeline: Any, alone: Callable[[str], Clip], policy: str
) -> None:
    second, within, expected_outer = second_of(pipeline), list[Clip](), alone(policy)
    plain = generate(variant, second, seed=1)
    with mixcache.enable(pipeline, **POLICIES[policy]) as handle:
        expected = generate(variant, second, seed=1)
        outer = in_mid_run(pipeline, variant, lambda: within.append(generate(variant, second, seed=1)))
    assert_equal(outer, expected_outer)
    assert_equal(within[0], expected)
    assert not is_equal(expected, plain)
    assert handle.summary()["num_steps"] == 3 * len(steps_of(variant))


# ------------------------------------------------------------------------------------------------------------- copies


@variants
@policies
def test_a_copy_of_an_enabled_pipeline_is_plain(
    variant: Variant, pipeline: Any, plain: Clip, alone: Callable[[str], Clip], policy: str
) -> None:
    own, expected = (type(pipeline), type(pipeline.scheduler)), alone(policy)
    schedulers: list[Any] = []

    def copies() -> None:
        schedulers.append(copy.copy(pipeline.scheduler))
        schedulers.append(copy.deepcopy(pipeline.scheduler))
        schedulers.append(pickle.loads(pickle.dumps(pipeline.scheduler)))

    with mixcache.enable(pipeline, **POLICIES[policy]):
        assert_equal(in_mid_run(pipeline, variant, copies), expected)
        deep, shallow = copy.deepcopy(pipeline), copy.copy(pipeline)
        for transformer, other in zip(denoisers(pipeline), denoisers(deep), strict=True):
            assert not {p.data_ptr() for p in transformer.parameters()} & {p.data_ptr() for p in other.parameters()}
        assert [type(one) for one in (deep, shallow)] == [own[0]] * 2
        assert {type(one) for one in schedulers} == {own[1]}
        assert not any(hooks_on(one) for one in (deep, shallow, *denoisers(deep), *schedulers))
        make_silent(deep, pipeline)
        assert_equal(generate(variant, deep), plain)
        with mixcache.enable(deep, **POLICIES[policy]):
            assert_equal(generate(variant, deep), expected)
        assert_equal(generate(variant, deep), plain)
        assert_equal(generate(variant, shallow), expected)  # shares the transformer
        assert_equal(generate(variant, pipeline), expected)
    for scheduler in schedulers:
        vars(deep)["scheduler"] = scheduler
        assert_equal(generate(variant, deep), plain)


def make_silent(deep: Any, pipeline: Any) -> None:
    if hasattr(deep, "set_progress_bar_config"):
        deep.set_progress_bar_config(disable=True)


# ------------------------------------------------------------------------------------------------- the end of a run


@variants
@policies
def test_the_end_of_a_run_is_seen_at_once(
    variant: Variant, pipeline: Any, alone: Callable[[str], Clip], policy: str
) -> None:
    def interrupt() -> None:
        held.append(handle.summary()["held_bytes"])
        raise KeyboardInterrupt

    held, expected = list[int](), alone(policy)
    with mixcache.enable(pipeline, **POLICIES[policy]) as handle:
        assert_equal(generate(variant, pipeline), expected)
        summary = handle.summary()
        assert (summary["num_steps"], summary["held_bytes"]) == (len(steps_of(variant)), 0)
        with pytest.raises(KeyboardInterrupt):
            in_mid_run(pipeline, variant, interrupt)
        assert handle.summary()["held_bytes"] == 0
        assert held[0] > 0
        assert_equal(generate(variant, pipeline), expected)
