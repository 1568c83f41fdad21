"""What is foretold of hard settings beside what was measured."""

from __future__ import annotations

import math
from typing import Any

from mixcache.profiles import Expert, Profile
from mixcache.profiles.estimates import TENTH, USUAL_SPREAD_DB
from studies.estimates import page, rows_of


def test_rows_are_of_the_limits_that_were_measured() -> None:
    expert = Expert(transformer_class="Small", fingerprint="0" * 16, weights="1" * 16, dtype="torch.float32")
    psnrs = [[0.25, 30, 60.0], [0.6, 30, 60.0 - math.log(0.6 / 0.25)]]  # a dB for e times the error
    profile = Profile(model="small", experts=[expert], rates={}, num_generations=1, psnrs=psnrs)
    names = ("hold, quality high", "hold, error 0.8", "hold, speedup 2")
    found: dict[str, Any] = {"methods": [{"name": n, "values": [(0.5, 40.0, 1.0), (0.5, 50.0, 1.0)]} for n in names]}
    high, limit = rows_of("wan-30", profile, found)
    assert (high["error"], limit["error"]) == (0.25, 0.8)
    assert high["foretold"] == 60.0 - TENTH * USUAL_SPREAD_DB
    assert math.isclose(high["foretold"] - limit["foretold"], math.log(0.8 / 0.25))
    assert high["measured"] == limit["measured"] == 41.0
    assert (high["share"], limit["share"]) == (0.0, 0.0)
    text = page([high, limit])
    assert "0 of 2 are within 4 dB" in text
    assert "| wan-30 | 52 / 41 | 51 / 41 |" in text
