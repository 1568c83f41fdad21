"""Which pipeline is calling, where nothing announced it: several may share a transformer, each with a scheduler of its
own, and a call reaches only the transformer."""

from __future__ import annotations

import sys
from typing import Any

from diffusers import DiffusionPipeline, ModularPipeline


def calling_pipeline() -> Any | None:
    """The nearest pipeline whose method is running in this thread, or None."""
    frame = sys._getframe(1)
    while frame is not None:
        code = frame.f_code
        # frames of torch are many, and never a pipeline's
        if code.co_argcount and code.co_varnames[0] == "self" and not _is_torch(frame.f_globals.get("__name__", "")):
            found = frame.f_locals.get("self")
            if isinstance(found, (DiffusionPipeline, ModularPipeline)):
                return found
        frame = frame.f_back  # type: ignore[assignment]
    return None


def _is_torch(module_name: str) -> bool:
    return module_name == "torch" or module_name.startswith("torch.")
