"""A plan from a profile of another guidance scale, tried out on a tiny model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from studies import guard

ARGUMENTS = {"height": 16, "width": 16, "num_frames": 5, "guidance_scale": 5.0, "max_sequence_length": 24}


def test_both_profiles_and_the_cadences_are_measured(
    tmp_path: Path, pipeline: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(guard, "load", lambda: pipeline)
    monkeypatch.setattr(guard, "call_defaults", lambda: ARGUMENTS)
    monkeypatch.setattr(guard, "SPEEDUP", 1.6)  # what can be reached hangs on the times of a busy machine
    monkeypatch.setattr(guard, "OTHER_SPEEDUPS", (1.2, 1.4))
    monkeypatch.setattr(guard, "PERIODS", (2.0,))
    counts = ["--num-prompts", "1", "--num-calibration-prompts", "1", "--num-steps", "8"]
    folders = ["--out", str(tmp_path / "out"), "--work", str(tmp_path / "work")]
    guard.main([*counts, *folders])
    result = json.loads((tmp_path / "out" / "guard.json").read_text())
    assert result["command"].endswith("--num-prompts 1 --num-calibration-prompts 1 --num-steps 8")
    assert [(row["profile"], row["method"]) for row in result["rows"]] == [
        ("guidance 3", "planned, speedup 1.6"),
        ("guidance 7", "planned, speedup 1.6"),
        ("guidance 7", "planned, speedup 1.2"),
        ("guidance 7", "planned, speedup 1.4"),
        ("none", "every_nth step, reuse, period 2"),
        ("none", "every_nth step, line, period 2"),
    ]
    assert result["psnr_db"] == result["rows"][0]["psnr_db"]
    scales = [json.loads(path.read_text())["guidance"] for path in sorted((tmp_path / "work").glob("*.json"))]
    assert scales == [3.0, 7.0]
    assert capsys.readouterr().out.count("the plan of the other profile") == 2
    monkeypatch.setattr(guard, "calibrate", lambda *_: pytest.fail("calibrated again"))
    guard.main([*counts, *folders])
    with pytest.raises(pytest.fail.Exception, match="calibrated again"):
        guard.main([*counts[:-1], "7", *folders])


def test_what_is_told_of_the_bars() -> None:
    result = {"rows": [{"ideal": 1.9}], "psnr_db": 50.0, "matching_psnr_db": 50.9, "cadence_psnr_db": 50.1}
    head = "the plan of the other profile, ideal 1.90: 50.0 dB"
    assert guard.told(result) == [
        f"- yes: {head}; the matching profile there: 50.9 dB, of which 1 may be lost",
        f"- no: {head}; the best cadence there: 50.1 dB, of which 0 may be lost",
    ]
    result |= {"matching_psnr_db": 51.1, "cadence_psnr_db": None}
    assert [line[:5] for line in guard.told(result)] == ["- no:", "- not"]
