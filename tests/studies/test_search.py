"""The search for the peers' settings: what is kept of what was tried, and where."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mixcache.bench.families import select
from mixcache.bench.peers import PEERS, peer
from mixcache.bench.peers.peer import FALLBACK, SETTINGS
from studies import search
from studies.grids import GRIDS, every


def test_the_front_is_thinned_to_the_wanted_speedups() -> None:
    beaten, failed = ({"threshold": 9}, [1.9, 30.0]), ({"threshold": 8}, None)
    front = [({"threshold": n}, [1.3 + 0.1 * n, 60.0 - n]) for n in range(8)]
    chosen = search.best_of([beaten, failed, *reversed(front)])
    assert [options["threshold"] for options, _ in chosen] == [1, 4, 7]  # 1.4, 1.7 and 2.0, which is all there is


def test_of_a_family_that_gets_nowhere_evenly_spread_settings_are_chosen() -> None:
    front = [({"threshold": number}, [1 + number / 20, 40.0 - number]) for number in range(1, 7)]
    chosen = search.best_of(front)
    assert [options["threshold"] for options, _ in chosen] == [1, 3, 6]  # 1.05, 1.15 and 1.3


def test_nothing_is_chosen_where_everything_fails() -> None:
    assert search.best_of([({"threshold": 1}, None)]) == []


def test_settings_are_kept_one_on_a_line(tmp_path: Path) -> None:
    path = tmp_path / "settings.json"
    path.write_text(json.dumps({"A": {"many": {"x": [{"threshold": 1, "pair": [1, 2]}]}}}))
    search.keep("A", "many", "y", [{"threshold": 2}], path)
    search.keep("B", "few", "x", [{}], path)
    settings = json.loads(path.read_text())
    assert settings["A"]["many"] == {"x": [{"threshold": 1, "pair": [1, 2]}], "y": [{"threshold": 2}]}
    assert settings["B"] == {"few": {"x": [{}]}}
    assert '    {"threshold": 1, "pair": [1, 2]}\n' in path.read_text()


def test_the_file_is_as_the_search_writes_it() -> None:
    assert SETTINGS.read_text() == search.written(json.loads(SETTINGS.read_text())) + "\n"
    for lengths in json.loads(SETTINGS.read_text()).values():
        for families in lengths.values():
            assert set(families) <= set(PEERS)


@pytest.mark.parametrize("family", PEERS)
def test_every_setting_of_a_grid_is_a_method(family: str) -> None:
    names = [PEERS[family].make(50, **options).name for options in GRIDS[family]]
    assert len(set(names)) == len(names) > 10


def test_a_class_of_transformers_has_settings_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    family, path = "first-block-cache", tmp_path / "settings.json"
    path.write_text(json.dumps({FALLBACK: {"many": {family: [{"threshold": 0.5}]}}}))
    search.keep("Other", "many", family, [{"threshold": 0.25}], path)
    monkeypatch.setattr(peer, "SETTINGS", path)
    assert [method.setting for method in select([family], 50, "Other")] == ["threshold 0.25"]
    assert [method.setting for method in select([family], 50, "Unknown")] == ["threshold 0.5"]
    assert [method.setting for method in select([family], 50)] == ["threshold 0.5"]


def test_a_search_keeps_what_fires_and_goes_on_where_it_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    family, path = "first-block-cache", tmp_path / "settings.json"
    path.write_text("{}")
    monkeypatch.setattr(search, "SETTINGS", path)
    monkeypatch.setitem(GRIDS, family, every(threshold=(1e-9, 10.0)))
    arguments = ["--steps", "4", "--families", family, "--num-prompts", "1", "--work", str(tmp_path)]
    search.main(arguments)
    assert json.loads(path.read_text()) == {FALLBACK: {"few": {family: [{"threshold": 10.0}]}}}
    assert "first-block-cache {'threshold': 10.0}: " in capsys.readouterr().out
    monkeypatch.setattr(search.Search, "_measure", lambda *args: pytest.fail("measured again"))
    search.main(arguments)
