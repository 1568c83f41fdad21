"""The variant that a test is about, built once in each module; and `--support-table FILE`, which writes what the suite
found as the table of the documentation."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conformance.variant import Variant
from conformance.variants import VARIANTS, Built

COLUMNS = {
    "bit_identical": "computed, bit-identical",
    "definition_says[step": "step",
    "definition_says[cfg": "cfg",
    "block_runs": "block",
    "identical_inputs": "block at equal inputs",
    "nothing_for_the_next": "nothing left over",
    "stays_the_same": "right where nothing changes",
    "guidance_that_changes": "changing guidance corrected",
    "writes_to_after_a_step": "spoilt tensors",
    "in_the_middle_of_another": "runs in turn",
    "copy_of_an_enabled": "plain copies",
    "end_of_a_run_is_seen": "ends at once",
}
CORRECTED = {"corrected": "cached steps corrected"}
BESIDE = {
    "first_block_cache_runs": "FirstBlockCache runs",
    "first_block_cache_right": "FirstBlockCache is right",
    "first_block_cache_clean": "FirstBlockCache is clean",
}
MARKS = {"passed": "yes", "skipped": "–", "failed": "**no**"}
WORST_LAST = ("–", "yes", "**no**")
"""Of several outcomes that share a cell, the last of these is told."""
HEAD = """# What is supported

Written by `make support` from the outcome of the conformance suite (`tests/conformance`): every pipeline below is the
real diffusers class with every component, built tiny from config with random weights, and called as a user calls it.
What the columns mean:

- *computed, bit-identical*: attached and computing everything, and detached again, it gives the bits of the plain
  pipeline;
- *step*, *cfg*, *block*: the granularity leaves out exactly the runs that its definition says; for step and cfg the
  clip is that of an independent slow implementation of the definition;
- *block at equal inputs*: a span left out at the inputs at which it was computed gives the computed output;
- *cached steps corrected*: the scheduler takes cached steps again once the next computed one is known, all of them
  between two computed ones, and leaves nothing of that behind; or why not, such as a class of schedulers that draws
  noise;
- *nothing left over*: runs with another prompt and size, and a run broken off half way, change nothing in the next;
- *right where nothing changes*: of a model that gives each branch its first answer again and again, the cached clip is
  the plain one within 1e-3;
- *changing guidance corrected*: where the guidance scale is another at each step, a clip whose cached steps were taken
  again is no farther from the plain one of the same scales than a clip whose cached steps were not;
- *spoilt tensors*: what the scheduler was given is overwritten after each of its steps, where the plain clip bears
  that, and the cached clip stays as it is, to the bit;
- *runs in turn*: a whole run of a second pipeline on the same transformer, in the middle of a run of the first; both
  clips are those made alone;
- *plain copies*: `copy` and `deepcopy` of an enabled pipeline and `pickle` of its scheduler in mid-run are plain, and
  give the plain clip;
- *ends at once*: as soon as the pipeline has returned, or Ctrl-C has broken it off, all steps are in the summary and
  nothing is held;
- "–": there is nothing to ask here: no unconditional branch, because guidance is embedded or off; no scheduler that the
  pipeline calls for itself, or none whose steps can be corrected; a guidance scale that is read once, or none;
- "computed": calls of this variant do not say enough to tell them apart, so that such steps are computed in full.

The last three columns are about diffusers' own FirstBlockCache on the same pipelines, attached to every transformer by
`enable_cache`, or by `apply_first_block_cache` where the model has no such method. A "yes" is said only where the count
of the blocks that ran shows that some were left out:

- *FirstBlockCache runs*: it can be attached, a clip gets done, and blocks are left out; else the next two are empty;
- *FirstBlockCache is right*, while nothing goes wrong: blocks left out at the inputs at which they were computed give
  the computed output, within the tolerance of our own check; at a threshold of 0, where blocks are left out only where
  the first block's residual is the very same, the clip is the plain one within 1e-3; no branch is served from another's
  cache; and a run with another prompt and size changes nothing in the next;
- *FirstBlockCache is clean*: a run with another prompt that an exception breaks off half way changes nothing in the
  next. The threshold is infinite here, so that whatever is still cached is reused; at a smaller one it depends on the
  two videos whether the old cache passes for the new one's.

"""
SUMMARY = """
Of {rows} variants, mixcache passes all of its checks on {passed}. FirstBlockCache can be attached and run on {runs}, is
right on {right} of these while nothing goes wrong, and is clean after an exception on {clean}.
"""


@pytest.fixture(scope="module")
def variant(request: pytest.FixtureRequest) -> Variant:
    return VARIANTS[request.param]


@pytest.fixture(scope="module")
def built(variant: Variant) -> Built:
    return Built.of(variant)


@pytest.fixture
def pipeline(built: Built, variant: Variant, record_property: Callable[[str, object], None]) -> Any:
    record_property("pipeline", type(built.pipeline).__name__)
    record_property("variant", variant.name)
    return built.pipeline


@pytest.fixture
def plain(built: Built) -> Any:
    return built.plain


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--support-table", type=Path, help="write the table of supported pipelines to this file")


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--support-table") and not hasattr(config, "workerinput"):  # of several processes, one writes
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
            row.update((key, said[key]) for key in (*CORRECTED, *BESIDE) if key in said)
            for key, title in COLUMNS.items():
                if key in report.nodeid:
                    row[title] = max(row.get(title, "–"), MARKS[report.outcome], key=WORST_LAST.index)

    def pytest_sessionfinish(self) -> None:
        from conformance.variants import VARIANTS

        titles = [*COLUMNS.values(), *CORRECTED.values(), *BESIDE.values()]
        lines = [f"| pipeline | variant | {' | '.join(titles)} |", f"|{' --- |' * (len(titles) + 2)}"]
        order = {name: place for place, name in enumerate(VARIANTS)}  # processes report in any order
        for (pipeline, variant), row in sorted(self.cells.items(), key=lambda cell: order[cell[0][1]]):
            cells = [row.get(title, "computed") for title in COLUMNS.values()]
            cells += [row.get(key, "") for key in (*CORRECTED, *BESIDE)]
            lines.append(f"| {pipeline} | {variant} | {' | '.join(cells)} |")
        refused = [f"- `{name}`: {reason}" for name, reason in sorted(self.refused.items())]
        text = (
            HEAD
            + "\n".join(lines)
            + "\n"
            + self.summary()
            + "\n## Refused\n\n`enable` refuses these, with the reason:\n\n"
            + "\n".join(refused)
        )
        self.path.write_text(text + "\n")

    def summary(self) -> str:
        rows = list(self.cells.values())
        always = [COLUMNS["bit_identical"], COLUMNS["nothing_for_the_next"]]
        passed = [
            row for row in rows if all(row.get(title) == "yes" for title in always) and "**no**" not in row.values()
        ]
        said = {key.rpartition("_")[2]: sum(row.get(key) == "yes" for row in rows) for key in BESIDE}
        return SUMMARY.format(rows=len(rows), passed=len(passed), **said)
