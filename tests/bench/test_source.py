"""The code that a run is held against when it goes on."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from mixcache.bench import source

ROOT = Path(source.__file__).parents[1]


@pytest.mark.parametrize(
    ("name", "counts"),
    [
        ("engine.py", True),
        ("policies/hindsight.py", True),
        ("metrics.py", True),
        ("bench/meter.py", True),
        ("bench/peers/teacache.py", True),
        ("a_new_room/of_tomorrow.py", True),
        ("bench/page.py", False),
        ("report/html.py", False),
        ("cli/bench.py", False),
        ("profiles/shapes-wan.json", False),
    ],
)
def test_a_change_counts_where_a_record_can_hang_on_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, counts: bool
) -> None:
    copy = tmp_path / "mixcache"
    shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns("*.safetensors", "__pycache__"))
    monkeypatch.setattr(source, "mixcache", SimpleNamespace(__file__=str(copy / "__init__.py")))
    before = source.code_hash()
    (copy / name).parent.mkdir(exist_ok=True)
    with (copy / name).open("a") as file:
        file.write("\n# changed\n")
    assert (source.code_hash() != before) == counts
