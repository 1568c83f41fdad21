"""The README shows what docs/results holds, and nothing else."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest

from mixcache.bench.families import GROUPS, methods_of
from mixcache.bench.methods import Method
from mixcache.bench.page import markdown
from mixcache.bench.records import Record
from mixcache.bench.results import load
from studies.easy import clips_at
from studies.hard_page import OURS
from studies.readme import (
    BEGIN,
    END,
    PAGE,
    RUNS,
    TARGETS,
    failures,
    filled,
    how_measured,
    machine_of,
    measured,
    page,
    rows_of_readme,
    targets_page,
    told_of,
    told_of_word,
    words,
)

ROOT = Path(__file__).parents[2]
Build = Callable[..., Any]


@pytest.fixture
def three_clips(made_up: dict[str, Method], make_record: Callable[..., Record], make_result: Build) -> dict[str, Any]:
    """A peer at two settings and ours at one, on three captions, of which ours leaves one as it is."""

    def clips(method: Method, speedup: float, *psnrs: float | None) -> list[Record]:
        return [make_record(method, speedup, psnr, prompt=f"p{number}") for number, psnr in enumerate(psnrs)]

    peer = made_up["peer"]
    slower, faster = (replace(peer, setting=f"threshold {threshold}") for threshold in (0.1, 0.2))
    records = [
        *clips(slower, 1.6, 60.0, 50.0, 40.0),
        *clips(faster, 2.4, 50.0, 20.0, 50.0),
        *clips(made_up["ours"], 2.0, 70.0, None, 60.0),
    ]
    return make_result([slower, faster, made_up["ours"]], records)


def test_the_section_is_put_between_the_markers() -> None:
    assert filled(f"a\n{BEGIN}\nold\n{END}\nb", "new") == f"a\n{BEGIN}\nnew\n{END}\nb"
    with pytest.raises(ValueError, match="lacks"):
        filled("no markers", "new")


def test_a_reason_is_said_once_for_all_settings_of_a_family() -> None:
    run = {
        "methods": {
            "plain": {"family": "plain", "failure": None},
            "a, 1": {"family": "a", "failure": "ValueError: no"},
            "a, 2": {"family": "a", "failure": "ValueError: no"},
            "a, 3": {"family": "a", "failure": None},
            "b, 1": {"family": "b", "failure": None, "when_idle": "nobody tells it"},
        },
        "summary": [
            {"family": "plain", "ideal": 1.0, "speedup": 1.0},
            {"family": "a", "ideal": 1.2, "speedup": 1.6},
            {"family": "b", "ideal": 1.0, "speedup": 1.0},
            {"family": "c", "ideal": 1.2, "speedup": 1.1},
            {"family": "c", "ideal": 1.3, "speedup": 1.25},
        ],
    }
    assert failures(run) == [
        "",
        "- b, 1 of 1 settings: never fires: everything is computed (nobody tells it)",
        "- a, 2 of 3 settings: cannot be run: ValueError: no",
        "- c: at most 1.25x",
    ]
    assert failures({"methods": {"plain": {"family": "plain", "failure": None}}, "summary": []}) == []


def test_runs_of_two_machines_are_not_put_side_by_side() -> None:
    machine = {"device": "a CPU", "threads": "1", "cores": "2"}
    versions = {"torch": "2", "diffusers": "0.42", "cache-dit": "1"}
    run = {"machine": machine, "versions": versions, "source": "abc"}
    assert machine_of({"one": run, "two": run}) == (
        "a CPU, 1 of 2 cores for each; torch 2, diffusers 0.42, cache-dit 1"
    )
    with pytest.raises(ValueError, match="of different machine, so they cannot stand side by side: one: "):
        machine_of({"one": run, "two": run | {"machine": machine | {"device": "another"}}})


def test_a_clip_between_two_settings_lies_on_the_line_between_its_own_two_clips(three_clips: dict[str, Any]) -> None:
    family = "first-block-cache"
    assert clips_at(three_clips, family, 2.0) == pytest.approx([55.0, 35.0, 45.0])
    assert clips_at(three_clips, family, 1.5) == [60.0, 50.0, 40.0]  # the slowest serves whoever asks for less
    assert clips_at(three_clips, family, 2.4) == [50.0, 20.0, 50.0]
    assert clips_at(three_clips, family, 2.5) == []
    assert told_of(three_clips, family, 2.0) == "45.0 / 35.0"
    assert told_of(three_clips, family, 2.0, with_median=True) == "45.0 / 45.0 / 35.0"
    assert told_of(three_clips, family, 3.0) == "–"


def test_a_clip_that_is_the_plain_one_is_no_lowest(three_clips: dict[str, Any]) -> None:
    assert clips_at(three_clips, "hindsight", 2.0) == [70.0, 60.0]
    assert told_of(three_clips, "hindsight", 2.0) == "65.0 / 60.0"


def test_the_readmes_table_has_each_model_and_family_at_each_speedup() -> None:
    values = {0.5: [[0.5, 40.0], [0.5, 30.0]], 0.25: [[0.25, 20.0], [0.25, 10.0]]}
    methods = [{"family": OURS, "name": f"ours {share}", "values": clips} for share, clips in values.items()]
    found = {"a": {"model": "small", "half": 25.0, "bfloat16": 40.0, "methods": methods}}
    (row,) = rows_of_readme(found)
    assert row == {
        "model": "small",
        "method": OURS,
        "1.5x": "–",
        "2x": "30.0 / 31.0 / 35.0",
        "2.5x": "23.6 / 24.6 / 28.6",
        "3x": "18.3 / 19.3 / 23.3",
    }


def test_runs_of_other_captions_are_not_put_in_one_table(three_clips: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="of 2 sets of captions, so they cannot stand in one table"):
        how_measured({"one": three_clips, "two": three_clips | {"prompts": ["another"]}})


@pytest.mark.parametrize("run", RUNS)
def test_the_mean_that_is_told_is_that_of_the_clips_beside_it(run: str) -> None:
    """But where a clip is the plain one, and has no PSNR."""
    result = load(ROOT / "docs" / "results" / run / "results.json")
    num_clips, num_compared = len(result["prompts"]), 0
    for family, at in result["at"].items():
        for speedup in (1.5, 2.0, 3.0):
            clips = clips_at(result, family, speedup)
            assert bool(clips) == (at[f"{speedup:g}"] is not None)
            if len(clips) == num_clips:
                assert fmean(clips) == pytest.approx(at[f"{speedup:g}"])
                num_compared += 1
    assert num_compared >= 30


@pytest.mark.parametrize("run", RUNS)
def test_every_method_has_a_row_in_every_run_measured_or_with_the_reason_why_not(run: str) -> None:
    result = load(ROOT / "docs" / "results" / run / "results.json")
    num_steps = result["arguments"]["num_inference_steps"]
    families = {method.family for name in GROUPS["all"] for method in methods_of(name, num_steps, "")}
    recorded = {fact["family"] for fact in result["methods"].values()}
    # the runs are older than these, and have what `hold` came in place of
    assert families - recorded <= {"hold", "spectrum"}
    assert recorded - families <= {"planned"}
    measured_methods = {row["method"] for row in result["summary"]}
    assert all(fact["failure"] for name, fact in result["methods"].items() if name not in measured_methods)


def test_the_readme_holds_the_figures_of_the_results_folder() -> None:
    readme = (ROOT / "README.md").read_text()
    assert filled(readme, measured(ROOT / "docs" / "results")) == readme


def test_how_fast_holds_the_figures_of_words_and_wishes() -> None:
    page_ = (ROOT / "docs" / "how-fast.md").read_text()
    assert filled(page_, words(ROOT / "docs" / "results")) == page_
    assert "| quality high |" in page_
    assert "| speedup 2 |" in page_


def test_a_word_is_told_of_all_settings_of_a_model_that_have_the_steps_for_it() -> None:
    def setting(**decibels: float) -> dict[str, Any]:
        return {"methods": [{"name": f"hold, {word}", "values": [[0.5, db, 1.0]]} for word, db in decibels.items()]}

    fast, wish = "quality fast", "speedup 3"
    settings = {"wan-30": setting(**{fast: 40.0, wish: 30.0}), "hunyuan-12": setting(**{fast: 20.0})}
    assert told_of_word(settings, f"hold, {fast}") == "2.00x: 20.0 / 22.0 / 30.0"
    assert told_of_word(settings, f"hold, {wish}") == "2.00x: 30.0 / 30.0 / 30.0"  # 12 steps do not reach it
    assert told_of_word(settings | {"wan-50": setting(**{fast: 1.0})}, f"hold, {wish}") == "–"


def test_the_page_of_results_holds_what_follows_from_them() -> None:
    folder = ROOT / "docs" / "results"
    assert page(folder) == (folder / PAGE).read_text()


def test_the_page_of_targets_holds_what_follows_from_the_results() -> None:
    folder = ROOT / "docs" / "results"
    assert targets_page(folder) == (folder / TARGETS).read_text()


@pytest.mark.parametrize(
    "path", sorted((ROOT / "docs" / "results").glob("*/results.json")), ids=lambda path: path.parent.name
)
def test_the_tables_beside_the_results_follow_from_them(path: Path) -> None:
    assert markdown(load(path)) == path.with_name("results.md").read_text()
