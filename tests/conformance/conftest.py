"""`--support-table FILE` writes what the conformance suite found, as the table of the documentation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

COLUMNS = {
    "bit_identical": "computed, bit-identical",
    "definition_says[step": "step",
    "definition_says[cfg": "cfg",
    "block_runs": "block",
    "identical_inputs": "block at equal inputs",
    "nothing_for_the_next": "nothing left over",
}
MARKS = {"passed": "yes", "skipped": "–", "failed": "**no**"}
HEAD = """# What is supported

Written by `make support` from the outcome of the conformance suite (`tests/conformance`): every pipeline below is the
real diffusers class with every component, built tiny from config with random weights, and called as a user calls it.
What the columns mean:

- *computed, bit-identical*: attached and computing everything, and detached again, it gives the bits of the plain
  pipeline;
- *step*, *cfg*, *block*: the granularity leaves out exactly the runs that its definition says; for step and cfg the
  clip is that of an independent slow implementation of the definition;
- *block at equal inputs*: a span left out at the inputs at which it was computed gives the computed output;
- *nothing left over*: runs with another prompt and size, and a run broken off half way, change nothing in the next;
- "–": there is nothing to leave out here: no unconditional branch, because guidance is embedded or off;
- "computed": calls of this variant do not say enough to tell them apart, so that such steps are computed in full.

"""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--support-table", type=Path, help="write the table of supported pipelines to this file")


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--support-table"):
        config.pluginmanager.register(SupportTable(config.getoption("--support-table")))


class SupportTable:
    """Collects outcomes and writes them at the end."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.cells: dict[tuple[str, str], dict[str, str]] = {}
        self.refused: dict[str, str] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        said: dict[str, Any] = dict(report.user_properties)
        if "refused" in said:
            self.refused[said["pipeline"]] = said["refused"]
        elif "variant" in said and (report.when == "call" or report.outcome != "passed"):
            row = self.cells.setdefault((said["pipeline"], said["variant"]), {})
            for key, title in COLUMNS.items():
                if key in report.nodeid:
                    row[title] = MARKS[report.outcome]

    def pytest_sessionfinish(self) -> None:
        titles = list(COLUMNS.values())
        lines = [f"| pipeline | variant | {' | '.join(titles)} |", f"|{' --- |' * (len(titles) + 2)}"]
        for (pipeline, variant), row in self.cells.items():
            lines.append(f"| {pipeline} | {variant} | {' | '.join(row.get(title, 'computed') for title in titles)} |")
        refused = [f"- `{name}`: {reason}" for name, reason in sorted(self.refused.items())]
        text = (
            HEAD
            + "\n".join(lines)
            + "\n\n## Refused\n\n`enable` refuses these, with the reason:\n\n"
            + "\n".join(refused)
        )
        self.path.write_text(text + "\n")
