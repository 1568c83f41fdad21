"""What the clips of a calibration say of others: PSNR that goes with an `error` of policy `hold`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from mixcache.profiles.errors import ProfileError

TENTH = 1.2816
"""Standard deviations by which the tenth percentile lies under the mean of what is normally distributed."""
USUAL_SPREAD_DB, USUAL_CLIPS = 6.0, 4
"""Standard deviation of the clips of the built-in models in their hard settings at one `error` (root mean square
of 45 rows), and as how many clips it counts beside those of a calibration."""
MOST_BEYOND = 4.0
"""Factor over the largest and under the smallest `error` that was measured, up to which the line is believed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Estimate:
    """What a profile says of the PSNR that goes with an `error`."""

    error: float
    """Of policy `hold`."""
    psnr_db: float
    """That nine clips of ten are expected to have at least: the tenth percentile."""
    spread_db: float
    """Standard deviation of clips around their mean, in dB."""
    num_clips: int
    num_steps: int
    """Of those clips."""

    @property
    def mean_db(self) -> float:
        """PSNR expected of the mean clip."""
        return self.psnr_db + TENTH * self.spread_db

    def __str__(self) -> str:
        return (
            f"{self.psnr_db:.3g} dB or more in nine clips of ten, {self.mean_db:.0f} in the mean: an estimate for this "
            f"model's clips, from {self.num_clips} clips of {self.num_steps} steps"
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Line:
    """Mean PSNR of clips, falling by a line in the log of `error`, and how far single clips lie from it.

    Clips scatter as those of the calibration did, and as those of the built-in models, which count as USUAL_CLIPS more:
    a few clips of two prompts do not tell it alone.
    """

    log_error: float
    """Mean of what was measured."""
    mean_db: float
    """At `log_error`."""
    slope: float
    scatter_db: float
    least: float
    most: float
    """The smallest and largest `error` for which it is believed."""
    num_clips: int
    num_steps: int

    @classmethod
    def of(cls, psnrs: Sequence[Sequence[float]], num_steps: int) -> Line:
        """Fitted to the rows of `Profile.psnrs` of the nearest number of steps."""
        if not psnrs:
            raise ProfileError("this profile knows no PSNR; `mixcache calibrate` measures it")
        nearest = min({row[1] for row in psnrs}, key=lambda count: abs(math.log(count / num_steps)))
        logs = [math.log(row[0]) for row in psnrs if row[1] == nearest]
        values = [row[2] for row in psnrs if row[1] == nearest]
        log_error, mean = fmean(logs), fmean(values)
        spread = sum((x - log_error) ** 2 for x in logs)
        slope = sum((x - log_error) * (y - mean) for x, y in zip(logs, values, strict=True)) / spread if spread else 0.0
        if slope >= 0:
            raise ProfileError("this profile's clips do not tell what an error costs; calibrate on more prompts")
        missed = [y - mean - slope * (x - log_error) for x, y in zip(logs, values, strict=True)]
        squares = USUAL_CLIPS * USUAL_SPREAD_DB**2 + sum(miss**2 for miss in missed)
        return cls(
            log_error=log_error,
            mean_db=mean,
            slope=slope,
            scatter_db=math.sqrt(squares / (USUAL_CLIPS + max(0, len(missed) - 2))),
            least=math.exp(min(logs)) / MOST_BEYOND,
            most=math.exp(max(logs)) * MOST_BEYOND,
            num_clips=len(missed),
            num_steps=round(nearest),
        )

    def tenth_at(self, error: float) -> float:
        """PSNR (dB) that nine of ten clips have at least."""
        return self.mean_db + self.slope * (math.log(error) - self.log_error) - TENTH * self.scatter_db

    def error_at(self, tenth_db: float) -> float:
        return math.exp(self.log_error + (tenth_db + TENTH * self.scatter_db - self.mean_db) / self.slope)

    def estimate(self, error: float, psnr_db: float) -> Estimate:
        return Estimate(
            error=error,
            psnr_db=psnr_db,
            spread_db=self.scatter_db,
            num_clips=self.num_clips,
            num_steps=self.num_steps,
        )
