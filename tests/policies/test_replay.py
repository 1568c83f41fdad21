from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mixcache.decision import Granularity
from mixcache.policies import Replay
from mixcache.policies.base import Needs
from mixcache.predictors import LINE, REUSE, Predictor
from mixcache.trace import Trace, TraceEntry

Pattern = Callable[..., str]
NAMES = {".": Granularity.COMPUTE, "s": Granularity.STEP, "c": Granularity.CFG, "b": Granularity.BLOCK}


def recorded(text: str, generation: int = 0, predictor: Predictor = REUSE) -> Trace:
    return Trace(
        TraceEntry(
            generation=generation,
            step=index,
            num_steps=len(text),
            sigma=1 - index / len(text),
            granularity=NAMES[letter],
            predictor=predictor,
            reason="recorded",
        )
        for index, letter in enumerate(text)
    )


def test_repeats_the_decisions(pattern: Pattern) -> None:
    assert pattern(Replay(trace=recorded(".sc.b.s.")), 8) == ".sc.b.s."


def test_keeps_only_what_the_trace_uses() -> None:
    replay = Replay(trace=recorded("..c.b", predictor=LINE))
    assert replay.needs == Needs(granularities=(Granularity.CFG, Granularity.BLOCK), predictors=(LINE,))
    assert Replay(trace=recorded("...")).needs.granularities == ()


def test_steps_outside_the_trace_and_without_history_are_computed(pattern: Pattern) -> None:
    assert pattern(Replay(trace=recorded(".s.s")), 6) == "......"  # another number of steps is another trajectory
    assert pattern(Replay(trace=recorded("s.sc")), 4) == "..sc"
    assert pattern(Replay(trace=recorded("..sc")), 4, absent=[Granularity.CFG]) == "..s."


def test_the_first_of_several_generations_is_repeated(pattern: Pattern) -> None:
    both = Trace([*recorded(".s.s", generation=3), *recorded(".ccc", generation=4)])
    assert pattern(Replay(trace=both), 4) == ".s.s"
    assert pattern(Replay(trace=both.generation(-1)), 4) == ".ccc"


def test_a_saved_trace_is_read(pattern: Pattern, tmp_path: Path) -> None:
    recorded(".sc.").save(tmp_path / "trace.jsonl")
    for path in (tmp_path / "trace.jsonl", str(tmp_path / "trace.jsonl")):
        assert pattern(Replay(trace=path), 4) == ".sc."  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("trace", "message"),
    [
        ("none.jsonl", "the trace none.jsonl cannot be read: No such file"),
        (3, "trace=3 is no Trace and no path of one"),
    ],
)
def test_what_is_no_trace_is_an_error(trace: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Replay(trace=trace)


def test_empty_trace_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"trace= is empty; give a Trace, such as Trace.load\('trace.jsonl'\)"):
        Replay()
