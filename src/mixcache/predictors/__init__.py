"""The predictors by name, in reading order. Pure Python: nothing here loads torch."""

from __future__ import annotations

from collections.abc import Sequence

from mixcache.names import unknown_name
from mixcache.predictors.base import Predictor
from mixcache.predictors.damped import Damped, damped, undamped
from mixcache.predictors.lagrange import Lagrange
from mixcache.predictors.reuse import Reuse

REUSE, LINE, PARABOLA = Reuse(), Lagrange(degree=1), Lagrange(degree=2)

PREDICTORS: dict[str, Predictor] = {str(predictor): predictor for predictor in (REUSE, LINE, PARABOLA)}

__all__ = [
    "LINE",
    "PARABOLA",
    "PREDICTORS",
    "REUSE",
    "Damped",
    "Lagrange",
    "Predictor",
    "Reuse",
    "damped",
    "predictor_of",
    "predictors_of",
    "undamped",
]


def predictor_of(name: str | Predictor) -> Predictor:
    """The predictor of a name, of "SHARE NAME" for a damped one, or the object itself; ValueError for anything else."""
    if isinstance(name, Predictor):
        return name
    if name in PREDICTORS:
        return PREDICTORS[name]
    share, _, rest = str(name).rpartition(" ")
    try:
        return damped(PREDICTORS[rest], float(share))
    except (KeyError, ValueError):
        raise ValueError(unknown_name("predictor", str(name), PREDICTORS)) from None


def predictors_of(names: Sequence[str | Predictor] | str | Predictor, *more: Predictor) -> tuple[Predictor, ...]:
    """Those of several names, or of one, and `more`, each once, those that stand on fewer values first."""
    several = [names] if isinstance(names, (str, Predictor)) else list(names)
    if not several:
        raise ValueError(f"predictors={names!r} names none; there are {', '.join(PREDICTORS)}")
    return tuple(
        sorted(dict.fromkeys(map(predictor_of, [*several, *more])), key=lambda predictor: predictor.num_values)
    )
