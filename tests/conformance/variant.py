"""What the conformance suite knows of one way to call one pipeline."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

Calls = tuple[tuple[str, ...], ...]
"""The calls of the transformer in one step, in order; each is the tuple of the branches it returns, in the order in
which they are stacked along dimension 0: (("cond",), ("uncond",)) for two calls, (("uncond", "cond"),) for one joined
call, (("cond",),) where there is one branch."""

SHORT, LONG = 6, 8
"""Steps of a variant whose steps are alike, and of one that does something else in some of them."""


def latents(output: Any) -> Any:
    """What most pipelines return under `frames`."""
    return output.frames


def draw_image(seed: int, width: int = 32, height: int = 32) -> Any:
    """Noise in colours."""
    import numpy
    from PIL import Image

    values = numpy.random.default_rng(seed).integers(0, 256, size=(height, width, 3), dtype=numpy.uint8)
    return Image.fromarray(values)


@dataclass(frozen=True, kw_only=True, slots=True)
class Variant:
    """A pipeline built tiny from config, and arguments of its call."""

    name: str
    """Kebab case: "wan-i2v", "wan-t2v-two-experts"."""
    build: Callable[[], Any]
    """The pipeline: real classes, every component, seeded, float32, on the CPU, progress bar off."""
    arguments: Callable[[], dict[str, Any]]
    """Arguments of the pipeline's call but `generator`, made afresh at each call; few steps, small frames, guidance
    on, `output_type="latent"` where the pipeline knows it."""
    other_arguments: Callable[[], dict[str, Any]]
    """The same with another prompt and, where the pipeline allows it, another resolution."""
    calls: Calls = (("cond",), ("uncond",))
    num_steps: int = LONG
    """Steps of the loop that call the transformer."""
    expected_steps: tuple[Calls, ...] | None = None
    """Every step's calls, where they are not the same in all steps."""
    output: Callable[[Any], Any] = latents
    """Takes the tensor, or the tuple of tensors, out of what the call returns."""
    unsafe: str | None = None
    """Why no call may be skipped here; None where caching is safe."""
