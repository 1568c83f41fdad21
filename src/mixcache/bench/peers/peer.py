"""A peer: how one of its settings becomes a method, and which of them are measured."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mixcache.bench.methods import MANY_STEPS, Method

Options = dict[str, Any]
"""One setting, by what `Peer.make` calls its parts."""
SETTINGS = Path(__file__).with_name("settings.json")
"""By transformer class, "many" or "few" steps, and family; `studies.search` writes it."""
FALLBACK = "WanTransformer3DModel"
"""Class of transformers whose settings stand in where none were found."""


@dataclass(frozen=True, kw_only=True)
class Peer:
    """One family of a rival's methods; called, it gives those that are measured."""

    family: str
    make: Callable[..., Method]
    """The method of one setting: `make(num_steps, **options)`."""

    def __call__(self, num_steps: int, transformer: str = FALLBACK) -> Sequence[Method]:
        """The methods for a number of steps on a class of transformers."""
        length, found = length_word(num_steps), json.loads(SETTINGS.read_text())
        settings: list[Options] = found.get(transformer, {}).get(length, {}).get(self.family)
        return [self.make(num_steps, **options) for options in settings or found[FALLBACK][length][self.family]]


def length_word(num_steps: int) -> str:
    """What the settings of a number of steps are filed under."""
    return "many" if num_steps > MANY_STEPS else "few"
