"""The page of the hard settings, from made-up clips."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from mixcache.bench.families import select
from mixcache.bench.peers import PEERS
from studies.hard_page import (
    FIXED,
    METHODS,
    OURS,
    at,
    bars,
    cadence_rows,
    caption_rows,
    family_of,
    is_in_reach,
    limit_rows,
    main,
    number,
    page,
    picture,
    pooled_rows,
)
from studies.hard_search import CHOSEN


def setting(*methods: tuple[str, float, list[float]]) -> dict[str, Any]:
    return {
        "model": "small",
        "half": 25.0,
        "bfloat16": 40.0,
        "change": 0.05,
        "plain_adherence": 0.9,
        "methods": [
            {"family": family, "name": f"{family} {share}", "values": [(share, psnr, 0.8) for psnr in decibels]}
            for family, share, decibels in methods
        ],
    }


@pytest.mark.parametrize(("num_steps", "wishes"), [(12, {1.5, 2.0, 2.5}), (50, {1.5, 2.0, 2.5, 3.0, 3.5})])
def test_a_wish_that_so_many_steps_do_not_allow_is_left_out(num_steps: int, wishes: set[float]) -> None:
    reached = [method for method in select(METHODS, num_steps) if is_in_reach(method, num_steps)]
    assert {m.settings["speedup"] for m in reached if "speedup" in m.settings} == wishes
    assert {m.settings["quality"] for m in reached if "quality" in m.settings} == {"high", "balanced", "fast"}


def test_clips_between_two_settings_lie_on_a_line_in_the_log() -> None:
    two = setting(("ours", 0.98, [50.0, 40.0]), ("ours", 0.25, [30.0, 20.0]))
    share = math.log(2.0 * 0.98) / math.log(0.98 / 0.25)
    assert at(two, "ours", 2.0) == pytest.approx([50.0 - 20 * share, 40.0 - 20 * share])
    assert at(two, "ours", 3.95) == [30.0, 20.0]
    assert at(two, "ours", 5.0) is None
    assert at(two, "theirs", 2.0) is None


def test_settings_of_a_model_are_taken_together() -> None:
    found = {"a": setting((OURS, 0.5, [50.0, 29.0])), "b": setting((OURS, 0.5, [40.0, 42.0]))}
    (row,) = pooled_rows(found)
    assert (row["at"], row["settings"], row["lowest"], row["median"]) == ("2x", "2 of 2", "29.0", "41.0")
    assert row["under 30 dB"] == "25%"
    # where ours does not reach a speed-up, a setting is left out, and said to be
    (row,) = pooled_rows({**found, "c": setting((OURS, 1.0, [50.0, 50.0]))})
    assert row["settings"] == "2 of 3"
    text = page(found, 2)
    assert "### a: half 25.0, floor 40.0" in text
    assert f"| {OURS} 0.5 | 2.00x | 29.0 |" in text
    assert "| a | 25.0 | 40.0 | yes | 0.050 | 90% |" in text


def test_one_limit_for_all_clips_is_judged_beside_a_wish() -> None:
    found = {
        "a": setting((FIXED, 0.5, [45.0, 44.0]), (OURS, 0.5, [35.0, 34.0]), ("teacache", 0.5, [40.0, 39.0])),
        "b": setting((FIXED, 1.0, [50.0, 50.0]), (OURS, 0.5, [35.0, 34.0]), ("teacache", 0.5, [40.0, 39.0])),
    }
    (row,) = bars(found, FIXED)
    assert row["settings"] == "1 of 2"
    assert row["median"] == "+5.0 dB: met"
    (row,) = bars(found)
    assert row["settings"] == "2 of 2"
    assert row["median"] == "-5.0 dB: missed"


def test_the_best_peer_is_taken_for_each_figure_alone() -> None:
    found = {
        "a": setting(
            (OURS, 0.5, [45.0, 35.0, 34.0]),
            ("teacache", 0.5, [50.0, 25.0, 20.0]),
            ("mag-cache", 0.5, [36.0, 33.0, 32.0]),
            ("every_nth", 0.5, [60.0, 60.0, 60.0]),
        )
    }
    (row,) = bars(found)
    assert row["under 30 dB"] == "0%, best peer 0%: met"
    assert row["tenth percentile"] == "+2.0 dB: met"
    assert row["median"] == "+2.0 dB: met"
    found["a"]["methods"][0]["values"] = [(0.5, psnr, 0.8) for psnr in (45.0, 34.9, 29.0)]
    (row,) = bars(found)
    assert row["under 30 dB"] == "33%, best peer 0%: missed"
    assert row["tenth percentile"] == "-2.0 dB: missed"
    assert row["median"] == "+1.9 dB: missed"


def test_the_papers_policy_is_another_line_where_it_is_corrected() -> None:
    asked = ("mixcache", "mixcache:corrector=true", "mixcache:granularities=step:corrector=true", "hold:speedup=2")
    methods = select((*asked, "mixcache:predictor=line"), 20)
    families = {method.name: family_of(method) for method in methods}
    assert set(families.values()) == {
        "mixcache",
        "mixcache, corrected",
        "mixcache, step alone, corrected",
        "mixcache, ahead",
        OURS,
    }
    assert all(family == "mixcache" for name, family in families.items() if "interval 6" in name)


def test_captions_are_judged_by_the_wish_nearest_to_2x() -> None:
    found = {"a": setting((OURS, 0.48, [40.0, 40.0]), (OURS, 0.7, [50.0, 50.0]))}
    (row,) = caption_rows(found)
    assert (row["method"], row["speed-up"], row["plain"]) == (f"{OURS} 0.48", "2.08x", "90.0%")
    assert row["cached"] == "80.0%: missed"
    found["a"]["plain_adherence"] = 0.809
    (row,) = caption_rows(found)
    assert row["cached"] == "80.0%: met"


def test_a_wish_is_held_against_one_limit_of_its_work_and_a_cadence_against_both() -> None:
    found = {
        "a": setting(
            (OURS, 0.5, [30.0, 40.0, 50.0]),
            (FIXED, 0.5, [30.4, 41.0, 50.0]),
            ("every_nth step", 0.5, [31.0, 38.0, 39.0]),
        )
    }
    found["a"]["methods"][0]["name"] = "hold, speedup 2"
    (row,) = limit_rows(found)
    assert (row["wished 2"], row["wished 3"]) == ("2.00x: -0.4 / -1.0: missed", "")
    (row,) = cadence_rows(found)
    assert (row["wished"], row["one limit"]) == ("-1.0 / -0.4 / +2.0: missed", "-0.6 / +0.1 / +3.0: missed")


def test_the_picture_is_of_four_figures() -> None:
    found = {"a": setting((OURS, 0.5, [50.0, 29.0]), ("teacache", 0.5, [40.0, math.inf]))}
    assert picture(found).startswith(b"\x89PNG")
    assert [number(text) for text in ("31.2", "12%")] == [31.2, 12.0]
    assert math.isnan(number("identical"))


def test_what_is_kept_stays_as_it_is(tmp_path: Path) -> None:
    """Nothing is measured: every method that is asked for stands there, and one that is not asked for stays."""
    chosen = json.loads(CHOSEN.read_text())["wan-30"]
    peers = [PEERS[family].make(30, **options) for family, found in chosen.items() for options in found]
    methods = [*select(("hold:speedup=2",), 30), *peers]
    kept = setting(*((family_of(method), 0.5, [50.0, 29.0]) for method in methods), ("another", 0.5, [40.0, 41.0]))
    for row, method in zip(kept["methods"], methods, strict=False):
        row["name"] = method.name
    (tmp_path / "hard.json").write_text(json.dumps({"wan-30": kept}))
    asked = ["--settings", "wan-30", "--methods", "hold:speedup=2", "--num-prompts", "2", "--work", str(tmp_path)]
    main([*asked, "--keep", "--out", str(tmp_path)])
    assert json.loads((tmp_path / "hard.json").read_text()) == json.loads(json.dumps({"wan-30": kept}))
    assert "another 0.5" in (tmp_path / "hard.md").read_text()


def test_what_is_of_another_number_of_captions_or_nowhere_is_not_kept(tmp_path: Path) -> None:
    (tmp_path / "hard.json").write_text(json.dumps({"wan-30": setting((OURS, 0.5, [50.0, 29.0]))}))
    with pytest.raises(SystemExit):
        main(["--settings", "wan-30", "--keep", "--out", str(tmp_path)])  # of two captions, not 16
    with pytest.raises(SystemExit):
        main(["--keep"])
