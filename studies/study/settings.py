"""What the study holds fixed: names, seeds, ranges."""

from __future__ import annotations

from typing import Any

from mixcache.decision import Granularity

SEED = 9500
PARTS = ("a", "b", "c", "d", "e")
PROMPTS_OF_PART = {"a": 4, "b": 3, "c": 4, "e": 4}
"""Most prompts of a part; part d and the plain pipeline take all."""
SPEEDUP = 2.0
"""Where methods are compared."""
SHARE = 0.6
"""Block work that the schedules of part a still do."""
ERRORS = tuple(float(f"{0.0005 * 120 ** (k / 11):.3g}") for k in range(12))
WARM_UPS, COOL_DOWNS = (1, 2, 4, 8), (0, 1, 3, 6, 10)
FEWER = (0.76, 0.6, 0.5, 0.4, 0.3)
"""Numbers of plain steps, as shares of all."""
EVEN_IMPACTS = {"step": 1.0, "cfg": 1.0, "block": 1.0}
COMPUTE, STEP, CFG, BLOCK = Granularity.COMPUTE, Granularity.STEP, Granularity.CFG, Granularity.BLOCK
PLAIN, PLANNED, MIXCACHE, HINDSIGHT = "fewer plain steps", "planned", "mixcache, cool-down 3", "hindsight"
WITH_CFG, WITH_BLOCK = "hindsight, with cfg", "hindsight, with block"
CURVES = (PLAIN, PLANNED, HINDSIGHT, WITH_CFG, MIXCACHE, "mixcache, cool-down 8", "step, order 0", "step, order 1")
COLUMNS = (
    "method",
    "ideal",
    "wall_clock",
    "psnr_db",
    "psnr_spread",
    "ssim",
    "adherence",
    "margin_db",
    "num_prompts",
    "note",
)
Points = list[tuple[float, float]]
Row = dict[str, Any]
