"""Which pipeline is calling, where nothing announced it: several may share a transformer, each with a scheduler of its
own, and a call reaches only the transformer."""

from __future__ import annotations

import sys
from functools import lru_cache
from types import CodeType
from typing import Any

from diffusers import DiffusionPipeline, ModularPipeline


def calling_pipeline() -> Any | None:
    """The nearest pipeline whose method is running in this thread, or None."""
    frame = sys._getframe(1)
    while frame is not None:
        if _has_self(frame.f_code) and not _is_between(frame.f_globals.get("__name__", "")):
            found = frame.f_locals.get("self")
            if isinstance(found, (DiffusionPipeline, ModularPipeline)):
                return found
        frame = frame.f_back  # type: ignore[assignment]
    return None


@lru_cache(maxsize=1024)
def _has_self(code: CodeType) -> bool:
    return code.co_argcount > 0 and code.co_varnames[0] == "self"


@lru_cache(maxsize=1024)
def _is_between(module_name: str) -> bool:
    """True for torch's frames, which are many, and our own: never a pipeline's."""
    return module_name.partition(".")[0] in ("torch", "mixcache")
