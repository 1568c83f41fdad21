from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mixcache.decision import Granularity
from mixcache.predictors import LINE
from mixcache.trace import Call, Trace, TraceEntry, TraceWriter


def entry(step: int, granularity: Granularity, num_blocks: tuple[int, ...], **fields: Any) -> TraceEntry:
    """An entry whose calls ran that many blocks; 0 blocks: the transformer was not entered."""
    branches = ("cond", "uncond")
    calls = tuple(Call(branch=b, computed=n > 0, num_blocks=n) for b, n in zip(branches, num_blocks, strict=False))
    settings = {"generation": 0, "num_steps": 4, "sigma": 1 - step / 4, "reason": "test"} | fields
    return TraceEntry(step=step, granularity=granularity, calls=calls, **settings)


def example() -> Trace:
    """Four steps of a transformer with 10 blocks, 8 of them in the span."""
    return Trace(
        [
            entry(0, Granularity.COMPUTE, (10, 10), deviation=0.25, distances={Granularity.CFG: 0.5}, held_bytes=64),
            entry(1, Granularity.STEP, (0, 0), predictor=LINE),
            entry(2, Granularity.CFG, (10, 0), non_finite=1),
            entry(3, Granularity.BLOCK, (2, 2)),
        ],
        num_blocks=10,
    )


def test_save_and_load_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    example().save(path)
    loaded = Trace.load(path)
    assert list(loaded) == list(example())
    assert loaded.num_blocks == 10
    assert isinstance(loaded[0].granularity, Granularity)
    assert json.loads(path.read_text().splitlines()[0]) == {"mixcache_trace": 2, "num_blocks": 10}
    assert len(path.read_text().splitlines()) == 5


def test_what_is_not_finite_is_saved_as_valid_json(tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    distances = {Granularity.STEP: float("nan"), Granularity.CFG: 0.5}
    Trace([entry(0, Granularity.COMPUTE, (1,), deviation=float("inf"), distances=distances)]).save(path)
    assert "NaN" not in path.read_text()
    assert "Infinity" not in path.read_text()
    loaded = Trace.load(path)[0]
    assert (loaded.deviation, loaded.distances) == (None, {Granularity.CFG: 0.5})


def test_counts_and_computed_share() -> None:
    trace = example()
    assert trace.counts() == {"compute": 1, "block": 1, "cfg": 1, "step": 1}
    # 20 + 0 + 10 + 4 of 8 calls x 10 blocks
    assert trace.computed_share() == pytest.approx(34 / 80)
    assert Trace(num_blocks=10).computed_share() == 1.0
    assert Trace(num_blocks=10).counts() == {"compute": 0, "block": 0, "cfg": 0, "step": 0}
    assert Trace([entry(1, Granularity.STEP, (0, 0))], num_blocks=10).computed_share() == 0.0


def test_generations() -> None:
    entries = [entry(s, Granularity.COMPUTE, (1,), generation=g) for g in (5, 6, 8) for s in (0, 1)]
    trace = Trace(entries, num_blocks=3)
    assert (trace.num_generations, len(trace)) == (3, 6)
    assert [e.generation for e in trace.generation(0)] == [5, 5]
    assert [e.generation for e in trace.generation(-1)] == [8, 8]
    assert trace.generation(1).num_blocks == 3


def test_keep_generations() -> None:
    trace = Trace(entry(0, Granularity.COMPUTE, (1,), generation=g) for g in range(5))
    trace.keep_generations(5)
    assert [e.generation for e in trace] == [0, 1, 2, 3, 4]
    trace.keep_generations(2)
    assert [e.generation for e in trace] == [3, 4]
    trace.append(entry(0, Granularity.COMPUTE, (1,), generation=5))
    trace.keep_generations(1)
    assert [e.generation for e in trace] == [5]
    empty = Trace()
    empty.keep_generations(1)
    assert len(empty) == 0


HEADER = '{"mixcache_trace": 2, "num_blocks": 4}'


def changed(**fields: Any) -> str:
    return json.dumps(example()[0].to_json() | fields)


def without(name: str) -> str:
    row = example()[0].to_json()
    del row[name]
    return json.dumps(row)


@pytest.mark.parametrize(
    ("lines", "number"),
    [
        ([], 1),
        (["no json"], 1),
        (["[]"], 1),
        (["3"], 1),
        (["{}"], 1),
        (['{"mixcache_trace": 3, "num_blocks": 4}'], 1),
        (['{"mixcache_trace": 2, "num_blocks": "many"}'], 1),
        ([HEADER, changed(), "{"], 3),
        ([HEADER, "", changed()], 2),
        ([HEADER, "[]"], 2),
        ([HEADER, "null"], 2),
        ([HEADER, without("calls")], 2),
        ([HEADER, without("sigma")], 2),
        ([HEADER, changed(extra=1)], 2),
        ([HEADER, changed(granularity="steps")], 2),
        ([HEADER, changed(predictor="lime")], 2),
        ([HEADER, changed(distances=[])], 2),
        ([HEADER, changed(distances={"cfg": None})], 2),
        ([HEADER, changed(), changed(calls=[{"branch": "cond"}])], 3),
        ([HEADER, changed(), changed(calls=3)], 3),
    ],
)
def test_bad_files_name_file_and_line(tmp_path: Path, lines: list[str], number: int) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text("\n".join(lines))
    with pytest.raises(ValueError, match=rf"bad\.jsonl, line {number}: no trace of mixcache \("):
        Trace.load(path)


def test_a_binary_file_is_no_trace(tmp_path: Path) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_bytes(b"\xff\xfe\x00\x80")
    with pytest.raises(ValueError, match=r"bad\.jsonl, line 1: no trace of mixcache"):
        Trace.load(path)


def test_what_was_computed_before_is_all_but_what_was_seen_to_be_cached() -> None:
    """A second expert that begins at step 3 goes on from the first one's steps, whoever has emptied the entries."""
    writer = TraceWriter(Trace())
    kinds = [Granularity.COMPUTE, Granularity.STEP, Granularity.COMPUTE]
    for _ in range(2):
        generation = writer.number_of(0)
        assert writer.num_computed_before(0) == 0
        for step, kind in enumerate(kinds):
            writer.append(entry(step, kind, (), generation=generation, num_steps=3))
        writer.entries.clear()
        assert writer.num_computed_before(3) == 2
        assert writer.number_of(3) == generation
        assert writer.num_computed_before(4) == 4  # of another loop, of which nothing was seen
        writer.append(entry(3, Granularity.STEP, (), generation=generation, num_steps=6))
    assert writer.num_computed_before(0) == 0
