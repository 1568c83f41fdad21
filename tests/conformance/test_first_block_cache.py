"""What diffusers' own FirstBlockCache does on the same pipelines, for the table of the documentation.

No test is to fail because of what it does: that is recorded, and as "yes" only where it is known to have left blocks
out.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import replace
from typing import Any

import pytest
import torch
from conformance import test_conformance as suite
from conformance.variant import Variant
from conformance.variants import SAFE, VARIANTS, denoisers, recorded, steps_of
from diffusers import FirstBlockCacheConfig, HookRegistry
from diffusers.hooks import apply_first_block_cache
from diffusers.hooks.first_block_cache import _FBC_BLOCK_HOOK, _FBC_LEADER_BLOCK_HOOK, FBCBlockHook

EVERYTHING = float("inf")
"""The threshold at which a call leaves out all blocks but the first, whenever there is something to reuse."""
UNCHANGED = 0.0
"""The threshold at which it does so only where the first block's residual is the very same."""

pytestmark = pytest.mark.filterwarnings("ignore")


class NotSoError(Exception):
    """What FirstBlockCache did instead of what was asked."""


def ask(whether: bool, else_said: str) -> None:
    if not whether:
        raise NotSoError(else_said)


@contextmanager
def ask_not_to_raise(else_said: str) -> Iterator[None]:
    """Around what a user does."""
    try:
        yield
    except NotSoError:
        raise
    except Exception as error:
        raise NotSoError(else_said) from error


@contextmanager
def attached(transformer: Any, threshold: float) -> Iterator[None]:
    """As its documentation says: by the model's own method where it has one."""
    has_method = hasattr(transformer, "enable_cache")
    with ask_not_to_raise("not attached"):
        attach = transformer.enable_cache if has_method else functools.partial(apply_first_block_cache, transformer)
        attach(FirstBlockCacheConfig(threshold=threshold))
    try:
        yield
    finally:
        if has_method:
            transformer.disable_cache()
        else:
            registry = HookRegistry.check_if_exists_or_initialize(transformer)
            registry.remove_hook(_FBC_LEADER_BLOCK_HOOK)
            registry.remove_hook(_FBC_BLOCK_HOOK)


class Trial:
    """One variant; each check raises `NotSoError` where the cache does not do as asked."""

    def __init__(self, variant: Variant) -> None:
        self.variant = variant
        self.pipeline = variant.build()
        with recorded(self.pipeline) as self.plain_work:
            self.plain = suite.generate(variant, self.pipeline)

    @contextmanager
    def cached(self, threshold: float) -> Iterator[list[list[int]]]:
        """The cache on every expert; the blocks that run in each call."""
        with recorded(self.pipeline) as work, ExitStack() as stack:
            for transformer in denoisers(self.pipeline):
                stack.enter_context(attached(transformer, threshold))
            yield work

    def generate(self, *, other: bool = False) -> tuple[torch.Tensor, ...]:
        with ask_not_to_raise("raises"):
            return suite.generate(self.variant, self.pipeline, other=other)

    def runs(self) -> None:
        """It can be attached, a clip gets done, and blocks are left out."""
        with self.cached(EVERYTHING) as work:
            self.clip = self.generate()
        self.work = work
        ask(left_out(work, self.plain_work) > 0, "leaves nothing out")

    def is_right(self) -> None:
        self.leaves_alone_what_it_does_not_cache()
        self.gives_the_same_at_equal_inputs()
        self.keeps_branches_apart()
        with self.cached(EVERYTHING):
            self.generate(other=True)
            ask(is_equal(self.generate(), self.clip), "a whole run changes the next")

    def leaves_alone_what_it_does_not_cache(self) -> None:
        with self.cached(UNCHANGED):
            ask(is_close(self.generate(), self.plain), "another clip with nothing to reuse")

    def gives_the_same_at_equal_inputs(self) -> None:
        with self.cached(UNCHANGED) as work, ExitStack() as stack:
            for transformer in denoisers(self.pipeline):
                stack.enter_context(called_twice(transformer))
            self.generate()
        first, second = work[::2], work[1::2]
        ask(left_out(first, self.plain_work) == 0, "reuses at other inputs")
        ask(left_out(second, self.plain_work) == len(second), "no reuse at equal inputs")

    def keeps_branches_apart(self) -> None:
        branches = [branches for calls in steps_of(self.variant) for branches in calls]
        for index in {branches.index(one) for one in branches}:
            ask(self.work[index] == self.plain_work[index], "mixes up branches")

    def is_clean_after_an_exception(self) -> None:
        """A run broken off half way changes nothing in the next, which has another prompt."""
        prompt = {key: value for key, value in self.variant.other_arguments().items() if key == "prompt"}
        before = replace(self.variant, arguments=lambda: self.variant.arguments() | prompt)
        with self.cached(EVERYTHING) as work:
            suite.break_off(before, self.pipeline)
            work.clear()
            clip = self.generate()
        ask(is_equal(clip, self.clip) and work == self.work, "serves the old cache")


def left_out(work: list[list[int]], plain_work: list[list[int]]) -> int:
    """In how many calls fewer blocks ran than in the plain pipeline."""
    return sum(len(blocks) < len(plain) for blocks, plain in zip(work, plain_work, strict=True))


def is_equal(one: tuple[Any, ...], other: tuple[Any, ...]) -> bool:
    return all(torch.equal(torch.as_tensor(a), torch.as_tensor(b)) for a, b in zip(one, other, strict=True))


def is_close(one: tuple[Any, ...], other: tuple[Any, ...], rtol: float = 1e-3, atol: float = 1e-4) -> bool:
    pairs = ((torch.as_tensor(a), torch.as_tensor(b)) for a, b in zip(one, other, strict=True))
    return all(a.shape == b.shape and torch.allclose(a, b, rtol=rtol, atol=atol) for a, b in pairs)


@contextmanager
def called_twice(transformer: Any) -> Iterator[None]:
    """Makes every call of the transformer twice at the same inputs; both outputs must agree."""
    inner = transformer.forward

    @functools.wraps(inner)
    def forward(*args: Any, **kwargs: Any) -> Any:
        computed, reused = inner(*args, **kwargs), inner(*args, **kwargs)
        leaves = ([x for x in torch.utils._pytree.tree_leaves(o) if torch.is_tensor(x)] for o in (computed, reused))
        ask(is_close(*map(tuple, leaves), rtol=1e-4, atol=1e-5), "differs at equal inputs")
        return computed

    transformer.forward = forward
    try:
        yield
    finally:
        transformer.forward = inner


def answer(check: Callable[[], None]) -> str:
    try:
        check()
    except NotSoError as no:
        return f"no: {no}"
    return "yes"


def answers(variant: Variant) -> dict[str, str]:
    """In the words of the table; where it does not run, there is nothing else to ask."""
    trial = Trial(variant)
    said = {"pipeline": type(trial.pipeline).__name__, "variant": variant.name}
    said["first_block_cache_runs"] = answer(trial.runs)
    if said["first_block_cache_runs"] == "yes":
        said["first_block_cache_right"] = answer(trial.is_right)
        said["first_block_cache_clean"] = answer(trial.is_clean_after_an_exception)
    return said


@pytest.mark.slow
@pytest.mark.parametrize("name", SAFE)
def test_first_block_cache_is_asked(name: str, record_property: Callable[[str, object], None]) -> None:
    for key, value in answers(VARIANTS[name]).items():
        record_property(key, value)


# ------------------------------------------------------------------------------------------------- what the answers say


@pytest.fixture
def variant() -> Variant:
    torch.set_num_threads(1)
    return VARIANTS["wan-t2v"]


def test_yes_is_said(variant: Variant, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the user drops the state after the exception; else a "no" could be the fault of the check."""
    break_off = suite.break_off

    def break_off_and_tidy_up(variant: Variant, pipeline: Any) -> None:
        break_off(variant, pipeline)
        pipeline.maybe_free_model_hooks()

    monkeypatch.setattr(suite, "break_off", break_off_and_tidy_up)
    assert list(answers(variant).values()) == ["WanPipeline", "wan-t2v", "yes", "yes", "yes"]


def test_a_cache_that_leaves_nothing_out_does_not_run(variant: Variant, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(globals(), "attached", lambda transformer, threshold: nullcontext())
    said = answers(variant)
    assert said["first_block_cache_runs"] == "no: leaves nothing out"
    assert "first_block_cache_right" not in said


def test_another_output_at_equal_inputs_is_noticed(variant: Variant, monkeypatch: pytest.MonkeyPatch) -> None:
    forward = FBCBlockHook.new_forward

    def new_forward(hook: FBCBlockHook, module: Any, *args: Any, **kwargs: Any) -> Any:
        output = forward(hook, module, *args, **kwargs)
        return output if hook.state_manager.get_state().should_compute else output.sin()

    monkeypatch.setattr(FBCBlockHook, "new_forward", new_forward)
    assert answers(variant)["first_block_cache_right"] == "no: differs at equal inputs"
