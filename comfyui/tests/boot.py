"""Lets ComfyUI be imported beside a torch without CUDA, and its folder be found.

The torchvision of the package index is built for CUDA: its operators cannot load beside a CPU torch, and two of them
must be declared before it is imported. torchaudio is not installed; ComfyUI imports it for models of sound.
"""

from __future__ import annotations

import importlib.machinery
import os
import sys
import types
from pathlib import Path

COMFYUI = Path(os.environ.get("COMFYUI", Path(__file__).parents[2] / "build/comfyui/ComfyUI")).resolve()


def boot() -> None:
    """Once in a process, before anything of ComfyUI, or diffusers, is imported."""
    import torch

    library = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    boot.library = library  # what it defines is gone with it
    import torchvision  # noqa: F401

    audio = types.ModuleType("torchaudio")
    for name in ("functional", "transforms"):
        part = types.ModuleType(f"torchaudio.{name}")
        setattr(audio, name, part)
        sys.modules[part.__name__] = part
    audio.transforms.MelScale = object
    audio.__version__, audio.__path__ = "0", []
    audio.__spec__ = importlib.machinery.ModuleSpec("torchaudio", None, is_package=True)
    sys.modules["torchaudio"] = audio
    sys.path.insert(0, str(COMFYUI))
