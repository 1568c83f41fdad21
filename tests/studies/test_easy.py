"""The default beside the peers, on the same captions."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mixcache.bench.methods import Method
from mixcache.bench.records import Record
from mixcache.bench.results import load
from mixcache.store import write_json
from studies.easy import default_section

Build = Callable[..., Any]


@pytest.fixture
def results(tmp_path: Path, made_up: dict[str, Method], make_record: Callable[..., Record], make_result: Build) -> Path:
    """A folder of two runs on the same two captions: of a peer, and of the default."""

    def run(name: str, method: Method, speedup: float, *psnrs: float) -> None:
        records = [make_record(method, speedup, psnr, prompt=f"p{number}") for number, psnr in enumerate(psnrs)]
        write_json(tmp_path / name / "results.json", make_result([method], records))

    for name in ("toy", "default-toy"):
        (tmp_path / name).mkdir()
    run("toy", made_up["peer"], 2.0, 40.0, 50.0)
    run("default-toy", replace(made_up["ours"], family="hold"), 2.0, 45.0, 49.0)
    return tmp_path


def section(results: Path, *names: str) -> list[str]:
    """Of runs that are all like the peer's."""
    return default_section(results, dict.fromkeys(names, load(results / "toy" / "results.json")))


def test_each_figure_is_held_against_the_best_peer(results: Path) -> None:
    *_, text, _, rows = section(results, "toy")
    assert "below one in 0 of 2 rows" in text.replace("\n", " ")
    assert "| toy | 2x | 45.0 / 47.0 / 47.0 | 40.0 / 45.0 / 45.0 | yes |" in rows
    assert "2.5x" not in rows


def test_the_default_below_a_peer_in_one_figure_is_below_it(results: Path) -> None:
    found = json.loads((results / "toy" / "results.json").read_text())
    better = [record | {"psnr_db": record["psnr_db"] and record["psnr_db"] + 4} for record in found["records"]]
    summary = [row | {"psnr_db": row["psnr_db"] and row["psnr_db"] + 4} for row in found["summary"]]
    write_json(results / "toy" / "results.json", found | {"records": better, "summary": summary})
    *_, text, _, rows = section(results, "toy")
    assert "below one in 2 of 2 rows" in text.replace("\n", " ")
    assert "| toy | 2x | 45.0 / 47.0 / 47.0 | 44.0 / 49.0 / 49.0 | NO |" in rows


def test_other_captions_are_not_put_beside_them(results: Path) -> None:
    path = results / "default-toy" / "results.json"
    write_json(path, json.loads(path.read_text()) | {"prompts": ["another"]})
    with pytest.raises(ValueError, match="default-toy has other prompts than toy"):
        section(results, "toy")


def test_a_run_without_the_default_is_named(results: Path) -> None:
    *_, text, _, _ = section(results, "toy", "other")
    assert text.replace("\n", " ").endswith("below one in 0 of 2 rows. Not measured: other.")
