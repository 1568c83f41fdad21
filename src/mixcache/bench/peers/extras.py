"""Packages that only the benchmark needs."""

from __future__ import annotations

import importlib
from typing import Any


class MissingExtraError(ValueError):
    """A peer's package is not installed."""

    def __init__(self, package: str) -> None:
        super().__init__(f"{package} is not installed; it comes with: pip install 'mixcache[bench]'")


def imported(module: str, package: str) -> Any:
    """The module; MissingExtraError where its package is not installed."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name != module:
            raise
        raise MissingExtraError(package) from error
