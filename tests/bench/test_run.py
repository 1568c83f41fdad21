"""Benchmarks: sums by arithmetic, and one small run end to end."""

from __future__ import annotations

from typing import Any

import pytest

from mixcache.bench import quick
from mixcache.bench.methods import PLAIN, cadences, fewer_steps
from mixcache.bench.run import Record, as_json, run, summarise


def record(method: str, prompt: str, seconds: float, psnr: float | None, **other: Any) -> Record:
    fields: dict[str, Any] = {
        "seed": 0,
        "speedup": 12 / seconds,
        "ideal_speedup": 2.0,
        "ssim": 0.9,
        "adherence": 1.0,
        "cache_peak_bytes": 2048,
        "granularity_counts": {"compute": 25, "step": 25},
    }
    return Record(method=method, prompt=prompt, denoising_seconds=seconds, psnr_db=psnr, **fields | other)


def test_summarise_takes_medians_of_times_and_means_of_qualities() -> None:
    rows = summarise([record("a", "p", 4, 30.0), record("a", "q", 6, 34.0), record("a", "r", 8, None)])
    assert len(rows) == 1
    row = rows[0]
    assert row["seconds"] == 6
    assert row["speedup"] == 2.0
    assert row["of_ideal"] == 1.0
    assert row["psnr_db"] == 32.0
    assert row["psnr_spread"] == 2.0
    assert row["cache_kib"] == 2.0
    assert row["steps"] == {"compute": 25, "step": 25}


def test_cadences_cross_granularities_with_orders() -> None:
    names = [method.name for method in cadences({"step": 2, "cfg": 4.5})]
    assert names == [
        "every_nth step, period 2, order 0",
        "every_nth step, period 2, order 1",
        "every_nth cfg, period 4.5, order 0",
        "every_nth cfg, period 4.5, order 1",
    ]


def test_a_run_measures_every_method_on_every_prompt(pipeline: Any) -> None:
    arguments = {
        "height": 16,
        "width": 16,
        "num_frames": 5,
        "num_inference_steps": 8,
        "guidance_scale": 5.0,
        "max_sequence_length": 24,
    }
    prompts = [f"a small {colour} circle moving left on a plain black background" for colour in ("red", "blue")]
    methods = [fewer_steps(4), *cadences({"step": 2}, orders=(0,))]
    records = run(pipeline, methods, prompts, arguments, seed=0)
    assert [(r.prompt, r.method) for r in records[:3]] == [(prompts[0], m.name) for m in (PLAIN, *methods)]
    assert {r.method for r in records[3:]} == {"plain", "plain, 4 steps", "every_nth step, period 2, order 0"}
    rows = {row["method"]: row for row in summarise(records)}
    assert rows["plain"]["psnr_db"] is None
    assert rows["plain, 4 steps"]["ideal"] == 2.0
    # 4 steps of warm-up, then of steps 4 to 6 the cadence computes 4 and 6; 7 is the cool-down
    assert rows["every_nth step, period 2, order 0"]["steps"]["step"] == 1
    assert rows["every_nth step, period 2, order 0"]["ideal"] == pytest.approx(8 / 7)
    page = quick.markdown(
        {
            "command": "python -m mixcache.bench.quick",
            "arguments": arguments,
            "scheduler": "UniPC",
            "versions": {},
            "machine": {},
            "bars": {"it runs": True, "it flies": False},
            "summary": summarise(records),
            "records": as_json(records),
        }
    )
    assert page.count("| every_nth step, period 2, order 0 |") == 1
    assert "- yes: it runs\n- NO: it flies" in page


def test_the_bars_are_read_off_the_row_of_the_policy() -> None:
    row = {
        "method": "mixcache",
        "speedup": 2.0,
        "margin_db": 0.1,
        "of_ideal": 0.95,
        "steps": {"step": 1, "cfg": 1, "block": 1},
    }
    assert all(quick.bars([row]).values())
    for change in ({"speedup": 2.2}, {"margin_db": -0.1}, {"margin_db": None}, {"of_ideal": 0.9}):
        assert list(quick.bars([row | change]).values()).count(False) == 1
    assert not all(quick.bars([row | {"steps": {"step": 1, "cfg": 0, "block": 1}}]).values())
