"""The README shows what docs/results holds, and nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest

from mixcache.bench.readme import BEGIN, END, filled, measured

ROOT = Path(__file__).parents[2]


def test_the_section_is_put_between_the_markers() -> None:
    assert filled(f"a\n{BEGIN}\nold\n{END}\nb", "new") == f"a\n{BEGIN}\nnew\n{END}\nb"
    with pytest.raises(ValueError, match="lacks"):
        filled("no markers", "new")


def test_the_readme_holds_the_figures_of_the_results_folder() -> None:
    readme = (ROOT / "README.md").read_text()
    assert filled(readme, measured(ROOT / "docs" / "results")) == readme
