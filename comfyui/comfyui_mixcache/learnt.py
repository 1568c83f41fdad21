"""What samplings have taught policy `hold` of a model, for the next sampling of the same model.

ComfyUI makes no object that lives from one sampling to the next but the model itself, and every node on it clones the
patcher around it: so what was learnt is filed under the model inside. It is a few numbers, and is gone with the model.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any
from weakref import WeakKeyDictionary

from mixcache.policies import Bounded, Hold
from mixcache.policies.way import Learnt

MAX_KINDS = 8
"""Kinds of samplings of one model that are known; the one that was used longest ago goes first."""
Kind = tuple[str, tuple[float, ...]]
"""Sampler and noise levels: the limit that gives a wish is another one for a part of the way."""
_KNOWN: WeakKeyDictionary[Any, dict[Kind, Learnt]] = WeakKeyDictionary()


def learnt_of(model: Any, kind: Kind) -> Learnt:
    """What is known of a kind of sampling of a model; of a new kind, the rates that the newest other one has shown."""
    kinds = _KNOWN.setdefault(model, {})
    found = kinds.pop(kind, None)
    if found is None:
        newest = next(reversed(kinds.values()), Learnt())
        found = Learnt(log_rates=dict(newest.log_rates), cached_share=newest.cached_share)
    kinds[kind] = found
    while len(kinds) > MAX_KINDS:
        del kinds[next(iter(kinds))]
    return found


def taught(bounded: Bounded, learnt: Learnt) -> Bounded:
    """The policy, beginning with what is known; it adds to that as it goes."""
    if not isinstance(bounded.policy, Hold):
        return bounded
    return replace(bounded, policy=replace(bounded.policy, learnt=learnt))
