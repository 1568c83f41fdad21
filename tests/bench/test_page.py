"""The Markdown and the page of a made-up result."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mixcache.bench.methods import policy_method
from mixcache.bench.page import (
    BY_WORK,
    NEVER_FIRES,
    best_lines,
    case_line,
    draw,
    html,
    kind_of,
    level_rows,
    markdown,
    noise_line,
    pace_line,
    rows_of,
    side_by_side,
    write,
)
from mixcache.report.filmstrip import Strip

Make = Callable[..., Any]
NEVER = policy_method("mixcache", first_interval=1)


@pytest.fixture
def result(make_result: Make, make_record: Make, made_up: Any) -> dict[str, Any]:
    """All kinds, one that never fires, and one that failed with a reason that is markup."""
    measured = [method for kind, method in made_up.items() if kind != "peer"]
    points = ((2.1, 41.0), (2.0, 43.0), (2.2, 36.0), (1.5, 40.0), (3.0, 28.0))
    records = [make_record(method, *point) for method, point in zip(measured, points, strict=True)]
    records.append(make_record(NEVER, 0.98, None, ideal_speedup=1.0))
    return make_result(
        [*measured, made_up["peer"], NEVER],
        records,
        failures={made_up["peer"].name: "TypeError: <b>no</b> | hooks"},
        added={made_up["ours"].name: 3 * 2**20},
    )


def rows_by_method(result: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {row["method"]: row for row in rows_of(result)}


def test_a_method_that_never_fires_says_why(make_result: Make, make_record: Make) -> None:
    idle = replace(NEVER, when_idle="nobody tells it the noise level")
    result = make_result([idle], [make_record(idle, 0.98, None, ideal_speedup=1.0)])
    assert rows_by_method(result)[idle.name]["note"] == f"{NEVER_FIRES} (nobody tells it the noise level)"


def test_the_page_names_the_families_without_a_setting_near_2x(result: dict[str, Any], tmp_path: Path) -> None:
    strips, too_far = side_by_side(result, lambda name: tmp_path / name)
    assert strips == []  # no frames are there
    assert too_far == ["fewer steps", "mixcache"]
    assert f"Without such a one: {', '.join(too_far)}." in html(result, [Strip(label="plain", uris=())], too_far)


def test_the_table_has_a_row_for_every_method(result: dict[str, Any], made_up: Any) -> None:
    rows = rows_by_method(result)
    first, *_, last = rows
    assert first == "plain"
    assert last == made_up["peer"].name  # not measured
    assert rows[made_up["peer"].name] == {"method": made_up["peer"].name, "note": "TypeError: <b>no</b> | hooks"}
    assert rows[made_up["ours"].name]["memory added (MiB), first setting"] == 3.0
    assert rows[made_up["ours"].name]["over fewer steps (dB)"] == pytest.approx(41.0 - 35.2)  # 40 to 28 over 1.5x
    assert rows[made_up["ours"].name]["note"] == ""


def test_notes_tell_of_copies_and_of_what_never_fires(result: dict[str, Any], made_up: Any) -> None:
    rows = rows_by_method(result)
    assert rows[made_up["copied"].name]["note"] == "re-implementation of arXiv 0000.00000"
    assert rows[NEVER.name]["note"] == "never fires: everything is computed"
    assert rows["plain"]["note"] == ""


def test_lpips_has_a_column_where_it_was_measured(make_result: Make, make_record: Make, made_up: Any) -> None:
    ours = made_up["ours"]
    assert "LPIPS" not in rows_of(make_result([ours], [make_record(ours)]))[0]
    assert rows_of(make_result([ours], [make_record(ours, lpips=0.125)]))[1]["LPIPS"] == 0.125


def test_levels_are_sorted_at_2x(result: dict[str, Any]) -> None:
    assert [(row["family"], row["2x"]) for row in level_rows(result)] == [
        ("hold", 43.0),
        ("hindsight", 41.0),
        ("copied", 36.0),
        ("fewer steps", pytest.approx(36.0)),
    ]


def test_the_best_at_each_speedup_are_told_in_a_line(result: dict[str, Any]) -> None:
    assert best_lines(result) == [
        "at 1.5x   hold 43.0 dB, hindsight 41.0 dB, fewer steps 40.0 dB, copied 36.0 dB",
        "at 2x     hold 43.0 dB, hindsight 41.0 dB, fewer steps 36.0 dB, copied 36.0 dB",
        "at 2.5x   fewer steps 32.0 dB",
        "at 3x     fewer steps 28.0 dB",
    ]
    assert best_lines({"at": {}}) == []


def test_levels_by_work(make_result: Make, make_record: Make, made_up: Any) -> None:
    slow, fast = policy_method("hindsight", error=0.001), policy_method("hindsight", error=0.01)
    records = [make_record(slow, 1.4, 60.0, ideal_speedup=1.5), make_record(fast, 1.6, 40.0, ideal_speedup=2.0)]
    result = make_result([slow, fast], records)
    (by_time,), (by_work,) = level_rows(result), level_rows(result, "ideal")
    assert by_time == {"family": "hindsight", "1.5x": pytest.approx(50.0), "2x": None, "2.5x": None, "3x": None}
    assert by_work == {"family": "hindsight", "1.5x": 60.0, "2x": 40.0, "2.5x": None, "3x": None}
    assert f"{BY_WORK}:" in markdown(result)
    assert BY_WORK in html(result, [])


def test_a_noise_floor_far_above_the_lines_is_told_in_words(result: dict[str, Any]) -> None:
    (axes,) = draw(result | {"noise_floor": {"dtype": 40.0, "threads": 900.0}}).axes
    assert axes.get_ylim()[1] < 900
    texts = [text.get_text() for text in axes.texts]
    assert "noise floor: dtype" in texts
    assert "noise floor above what is shown: threads, 900 dB" in texts


def test_the_case_the_pace_and_the_noise_are_told(result: dict[str, Any]) -> None:
    assert case_line(result) == (
        "shapes-wan: 1 prompts, seed 9000, repeats: 1, 50 steps, guidance 5, UniPCMultistepScheduler, "
        "17 frames of 64x64, 2 other prompts for peers that calibrate themselves, torch 2.8, threads 1"
    )
    assert "0.25 s before it (text encoder) and 0.50 s after it (VAE)" in pace_line(result)
    assert "differ by 10.0% in time (median of 1 pairs)" in pace_line(result)
    assert noise_line(result) == (
        "Noise floor, the plain clip against itself: 2 instead of 1 threads: the same to the bit; "
        "bfloat16 autocast instead of float32: 52.2 dB."
    )
    assert noise_line(result | {"noise_floor": {}}) == "No noise floor was measured."


def test_the_markdown_holds_levels_and_rows(result: dict[str, Any], made_up: Any) -> None:
    page = markdown(result)
    assert page.startswith("`mixcache bench --methods all`\n")
    assert "asked for" not in page  # what we set ourselves is not told to whoever measures a model
    failed = next(line for line in page.splitlines() if line.startswith(f"| {made_up['peer'].name} |"))
    assert failed.endswith("| TypeError: <b>no</b> \\| hooks |")
    assert failed.count("–") == 10
    assert page.count("| never fires: everything is computed |") == 1


def test_the_page_is_self_contained(result: dict[str, Any], made_up: Any) -> None:
    page = html(result, [])
    assert re.findall(r"https?://", page) == []
    assert {uri[:10] for uri in re.findall(r'(?:src|href)="([^"]*)"', page)} == {"data:image"}
    assert "<script" not in page
    assert "<b>no</b>" not in page
    assert "&lt;b&gt;no&lt;/b&gt;" in page
    assert "Side by side" not in page
    for method in made_up.values():
        assert method.name in page


def test_everything_is_written_with_frames_of_those_near_2x(
    result: dict[str, Any], made_up: Any, tmp_path: Path
) -> None:
    names = ["plain", *(method.name for method in made_up.values())]
    for index, name in enumerate(names):
        if name != made_up["copied"].name:  # its frames are gone
            np.save(tmp_path / f"{name}.npy", np.full((6, 16, 16, 3), 40 * index, np.uint8))
    write(result, tmp_path, lambda name: tmp_path / f"{name}.npy")
    assert (tmp_path / "results.md").read_text() == markdown(result)
    assert (tmp_path / "quality.png").read_bytes().startswith(b"\x89PNG")
    page = (tmp_path / "report.html").read_text()
    labels = re.findall(r'<span class="label">([^<]*)</span>', page)
    # of fewer steps 1.5x is the nearest, and is 25 % away
    assert labels == ["plain", "hindsight, error 0.01 (2.10x, 41.0 dB)", "hold, speedup 2.0 (2.00x, 43.0 dB)"]
    assert page.count('class="pixelated"') == 3 * 6


def test_a_result_of_nothing_is_written_too(make_result: Make, made_up: Any, tmp_path: Path) -> None:
    """Every method failed, so that not one plain clip was timed."""
    peer = made_up["peer"]
    result = make_result([peer], [], failures={peer.name: "OSError: gone"})
    result |= {"records": [], "summary": [], "pace": []}
    write(result, tmp_path, lambda name: tmp_path / name)
    assert "No clip was measured." in (tmp_path / "results.md").read_text()
    assert "OSError: gone" in (tmp_path / "report.html").read_text()


def test_kinds_are_told_apart(result: dict[str, Any]) -> None:
    kinds = {fact["family"]: kind_of(fact) for fact in result["methods"].values()}
    assert kinds == {
        "hindsight": "ours",
        "hold": "calibrated",
        "copied": "peer",
        "fewer steps": "fewer",
        "first-block-cache": "peer",
        "mixcache": "ours",
    }
