"""The bars and levels by arithmetic, and the file read back."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from mixcache.bench.methods import PLAIN, cadence, policy_method
from mixcache.bench.results import FIRST_BLOCK, FORMAT, ResultsError, assemble, bars, load

Make = Callable[..., Any]
MIXCACHE = policy_method("mixcache")
THREE = {"compute": 20, "step": 10, "cfg": 10, "block": 10}


def bars_of(result: Mapping[str, Any], word: str = "") -> dict[str, bool | None]:
    """By text, those that hold a word."""
    return {bar["bar"]: bar["met"] for bar in result["bars"] if word in bar["bar"]}


@pytest.fixture
def at_2x(make_result: Make, make_record: Make, made_up: Any) -> Make:
    """A result of methods that are all measured at 2x, with PSNRs by kind."""

    def build(**psnrs: float) -> dict[str, Any]:
        methods = [made_up[kind] for kind in psnrs]
        return make_result(methods, [make_record(made_up[kind], 2.0, psnr) for kind, psnr in psnrs.items()])

    return build


def test_ours_are_held_against_the_best_peer(at_2x: Make) -> None:
    result = at_2x(ours=41.0, calibrated=41.9, peer=40.0, copied=30.0, **{"fewer steps": 60.0})
    assert bars_of(result, "2x: the best policy without calibration at least 1 dB") == {
        "2x: the best policy without calibration at least 1 dB above the best peer": True
    }
    assert list(bars_of(result, "2x: the best calibrated policy at least 2 dB").values()) == [False]
    measured = [bar["measured"] for bar in result["bars"] if bar["bar"].startswith("2x: the best policy")]
    assert measured[0] == "hindsight 41.0 dB, first-block-cache 40.0 dB"


def test_at_a_speedup_that_one_side_lacks_nothing_can_be_told(
    at_2x: Make, make_result: Make, make_record: Make, made_up: Any
) -> None:
    result = at_2x(ours=41.0, peer=40.0)
    told = {bar["bar"][:15]: (bar["measured"], bar["met"]) for bar in result["bars"] if "2.5x" in bar["bar"]}
    assert set(told.values()) == {("none of ours is that fast", None)}
    slow_peer = make_result(
        [made_up["ours"], made_up["peer"]],
        [make_record(made_up["ours"], 3.0, 30.0), make_record(made_up["peer"], 2.0, 40.0)],
    )
    bar = next(bar for bar in slow_peer["bars"] if bar["bar"].startswith("3x: the best policy"))
    assert (bar["measured"], bar["met"]) == ("hindsight 30.0 dB; no peer is that fast", None)


def test_without_peers_there_is_no_such_bar(at_2x: Make) -> None:
    assert bars_of(at_2x(ours=41.0), "peer") == {}


def test_captions_may_be_wrong_two_percent_more_often(make_result: Make, make_record: Make, made_up: Any) -> None:
    ours = made_up["ours"]
    for adherence, met in ((0.985, True), (0.975, False)):
        result = make_result([ours], [make_record(ours, 2.1, 40.0, adherence=adherence)])
        assert list(bars_of(result, "captions").values()) == [met]


def test_prompts_that_are_no_captions_make_no_bar(make_record: Make, made_up: Any) -> None:
    ours = made_up["ours"]
    records = [make_record(PLAIN, 1.0, None, adherence=None), make_record(ours, adherence=None)]
    survey = {ours.name: {"failure": None, "memory_added_bytes": None}}
    assert bars_of(assemble({}, [ours], survey, records, {}, []), "captions") == {}


def test_wall_clock_is_held_against_the_ideal(make_result: Make, make_record: Make, made_up: Any) -> None:
    ours, never = made_up["ours"], policy_method("mixcache", first_interval=1)
    for ideal, met in ((2.1, True), (2.2, False)):
        result = make_result(
            [ours, never],
            [make_record(ours, 2.0, 40.0, ideal_speedup=ideal), make_record(never, 0.5, None, ideal_speedup=1.0)],
        )
        assert list(bars_of(result, "of the ideal speed-up, median").values()) == [met]


def test_memory_is_the_most_over_a_familys_settings(make_result: Make, make_record: Make, made_up: Any) -> None:
    step = [cadence("step", period, 1) for period in (2, 3)]
    block = cadence("block", 2, 1)
    methods = [*step, block, made_up["peer"]]
    records = [make_record(method) for method in methods]
    for second, met in ((4096, True), (5000, False)):
        added = {step[0].name: second, step[1].name: 100, block.name: 10**9, made_up["peer"].name: 4096}
        result = make_result(methods, records, added=added)
        assert list(bars_of(result, "memory").values()) == [met]
        seen = next(bar["measured"] for bar in result["bars"] if "memory" in bar["bar"])
        assert seen == f"every_nth step, order 1 {second / 1024:.0f} KiB, {FIRST_BLOCK} 4 KiB"
    assert bars_of(make_result(methods, records, failures={made_up["peer"].name: "no"}, added=added), "memory") == {}


def test_block_may_hold_a_tensor_of_tokens_for_each_branch_and_entry(make_result: Make, make_record: Make) -> None:
    methods = [cadence("block", 2, order) for order in (0, 1)]
    added = dict(zip([method.name for method in methods], (1000, 2010), strict=True))
    result = make_result(methods, [make_record(method) for method in methods], added=added)
    assert bars_of(result, "memory") == {}  # in results of before, without the size of such a tensor
    found = [bar for bar in bars(result | {"token_bytes": 1000}) if "token" in bar["bar"]]
    assert [bar["met"] for bar in found] == [True, False]
    assert found[1]["measured"] == "added 2 KiB, such tensors 2 KiB"
    assert found[1]["bar"].startswith("memory added by every_nth block, order 1 at most")


@pytest.mark.parametrize(
    ("change", "missed"),
    [
        ({}, []),
        ({"speedup": 2.2}, ["speed-up between 1.9 and 2.1"]),
        ({"psnr_db": 33.9}, ["PSNR no lower"]),
        ({"ideal_speedup": 2.2}, ["at least 93%"]),
        ({"granularity_counts": THREE | {"cfg": 0}}, ["every granularity"]),
    ],
)
def test_what_is_asked_of_mixcache_with_its_defaults(
    make_result: Make, make_record: Make, made_up: Any, change: dict[str, Any], missed: list[str]
) -> None:
    """Fewer steps have 40 dB at 1.5x and 28 dB at 2.5x, so 34 dB at 2x."""
    more, fewer = made_up["more steps"], made_up["fewer steps"]
    fields = {"speedup": 2.0, "psnr_db": 34.0, "ideal_speedup": 2.0, "granularity_counts": THREE}
    if change.get("speedup"):
        fields |= {"ideal_speedup": 2.2, "psnr_db": 40.0}
    records = [make_record(more, 1.5, 40.0), make_record(fewer, 2.5, 28.0), make_record(MIXCACHE, **fields | change)]
    result = make_result([more, fewer, MIXCACHE], records)
    bars = bars_of(result, "mixcache: ")
    assert len(bars) == 4
    assert [bar for bar, met in bars.items() if not met] == [bar for bar in bars if any(m in bar for m in missed)]
    outside = make_result([MIXCACHE], [make_record(MIXCACHE, **fields | change)])
    assert bars_of(outside, "PSNR no lower") == {
        "mixcache: PSNR no lower than that of fewer plain steps of the same time": None
    }


def test_what_is_asked_of_mixcache_on_a_model_that_it_was_not_tuned_on(make_result: Make, make_record: Make) -> None:
    """Every granularity but those whose own cadence could cache nothing."""
    every = "mixcache: every granularity of the model chosen"
    cadences = {name: cadence(name, 3, 0) for name in ("step", "cfg", "block")}
    unguided = [make_record(cadences[name], granularity_counts={name: 9}) for name in ("step", "block")]
    unguided.append(make_record(cadences["cfg"], granularity_counts={}))

    def bars(speedup: float, counts: dict[str, int], others: list[Any]) -> dict[str, bool | None]:
        mine = make_record(MIXCACHE, speedup, granularity_counts=counts)
        methods = [MIXCACHE, *(m for m in cadences.values() if m.name in {record.method for record in others})]
        return bars_of(make_result(methods, [mine, *others], model="shapes-other"), "mixcache: ")

    met = bars(2.5, {"step": 9, "block": 9}, unguided)
    assert (met["mixcache: speed-up at least 1.7"], met[every]) == (True, True)
    missed = bars(1.6, {"step": 9}, unguided)
    assert (missed["mixcache: speed-up at least 1.7"], missed[every]) == (False, False)
    assert not bars(2.5, {"step": 9, "block": 9}, unguided[:1])[every]


@pytest.mark.parametrize(("speedup", "met"), [(2.09, True), (1.91, True), (2.11, False), (1.89, False)])
def test_a_plan_keeps_what_it_was_asked_for(
    make_result: Make, make_record: Make, made_up: Any, speedup: float, met: bool
) -> None:
    with_more = policy_method("planned", order=2, speedup=2, guard=1.5)
    methods = [made_up["calibrated"], with_more]
    result = make_result(methods, [make_record(method, speedup) for method in methods])
    assert bars_of(result, "asked for") == {
        "planned, speedup 2.0: within 5% of the 2.0x asked for": met,
        "planned, order 2, speedup 2, guard 1.5: within 5% of the 2x asked for": met,
    }


@pytest.mark.parametrize(
    ("psnrs", "speedups", "smooth", "rising"),
    [
        ([60.0 - 2.9 * k for k in range(12)], [1 + 0.1 * k for k in range(12)], True, True),
        ([60.0 - 2.0 * k - 1.1 * (k > 6) for k in range(12)], [1 + 0.1 * k for k in range(12)], False, True),
        ([60.0] * 12, [2.0 - 0.1 * (k == 5) for k in range(12)], True, False),
    ],
)
def test_one_setting_without_a_cliff(
    make_result: Make, make_record: Make, psnrs: list[float], speedups: list[float], smooth: bool, rising: bool
) -> None:
    methods = [policy_method("hindsight", error=0.001 * 1.3**k) for k in range(12)]
    records = [make_record(*found) for found in zip(methods, speedups, psnrs, strict=True)]
    result = make_result(methods[::-1], records)
    assert bars_of(result, "hindsight: ") == {
        "hindsight: from one of 12 values of error to the next at most 3 dB lost": smooth,
        "hindsight: more error is never less work saved": rising,
    }
    assert not bars_of(make_result(methods[1:], records[1:]), "hindsight: ")


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
    records = [
        make_record(more, 1.5, 40.0),
        make_record(fewer, 2.5, 30.0),
        make_record(same, 1.0, None),  # all of the steps: identical, and no point of the line
        make_record(ours, 2.0, 38.0),
    ]
    result = make_result([more, fewer, same, ours], records, added={ours.name: 4096})
    rows = {row["method"]: row for row in result["summary"]}
    assert [row["family"] for row in rows.values()] == ["plain", *["fewer steps"] * 3, "hindsight"]
    assert rows[ours.name]["margin_db"] == 3.0
    assert rows["plain"]["margin_db"] is rows[same.name]["margin_db"] is None
    assert rows[ours.name]["memory_added_bytes"] == 4096


def test_a_failure_is_kept_and_makes_no_row(make_result: Make, make_record: Make, made_up: Any) -> None:
    ours, peer = made_up["ours"], made_up["peer"]
    result = make_result([ours, peer], [make_record(ours)], failures={peer.name: "KeyError: 'x'"})
    assert result["methods"][peer.name]["failure"] == "KeyError: 'x'"
    assert [row["method"] for row in result["summary"]] == ["plain", ours.name]


def test_a_result_goes_through_its_file(at_2x: Make, tmp_path: Path) -> None:
    result = at_2x(ours=41.0, peer=40.0)
    (tmp_path / "results.json").write_text(json.dumps(result))
    assert load(tmp_path / "results.json") == result
    assert result["format"] == FORMAT


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
