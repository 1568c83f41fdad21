"""The built-in models: small, trained by this project, shipped in the package, loaded by stock diffusers classes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

CALLS: dict[str, dict[str, Any]] = {
    "shapes-wan": {"guidance_scale": 5.0},
    "shapes-hunyuan": {"guidance_scale": 6.0, "prompt_template": {"template": "{}", "crop_start": 0}},
    "shapes-cogvideox": {"guidance_scale": 6.0},
}
"""Arguments of the pipeline's call that are a model's own. Words of HunyuanVideo's own template are unknown here."""
BUILT_IN = tuple(CALLS)


def _check(name: str) -> None:
    if name not in BUILT_IN:
        raise ValueError(f"unknown built-in model {name!r} (there are: {', '.join(BUILT_IN)})")


def folder(name: str) -> Path:
    """The pipeline folder of a built-in model; ValueError for another name."""
    _check(name)
    return Path(__file__).parent / name


def load(name: str = "shapes-wan", *, dtype: Any = None) -> Any:
    """The diffusers pipeline of a built-in model, on the CPU; `dtype` is torch.float32 unless told."""
    import torch
    from diffusers import DiffusionPipeline

    return DiffusionPipeline.from_pretrained(folder(name), dtype=dtype or torch.float32, local_files_only=True)


def call_defaults(name: str = "shapes-wan") -> dict[str, Any]:
    """Arguments of the pipeline call that the model was trained for."""
    from mixcache.zoo import world

    _check(name)
    return {
        "height": world.SIDE,
        "width": world.SIDE,
        "num_frames": world.NUM_FRAMES,
        "num_inference_steps": 50,
        "max_sequence_length": world.MAX_SEQUENCE_LENGTH,
        **CALLS[name],
    }
