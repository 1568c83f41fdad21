"""Numbers as people read them: three significant digits, a unit, and an en dash where there is nothing to tell."""

from __future__ import annotations

import json
import math
from typing import Any

ABSENT = "–"
IDENTICAL = "identical"


def significant(value: float, digits: int = 3) -> str:
    """`value` with `digits` significant digits: 1.967 -> "1.97", 0.98712 -> "0.987", 1234.5 -> "1234", 0.0 -> "0"."""
    if not math.isfinite(value):
        return str(value)
    if value == 0:
        return "0"
    rounded = float(f"{value:.{digits}g}")
    if abs(rounded) >= 10 ** (digits - 1):
        return f"{value:.0f}"
    if abs(rounded) < 1e-4:
        return f"{value:.{digits}g}"
    return f"{rounded:#.{digits}g}"


def plain_text(value: Any) -> str:
    """Any value of a results file in a word or two; dicts and lists as JSON, None as an en dash."""
    if value is None:
        return ABSENT
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return significant(value)
    if isinstance(value, (dict, list, tuple)):
        return json.dumps(value, ensure_ascii=False, default=str)
    return str(value)


def setting(value: Any) -> str:
    """A value that somebody chose: floats with all the digits they were given (up to six), lists with commas."""
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, (list, tuple)):
        return ", ".join(setting(item) for item in value) or ABSENT
    return plain_text(value)


def with_unit(value: float | None, unit: str) -> str:
    """`value` with three significant digits, a no-break space and `unit`; an en dash for None."""
    return ABSENT if value is None else f"{significant(value)}\N{NO-BREAK SPACE}{unit}"


def speedup(value: float | None) -> str:
    """1.967 -> "1.97×"."""
    return ABSENT if value is None else f"{significant(value)}×"


def psnr(value_db: float | None) -> str:
    """One decimal and the unit; None and infinity both mean that not one value differs: "identical"."""
    if value_db is None or value_db == math.inf:
        return IDENTICAL
    return f"{value_db:.1f}\N{NO-BREAK SPACE}dB"


def ssim(value: float | None) -> str:
    """Four decimals: good clips differ in the third."""
    return ABSENT if value is None else f"{value:.4f}"


def byte_size(num_bytes: int | None) -> str:
    """Bytes in binary units: 3145728 -> "3.00 MiB"."""
    if num_bytes is None:
        return ABSENT
    size = float(num_bytes)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{num_bytes}\N{NO-BREAK SPACE}B" if unit == "B" else with_unit(size, unit)
        size /= 1024
    return with_unit(size, "TiB")
