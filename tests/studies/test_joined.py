"""The benchmark of `cfg` steps on a batched call, tried out on a tiny model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from studies import joined
from studies.random_models import tiny


@pytest.fixture(autouse=True)
def _tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(joined, "MODEL", tiny(joined.MODEL))


def result_in(folder: Path) -> dict[str, Any]:
    joined.main(["--out", str(folder / "new"), "--num-rounds", "2", "--num-pairs", "3"])
    found: dict[str, Any] = json.loads((folder / "new" / "joined.json").read_text())
    return found


def test_cfg_steps_run_half_the_batch(tmp_path: Path) -> None:
    result = result_in(tmp_path)
    assert [len(result[kind]["all"]) for kind in joined.KINDS] == [6, 6, 6]
    assert result["multiplications, cfg over plain"] == 0.5


def test_the_record_says_what_was_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = result_in(tmp_path)
    assert result["command"] == "python -m studies.joined --num-rounds 2 --num-pairs 3"
    assert {"versions", "machine", "config"} <= set(result)
    assert result["model"] == {"name": "tiny-cogvideox-512-wide", "height": 32, "width": 32, "num_frames": 9}
    for kind in ("plain", "computed"):
        pairs = zip(result["cfg"]["all"], result[kind]["all"], strict=True)
        assert result[f"cfg over {kind}"]["all"] == [cfg / other for cfg, other in pairs]
    printed = capsys.readouterr().out
    assert printed.startswith("tiny-cogvideox-512-wide, a step: plain ")
    assert printed.count("\n") == 1
