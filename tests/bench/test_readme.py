"""The README shows what docs/results holds, and nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest

from mixcache.bench.readme import BEGIN, END, failures, filled, measured

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
            "b, 1": {"family": "b", "failure": None},
        },
        "summary": [{"family": "plain", "ideal": 1.0}, {"family": "a", "ideal": 1.2}, {"family": "b", "ideal": 1.0}],
    }
    assert failures(run) == [
        "",
        "- b, 1 of 1 settings: never fires: everything is computed",
        "- a, 2 of 3 settings: cannot be run: ValueError: no",
    ]
    assert failures({"methods": {"plain": {"family": "plain", "failure": None}}, "summary": []}) == []


def test_the_readme_holds_the_figures_of_the_results_folder() -> None:
    readme = (ROOT / "README.md").read_text()
    assert filled(readme, measured(ROOT / "docs" / "results")) == readme
