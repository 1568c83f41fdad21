"""The study: schedules, search and interpolation by arithmetic, its engines on a tiny pipeline, one small run."""

from __future__ import annotations

import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from mixcache.bench.methods import Case
from mixcache.bench.results import FEWER
from mixcache.bench.run import Benchmark
from mixcache.calibration.schedules import trace_of
from mixcache.config import MixCacheConfig
from mixcache.hosts.diffusers.attachment import attach
from mixcache.hosts.diffusers.handle import Handle
from mixcache.policies import Replay
from studies.study import __main__ as study
from studies.study import methods
from studies.study.engines import ENGINES
from studies.study.methods import BLOCK, CFG, COMPUTE, STEP, even_schedule, questions, scheduled
from studies.study.page import ablation_sentence, curve_sentence, interference_sentence
from studies.study.search import climb, neighbour
from studies.study.summary import HINDSIGHT, level, oracle_rows, with_margins

SCHEDULE = [(COMPUTE, 0), (COMPUTE, 0), (STEP, 1), (COMPUTE, 0), (CFG, 0), (BLOCK, 1), (COMPUTE, 0), (STEP, 0)]


def replayed(pipeline: Any, generate: Any, engine: str, schedule: Any) -> tuple[torch.Tensor, Handle]:
    config = MixCacheConfig(policy=Replay(trace=trace_of(schedule)))
    with attach(pipeline, config, ENGINES[engine]) as handle:
        return generate(pipeline, num_steps=len(schedule)), handle


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
    cost = dict(zip(kinds, costs, strict=True)) | {COMPUTE: 1}
    assert sum(cost[kind] for kind, _ in schedule) / 50 == pytest.approx(0.6, abs=0.011)
    assert {kind for kind, _ in (*schedule[:4], *schedule[-3:])} == {COMPUTE}
    counts = Counter(kind for kind, _ in schedule)
    assert max(counts[kind] for kind in kinds) - min(counts[kind] for kind in kinds) <= 1


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
    fewer = [row(FEWER, "38", [1.5, 1.5], [40.0, 90.0]), row(FEWER, "20", [2.5, 2.5], [30.0, 80.0])]
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


def test_a_question_asks_of_as_many_prompts_as_its_part_takes() -> None:
    asked = questions(("a", "d"), (50, 20), 8, 0.2)
    assert [(q.part, q.num_steps, q.num_prompts) for q in asked] == [
        ("plain", 50, 8),
        ("d", 50, 8),
        ("d", 50, 4),
        ("plain", 20, 4),
        ("d", 20, 4),
        ("d", 20, 2),
        ("a", 50, 4),
    ]
    alone = questions(("b", "c"), (50, 20), 8, 0.2)
    assert [(q.part, q.num_steps, q.num_prompts) for q in alone] == [("plain", 50, 4), ("b", 50, 3), ("c", 50, 4)]


def test_a_name_means_one_method_in_all_parts() -> None:
    found: dict[str, Any] = {}
    for question in questions(methods.PARTS, (50,), 8, 0.2):
        for method in question.methods:
            assert method == found.setdefault(method.name, method)
    assert len(found) > 80


def test_a_scheduled_method_says_what_it_did_and_is_taken_off(pipeline: Any, generate: Any) -> None:
    forward = pipeline.transformer.forward
    schedule = [(COMPUTE, 0), (COMPUTE, 0), (STEP, 1), (COMPUTE, 0)]
    with scheduled("some", "order 1", schedule).attached(Case(pipeline=pipeline, arguments={})) as account:
        generate(pipeline, num_steps=4)
    assert account()["schedule"] == "##S#"
    assert pipeline.transformer.forward == forward


def test_a_small_study_is_written_and_gone_on_with(
    tmp_path: Path, make_pipeline: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(study, "load", make_pipeline)
    size = {"height": 16, "width": 16, "num_frames": 5, "guidance_scale": 5.0, "max_sequence_length": 24}
    monkeypatch.setattr(study, "call_defaults", lambda: size)
    monkeypatch.setattr(methods, "WARM_UPS", (1,))
    monkeypatch.setattr(methods, "COOL_DOWNS", (0,))
    monkeypatch.setattr(methods, "FEWER", (0.5,))
    monkeypatch.setattr(methods, "ERRORS", methods.ERRORS[:2])
    arguments = ["--out", str(tmp_path), "--work", str(tmp_path / "work"), "--parts", "b,e"]
    arguments += ["--num-prompts", "2", "--num-steps", "4", "--num-trials", "2"]
    study.main(arguments)
    result = json.loads((tmp_path / "method-study.json").read_text())
    rows = {row["method"]: row for row in result["rows"]}
    assert len([r for r in result["rows"] if r["part"] == "b"]) == 6
    assert rows["fewer steps, 2 steps"]["ideal_by_prompt"] == [2.0, 2.0]
    assert rows["planned, speedup 2.0"]["psnr_db"] is None
    assert "mixcache calibrate" in rows["planned, speedup 2.0"]["note"]  # the tiny model has no profile
    assert rows["searched"]["num_prompts"] == 2
    assert [(search["origin"], len(search["errors"])) for search in result["searches"]] == [
        ("steps and blocks in turn", 2)
    ] * 2
    assert set(result["deviations"]) >= {"step", "cfg", "block"}
    assert "## The ends of the trajectory, 4 steps" in (tmp_path / "method-study.md").read_text()
    assert (tmp_path / "method-study.png").stat().st_size > 1000
    monkeypatch.setattr(Benchmark, "generate", None)
    study.main(arguments)
    assert json.loads((tmp_path / "method-study.json").read_text())["rows"] == result["rows"]
