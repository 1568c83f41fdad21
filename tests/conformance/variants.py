"""Every variant that the suite knows, what is expected of some of them, and what all of its tests do with them."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import pytest
import torch
from conformance.variant import Variant

from mixcache.hosts.diffusers.denoisers import blocks_of, experts_of
from mixcache.hosts.diffusers.rows import row_for

FAMILIES = (
    "wan",
    "skyreels",
    "hunyuan",
    "motif",
    "helios",
    "cogvideox",
    "ltx",
    "ltx2",
    "mochi",
    "others",
    "cosmos",
    "kandinsky",
    "easyanimate",
    "sana",
)
VARIANTS: dict[str, Variant] = {
    v.name: v for name in FAMILIES for v in importlib.import_module(f"conformance.{name}").VARIANTS
}
SAFE = [name for name, variant in VARIANTS.items() if variant.unsafe is None]
IN_FULL = {
    "wan-modular-skip-layer": "a third call in a step and no cache context to tell it from the first",
    "skyreels-forcing-t2v-staggered": "frames at different noise levels",
    "skyreels-forcing-i2v-staggered-last-image": "frames at different noise levels",
    "skyreels-forcing-v2v-staggered": "frames at different noise levels",
}
"""Variants in which some calls do not say enough, so that those steps are computed, and why."""
ALWAYS_FIRST = {
    "helios-pyramid-distilled-two-chunks": "a scheduler that counts no steps, and timesteps rounded to others",
}
"""Variants whose every step looks like the first of a new loop, so that it is computed, and why."""
CACHED = [name for name in SAFE if name not in IN_FULL and name not in ALWAYS_FIRST]
PER_TOKEN = "a noise level for each token"
UNCORRECTED = {
    **dict.fromkeys(
        (
            "skyreels-forcing-t2v",
            "skyreels-forcing-t2v-no-guidance",
            "skyreels-forcing-t2v-long",
            "skyreels-forcing-i2v",
            "skyreels-forcing-v2v",
            "skyreels-forcing-v2v-long",
        ),
        "a copy of the scheduler for each frame",
    ),
    **dict.fromkeys(("ltx-condition", "ltx-condition-text", "sana-wm", "sana-wm-no-guidance"), PER_TOKEN),
    **dict.fromkeys(("ltx-long", "ltx-long-late-start"), "given tokens are put back at every step"),
    "kandinsky6-ti2va": "the given frame is put back at every step",
    **dict.fromkeys(("motif-apg", "wan-modular-projected-guidance"), "guidance with a memory of the steps before"),
    "ltx-modular-i2v": "a guider, and a scheduler that is given a part of what it made",
}
"""Variants whose cached steps are not taken again although the scheduler could, and why."""
AMPLIFIES = {"sana-wm": 0.03}
"""Variants whose random weights carry a rounding far, and how far: noise of 1e-6 in each answer moves the plain clip by
0.02 to 0.04, of 6."""
SCHEDULE = {"period": 2, "num_warmup_steps": 1, "num_cooldown_steps": 0}


def of_variants(names: list[str], *, every: int = 1, fast: Collection[str] | None = None) -> pytest.MarkDecorator:
    """Runs a test on these variants; but for every `every`-th one, or those that are `fast`, only where slow tests are
    asked for.

    Tests of a module are run variant by variant, so that each is built once.
    """
    fast = names[::every] if fast is None else fast
    marks = [[] if name in fast else [pytest.mark.slow] for name in names]
    chosen = [pytest.param(name, marks=own) for name, own in zip(names, marks, strict=True)]
    return pytest.mark.parametrize("variant", chosen, indirect=True, scope="module")


class Built(NamedTuple):
    """A variant's pipeline with what it does plainly."""

    pipeline: Any
    plain: tuple[torch.Tensor, ...]
    work: list[list[int]]
    """The blocks that ran in every call of a denoiser."""

    @classmethod
    def of(cls, variant: Variant) -> Built:
        torch.set_num_threads(1)
        pipeline = variant.build()
        with recorded(pipeline) as work:
            plain = generate(variant, pipeline)
        return cls(pipeline, plain, work)


def generate(
    variant: Variant, pipeline: Any, *, other: bool = False, seed: int = 0, **more: Any
) -> tuple[torch.Tensor, ...]:
    arguments = variant.other_arguments() if other else variant.arguments()
    output = variant.output(pipeline(generator=torch.Generator("cpu").manual_seed(seed), **arguments | more))
    return tuple(output) if isinstance(output, (tuple, list)) else (output,)


def assert_equal(one: tuple[torch.Tensor, ...], other: tuple[torch.Tensor, ...]) -> None:
    assert len(one) == len(other)
    for a, b in zip(one, other, strict=True):
        assert torch.equal(torch.as_tensor(a), torch.as_tensor(b))


def denoisers(pipeline: Any) -> list[Any]:
    return list(experts_of(pipeline).values())


def steps_of(variant: Variant) -> list[tuple[tuple[str, ...], ...]]:
    return list(variant.expected_steps or (variant.calls,) * variant.num_steps)


@contextmanager
def recorded(pipeline: Any) -> Iterator[list[list[int]]]:
    """For every call of a denoiser that is not left out, the blocks that ran; stands inside of our hooks."""
    calls: list[list[int]] = []
    undo: list[Callable[[], None]] = []
    row = row_for(denoisers(pipeline)[0], pipeline)

    def wrap(module: torch.nn.Module, note: Callable[[], None]) -> None:
        inner = module.forward

        @functools.wraps(inner)
        def forward(*args: Any, **kwargs: Any) -> Any:
            note()
            return inner(*args, **kwargs)

        module.forward = forward
        undo.append(lambda: module.__dict__.pop("forward", None))

    for transformer in denoisers(pipeline):
        wrap(transformer, lambda: calls.append([]))
        for index, block in enumerate(blocks_of(transformer, row)):
            wrap(block, lambda index=index: calls[-1].append(index))
    try:
        yield calls
    finally:
        for action in undo:
            action()
