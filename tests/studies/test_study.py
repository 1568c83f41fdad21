"""The study: schedules, search and interpolation by arithmetic, its engines on a tiny pipeline, one small run."""

from __future__ import annotations

import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from mixcache.attachment import Handle
from mixcache.calibration.schedules import trace_of
from mixcache.config import MixCacheConfig
from mixcache.models import row_for
from mixcache.policies import Replay
from studies.study import __main__ as study
from studies.study import measure, trials
from studies.study.engines import ENGINES
from studies.study.measure import Study
from studies.study.page import ablation_sentence, curve_sentence, interference_sentence
from studies.study.search import climb, neighbour
from studies.study.settings import BLOCK, CFG, COMPUTE, HINDSIGHT, PLAIN, STEP
from studies.study.summary import level, oracle_rows, with_margins
from studies.study.trials import even_schedule

SCHEDULE = [(COMPUTE, 0), (COMPUTE, 0), (STEP, 1), (COMPUTE, 0), (CFG, 0), (BLOCK, 1), (COMPUTE, 0), (STEP, 0)]


def replayed(pipeline: Any, generate: Any, engine: str, schedule: Any) -> tuple[torch.Tensor, Handle]:
    config = MixCacheConfig(policy=Replay(trace=trace_of(schedule)))
    handle = Handle(pipeline, config, row_for(pipeline.transformer, pipeline), ENGINES[engine])
    handle._attach()
    try:
        return generate(pipeline, num_steps=len(schedule)), handle
    finally:
        handle.disable()


def row(curve: str, name: str, ideals: list[float], psnrs: list[float | None], part: str = "d") -> dict[str, Any]:
    known = [psnr for psnr in psnrs if psnr is not None]
    return {
        "part": part,
        "num_steps": 50,
        "curve": curve,
        "method": name,
        "ideal": ideals[0],
        "psnr_db": sum(known) / len(known) if known else None,
        "num_prompts": len(psnrs),
        "ideal_by_prompt": ideals,
        "psnr_by_prompt": psnrs,
    }


@pytest.mark.parametrize(("kinds", "costs"), [((CFG, BLOCK), (0.5, 0.2)), ((CFG,), (0.1,)), ((STEP, CFG), (0, 0.5))])
def test_an_even_schedule_does_the_wanted_share_of_the_work(kinds: Any, costs: Any) -> None:
    schedule = even_schedule(50, kinds, costs, 0.6, 1)
    cost = {kind.value: value for kind, value in zip(kinds, costs, strict=True)} | {"compute": 1}
    assert sum(cost[name] for name, _ in schedule) / 50 == pytest.approx(0.6, abs=0.011)
    assert {name for name, _ in (*schedule[:4], *schedule[-3:])} == {"compute"}
    counts = Counter(name for name, _ in schedule)
    assert max(counts[kind.value] for kind in kinds) - min(counts[kind.value] for kind in kinds) <= 1


def test_a_neighbour_costs_the_same_and_computes_the_first_step() -> None:
    rng, seen = random.Random(0), set()
    for _ in range(200):
        found = neighbour(SCHEDULE, rng)
        assert Counter(g for g, _ in found) == Counter(g for g, _ in SCHEDULE)
        assert found[0] == (COMPUTE, 0)
        seen.add(tuple(found))
    assert len(seen) > 15
    assert neighbour([(COMPUTE, 0)] * 3, rng) == [(COMPUTE, 0)] * 3


def test_climbing_goes_down_and_keeps_the_best() -> None:
    def error_of(schedule: Any) -> float:
        return float(sum(i for i, (g, _) in enumerate(schedule) if g is COMPUTE) + sum(o for _, o in schedule))

    best, errors = climb(SCHEDULE, error_of, 15, random.Random(0))
    assert errors[0] == error_of(SCHEDULE)
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] == error_of(best) < errors[0]
    assert len(errors) == 15


def test_a_level_is_read_between_points() -> None:
    assert level([(1.5, 40.0), (2.5, 30.0)], 2.0) == pytest.approx(35)
    assert level([(1.5, 40.0), (2.5, 30.0)], 3.0) is None


def test_margins_are_taken_on_the_prompts_of_the_row() -> None:
    fewer = [row(PLAIN, "38", [1.5, 1.5], [40.0, 90.0]), row(PLAIN, "20", [2.5, 2.5], [30.0, 80.0])]
    rows = with_margins([*fewer, row("", "one prompt", [2.0], [38.0]), row("", "same", [1.0], [None])])
    assert rows[2]["margin_db"] == pytest.approx(3)
    assert rows[3]["margin_db"] is None


def test_sentences_are_computed_from_rows() -> None:
    names = ("cfg+block in one step, order 0", "cfg, block in turn, order 0")
    rows = [row("", name, [1.67], [psnr], part="a") for name, psnr in zip(names, (30.0, 33.5), strict=True)]
    assert "stacked in one step are -3.5 dB from one per step with order 0" in interference_sentence(rows)
    assert ablation_sentence(rows) == "Nothing was measured that tells."
    curves = [row(HINDSIGHT, str(x), [x], [y]) for x, y in ((1.5, 44.0), (2.5, 40.0))]
    assert curve_sentence(curves, 50) == "At an ideal speed-up of 2: hindsight 42.0 dB."
    searched = row("", "searched", [2.0], [45.0], part="e")
    assert oracle_rows(curves, searched, 50)[0]["below_searched_db"] == pytest.approx(3)


def test_a_stacked_step_runs_one_call_without_its_span(pipeline: Any, generate: Any) -> None:
    _, handle = replayed(pipeline, generate, "stacked", [(COMPUTE, 0), (CFG, 0), (COMPUTE, 0)])
    calls = {call.branch: call for call in handle.trace[1].calls}
    assert calls["cond"].num_blocks == 4 - handle.engine.span.num_skipped < 4
    assert not calls["uncond"].computed


def test_fed_histories_change_what_later_steps_predict(pipeline: Any, generate: Any) -> None:
    schedule = [(COMPUTE, 0), (COMPUTE, 0), (BLOCK, 1), (STEP, 1), (CFG, 1), (COMPUTE, 0)]
    clean, _ = replayed(pipeline, generate, "", schedule)
    fed, handle = replayed(pipeline, generate, "fed", schedule)
    assert [entry.granularity for entry in handle.trace] == [granularity for granularity, _ in schedule]
    assert not torch.equal(clean, fed)
    alone = [(COMPUTE, 0), (COMPUTE, 0), (BLOCK, 1), (COMPUTE, 0)]
    assert torch.equal(replayed(pipeline, generate, "", alone)[0], replayed(pipeline, generate, "fed", alone)[0])


def test_a_small_study_is_written_and_gone_on_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trials, "WARM_UPS", (1,))
    monkeypatch.setattr(trials, "COOL_DOWNS", (0,))
    monkeypatch.setattr(trials, "FEWER", (0.5,))
    monkeypatch.setattr(measure, "video_ssim", lambda a, b: 1.0)
    arguments = ["--out", str(tmp_path), "--work", str(tmp_path / "work"), "--parts", "b"]
    arguments += ["--num-prompts", "1", "--num-steps", "4"]
    study.main(arguments)
    result = json.loads((tmp_path / "method-study.json").read_text())
    assert len([r for r in result["rows"] if r["part"] == "b"]) == 6
    assert set(result["deviations"]) >= {"step", "cfg", "block"}
    assert "## The ends of the trajectory, 4 steps" in (tmp_path / "method-study.md").read_text()
    assert (tmp_path / "method-study.png").stat().st_size > 1000
    monkeypatch.setattr(Study, "_generate", None)
    study.main(arguments)
    assert json.loads((tmp_path / "method-study.json").read_text())["rows"] == result["rows"]
