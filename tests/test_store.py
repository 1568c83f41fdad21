"""What a run goes on from, and files that are written whole."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Any

import pytest

from mixcache.store import OtherCaseError, Store, write_json, write_whole


def test_the_store_measures_once_and_survives_a_torn_line(tmp_path: Path) -> None:
    path = tmp_path / "new" / "study.jsonl"
    assert Store(path).get(["a"], lambda: 1) == 1
    with path.open("a") as file:
        file.write('{"key": "torn')
    store = Store(path)
    assert store.get(["a"], lambda: 2) == 1
    assert store.get(["b"], lambda: 3) == 3
    assert Store(path).get(["b"], lambda: 4) == 3
    with pytest.raises(KeyError):
        store.get(["c"])


def test_values_are_found_by_the_word_of_their_kind(tmp_path: Path) -> None:
    store = Store(tmp_path / "a.jsonl")
    for identity, value in ((["pace", 1], 5), (["record", 1], 6), (["pace", 0], 7)):
        store.keep(identity, value)
    assert Store(store.path).all("pace") == [5, 7]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"seed": 2}, r"^another seed \(1, not 2\)$"),
        ({"new": [1]}, r"^another new \(null, not \[1\]\)$"),
        ({"model": "x" * 100}, r"^another model \(a, not x{77}\.\.\.\)$"),
    ],
)
def test_a_store_is_of_one_case(tmp_path: Path, changed: dict[str, Any], message: str) -> None:
    case = {"model": "a", "seed": 1, "size": (8, 8)}  # a tuple, which JSON gives back as a list
    Store(tmp_path / "a.jsonl").claim(case)
    Store(tmp_path / "a.jsonl").claim(case)
    with pytest.raises(OtherCaseError, match=message):
        Store(tmp_path / "a.jsonl").claim(case | changed)
    Store(tmp_path / "a.jsonl").claim(case)


def test_a_file_is_written_beside_its_place_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "results.json"
    write_json(path, {"a": 1})
    assert path.read_text() == '{\n "a": 1\n}\n'

    def cut_off(place: Path, target: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", cut_off)
    with pytest.raises(KeyboardInterrupt):
        write_whole(path, b"half")
    assert path.read_text() == '{\n "a": 1\n}\n'


def test_a_link_stays_a_link_and_a_pipe_a_pipe(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "file")
    write_whole(tmp_path / "link", "é")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "file").read_bytes() == b"\xc3\xa9"
    os.mkfifo(tmp_path / "pipe")
    reading = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    try:
        write_whole(tmp_path / "pipe", "a")
        assert os.read(reading, 9) == b"a"
    finally:
        os.close(reading)
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)
