"""The README shows what docs/results holds, and nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest

from mixcache.bench.families import GROUPS, methods_of
from mixcache.bench.page import markdown
from mixcache.bench.results import load
from studies.readme import BEGIN, END, RUNS, TARGETS, failures, filled, machine_of, measured, targets_page

ROOT = Path(__file__).parents[2]


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


@pytest.mark.parametrize("run", RUNS)
def test_every_method_has_a_row_in_every_run_measured_or_with_the_reason_why_not(run: str) -> None:
    result = load(ROOT / "docs" / "results" / run / "results.json")
    num_steps = result["arguments"]["num_inference_steps"]
    families = {method.family for name in GROUPS["all"] for method in methods_of(name, num_steps, "")}
    assert {fact["family"] for fact in result["methods"].values()} == families
    measured_methods = {row["method"] for row in result["summary"]}
    assert all(fact["failure"] for name, fact in result["methods"].items() if name not in measured_methods)


def test_the_readme_holds_the_figures_of_the_results_folder() -> None:
    readme = (ROOT / "README.md").read_text()
    assert filled(readme, measured(ROOT / "docs" / "results")) == readme


def test_the_page_of_targets_holds_what_follows_from_the_results() -> None:
    folder = ROOT / "docs" / "results"
    assert targets_page(folder) == (folder / TARGETS).read_text()


@pytest.mark.parametrize(
    "path", sorted((ROOT / "docs" / "results").glob("*/results.json")), ids=lambda path: path.parent.name
)
def test_the_tables_beside_the_results_follow_from_them(path: Path) -> None:
    assert markdown(load(path)) == path.with_name("results.md").read_text()
