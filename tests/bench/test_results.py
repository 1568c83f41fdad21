"""The levels by arithmetic, and the file read back."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mixcache.bench.methods import policy_method
from mixcache.bench.results import FORMAT, ResultsError, load

Make = Callable[..., Any]


def test_levels_are_the_best_of_each_family(make_result: Make, make_record: Make, made_up: Any) -> None:
    fast = policy_method("hindsight", error=0.1)
    records = [make_record(made_up["ours"], 1.8, 44.0), make_record(fast, 2.8, 34.0), make_record(made_up["peer"], 1.6)]
    result = make_result([made_up["ours"], fast, made_up["peer"]], records)
    assert result["at"]["hindsight"] == {"1.5": 44.0, "2": pytest.approx(42.0), "2.5": pytest.approx(37.0), "3": None}
    assert result["at"]["first-block-cache"] == {"1.5": 30.0, "2": None, "2.5": None, "3": None}
    assert set(result["at"]) == {"hindsight", "first-block-cache"}


def test_rows_know_their_family_memory_and_margin(make_result: Make, make_record: Make, made_up: Any) -> None:
    more, fewer, ours = made_up["more steps"], made_up["fewer steps"], made_up["ours"]
    same = dataclasses.replace(fewer, setting="50 steps", num_inference_steps=50)
    worse, faster = (policy_method("hindsight", error=error) for error in (0.1, 0.2))
    records = [
        make_record(more, 1.5, 40.0),
        make_record(fewer, 2.5, 30.0),
        make_record(same, 1.0, None),  # all of the steps: identical, and no point of the line
        make_record(ours, 2.0, 38.0),
        make_record(worse, 2.25, 30.5),
        make_record(faster, 3.0, 38.0),
    ]
    result = make_result([more, fewer, same, ours, worse, faster], records, added={ours.name: 4096})
    rows = {row["method"]: row for row in result["summary"]}
    assert [row["family"] for row in rows.values()] == ["plain", *["fewer steps"] * 3, *["hindsight"] * 3]
    assert rows[ours.name]["margin_db"] == 3.0
    assert rows[worse.name]["margin_db"] == -2.0
    assert rows["plain"]["margin_db"] is rows[same.name]["margin_db"] is None
    assert rows[faster.name]["margin_db"] is None  # fewer steps were not run that fast
    alone = make_result([ours], [make_record(ours, 2.0, 38.0)])
    assert alone["summary"][1]["margin_db"] is None
    assert rows[ours.name]["memory_added_bytes"] == 4096


def test_a_failure_is_kept_and_makes_no_row(make_result: Make, make_record: Make, made_up: Any) -> None:
    ours, peer = made_up["ours"], made_up["peer"]
    result = make_result([ours, peer], [make_record(ours)], failures={peer.name: "KeyError: 'x'"})
    assert result["methods"][peer.name]["failure"] == "KeyError: 'x'"
    assert [row["method"] for row in result["summary"]] == ["plain", ours.name]


def test_a_result_goes_through_its_file(make_result: Make, make_record: Make, made_up: Any, tmp_path: Path) -> None:
    ours, peer = made_up["ours"], made_up["peer"]
    result = make_result([ours, peer], [make_record(ours, 2.0, 41.0), make_record(peer, 2.0, 40.0)])
    (tmp_path / "results.json").write_text(json.dumps(result))
    assert load(tmp_path / "results.json") == result
    assert result["format"] == FORMAT


def test_a_file_of_before_is_read(make_result: Make, make_record: Make, made_up: Any, tmp_path: Path) -> None:
    result = make_result([made_up["ours"]], [make_record(made_up["ours"])])
    for record in result["records"]:
        record["adherence"] = 1.0
    (tmp_path / "results.json").write_text(json.dumps(result))
    assert load(tmp_path / "results.json") == result
    result["records"][0]["adherance"] = 1.0
    (tmp_path / "results.json").write_text(json.dumps(result))
    with pytest.raises(ResultsError, match=r"holds a record that cannot be read: .*'adherance'"):
        load(tmp_path / "results.json")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is no results file: it is not JSON"),
        ("[]", "is no results file of `mixcache bench`"),
        ('{"format": 1, "records": []}', "is no results file of `mixcache bench`"),
        ('{"format": 2, "methods": {}, "records": []}', "has format 2, and this mixcache knows 1 at most; use a newer"),
        ('{"format": 1, "methods": {}, "records": [{"method": "a"}]}', "holds a record that cannot be read: .*prompt"),
        ('{"format": 1, "methods": {}, "records": ["a"]}', "holds a record that cannot be read"),
        ('{"format": 1, "methods": {}, "records": null}', "holds a record that cannot be read"),
    ],
)
def test_a_file_that_is_no_result(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "results.json").write_text(text)
    with pytest.raises(ResultsError, match=message):
        load(tmp_path / "results.json")


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ResultsError, match="cannot be read: No such file"):
        load(tmp_path / "results.json")
    (tmp_path / "binary.json").write_bytes(b"\xff\xfe")
    with pytest.raises(ResultsError, match="is not JSON"):
        load(tmp_path / "binary.json")
