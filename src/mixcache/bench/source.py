"""Which code a benchmark's records are of."""

from __future__ import annotations

import hashlib
from pathlib import Path

import mixcache

OUTSIDE = ("cli", "demo.py", "store.py", "report", "calibration", "zoo", "bench")
"""What no record hangs on: weights and profile are named beside the code."""
INSIDE = ("bench/meter.py", "bench/peers/")
"""Of these, what one does hang on."""


def code_hash() -> str:
    """Of the source that decides, predicts and measures, and of the peers."""
    root = Path(mixcache.__file__).parent
    files = {path.relative_to(root).as_posix(): path for path in root.rglob("*.py")}
    chosen = [name for name in sorted(files) if name.split("/")[0] not in OUTSIDE or name.startswith(INSIDE)]
    return hashlib.sha256(b"".join(files[name].read_bytes() for name in chosen)).hexdigest()[:16]
