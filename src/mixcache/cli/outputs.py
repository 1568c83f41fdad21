"""Proves before any work that what a verb writes can be written."""

from __future__ import annotations

import os
from pathlib import Path


def prepare_folder(out: Path, names: list[str], force: bool) -> None:
    """Makes the folder and proves that it can be written; ValueError before any work if not, or if a file is in the
    way."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"the folder {out} cannot be made: {error.strerror}") from error
    if not os.access(out, os.W_OK | os.X_OK):
        raise ValueError(f"the folder {out} cannot be written")
    existing = [name for name in names if (out / name).exists()]
    if existing and not force:
        raise ValueError(f"{out / existing[0]} exists; --force overwrites it, --out names another")
    for name in existing:
        if not (out / name).is_file() or not os.access(out / name, os.W_OK):
            raise ValueError(f"{out / name} is in the way and cannot be overwritten")


def prepare_file(path: Path, force: bool, suffix: str) -> None:
    """As `prepare_folder`, for one file that must end in `suffix`."""
    if path.suffix != suffix:
        raise ValueError(f"{path} must end in {suffix}")
    prepare_folder(path.parent, [path.name], force)
