"""The built-in models: small, trained by this project, shipped in the package, loaded by stock diffusers classes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

BUILT_IN = ("shapes-wan",)


def folder(name: str) -> Path:
    """The pipeline folder of a built-in model; ValueError for another name."""
    if name not in BUILT_IN:
        raise ValueError(f"unknown built-in model {name!r} (there are: {', '.join(BUILT_IN)})")
    return Path(__file__).parent / name


def load(name: str = "shapes-wan", *, dtype: Any = None) -> Any:
    """The diffusers pipeline of a built-in model, on the CPU; `dtype` is torch.float32 unless told."""
    import torch
    from diffusers import WanPipeline

    return WanPipeline.from_pretrained(folder(name), dtype=dtype or torch.float32, local_files_only=True)


def call_defaults(name: str = "shapes-wan") -> dict[str, Any]:
    """Arguments of the pipeline call that the model was trained for."""
    from mixcache.zoo import world
    from mixcache.zoo.tokenizer import MAX_SEQUENCE_LENGTH

    folder(name)
    return {
        "height": world.SIDE,
        "width": world.SIDE,
        "num_frames": world.NUM_FRAMES,
        "num_inference_steps": 50,
        "guidance_scale": 5.0,
        "max_sequence_length": MAX_SEQUENCE_LENGTH,
    }
