"""The benchmark of `cfg` steps on a joined call, tried out on a tiny model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mixcache.bench import joined
from mixcache.bench.full_size.models import tiny


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("joined")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(joined, "MODEL", tiny(joined.MODEL))
        joined.main(["--out", str(folder / "new"), "--num-pairs", "3"])
    found: dict[str, Any] = json.loads((folder / "new" / "joined.json").read_text())
    return found


def test_every_other_step_is_a_cfg_step_and_runs_half_the_batch(result: dict[str, Any]) -> None:
    assert [len(result[kind]["all"]) for kind in ("computed", "cfg", "cfg over computed")] == [3, 3, 3]
    assert result["multiplications, cfg over computed"] == 0.5


def test_the_record_says_what_was_measured(result: dict[str, Any]) -> None:
    assert result["command"] == "python -m mixcache.bench.joined --num-pairs 3"
    assert {"versions", "machine", "config"} <= set(result)
    assert result["model"] == {"name": "tiny-cogvideox-512-wide", "height": 32, "width": 32, "num_frames": 9}
    pairs = zip(result["cfg"]["all"], result["computed"]["all"], strict=True)
    assert result["cfg over computed"]["all"] == [cfg / computed for cfg, computed in pairs]


def test_one_line_is_printed(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(joined, "MODEL", tiny(joined.MODEL))
    joined.main(["--out", str(tmp_path), "--num-pairs", "2"])
    assert "cfg over computed: " in capsys.readouterr().out
