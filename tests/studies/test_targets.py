"""What this project set itself, by arithmetic, and the page that lists it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from mixcache.bench.methods import cadence, policy_method
from mixcache.bench.peers import PEERS
from studies import targets as module
from studies.targets import FIRST_BLOCK, main, tally, targets, token_bytes

Make = Callable[..., Any]
MIXCACHE = policy_method("mixcache")
THREE = {"compute": 20, "step": 10, "cfg": 10, "block": 10}


def met_of(result: Mapping[str, Any], word: str = "") -> dict[str, bool | None]:
    """By text, those that hold a word."""
    return {target.text: target.is_met for target in targets(result) if word in target.text}


@pytest.fixture(autouse=True)
def tensor_of_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 1,000 bytes, whatever the model."""
    monkeypatch.setattr(module, "token_bytes", lambda model, arguments: 1000)


@pytest.fixture
def at_2x(make_result: Make, make_record: Make, made_up: Any) -> Make:
    """A result of methods that are all measured at 2x, with PSNRs by kind."""

    def build(**psnrs: float) -> dict[str, Any]:
        methods = [made_up[kind] for kind in psnrs]
        return make_result(methods, [make_record(made_up[kind], 2.0, psnr) for kind, psnr in psnrs.items()])

    return build


def test_ours_are_held_against_the_best_peer(at_2x: Make) -> None:
    result = at_2x(ours=41.0, calibrated=41.9, peer=40.0, copied=30.0, **{"fewer steps": 60.0})
    assert met_of(result, "2x: the best policy without calibration at least 1 dB") == {
        "2x: the best policy without calibration at least 1 dB above the best peer": True
    }
    assert list(met_of(result, "2x: the best calibrated policy at least 2 dB").values()) == [False]
    measured = [target.measured for target in targets(result) if target.text.startswith("2x: the best policy")]
    assert measured[0] == "hindsight 41.0 dB, first-block-cache 40.0 dB"


def test_at_a_speedup_that_one_side_lacks_nothing_can_be_told(
    at_2x: Make, make_result: Make, make_record: Make, made_up: Any
) -> None:
    result = at_2x(ours=41.0, peer=40.0)
    told = {target.text[:15]: (target.measured, target.is_met) for target in targets(result) if "2.5x" in target.text}
    assert set(told.values()) == {("none of ours is that fast", None)}
    slow_peer = make_result(
        [made_up["ours"], made_up["peer"]],
        [make_record(made_up["ours"], 3.0, 30.0), make_record(made_up["peer"], 2.0, 40.0)],
    )
    target = next(target for target in targets(slow_peer) if target.text.startswith("3x: the best policy"))
    assert (target.measured, target.is_met) == ("hindsight 30.0 dB; no peer is that fast", None)


def test_without_peers_there_is_no_such_target(at_2x: Make) -> None:
    assert met_of(at_2x(ours=41.0), "peer") == {}


def test_captions_may_be_wrong_two_percent_more_often(make_result: Make, make_record: Make, made_up: Any) -> None:
    ours = made_up["ours"]
    result = make_result([ours], [make_record(ours, 2.1, 40.0)])
    plain, row = result["summary"]
    for adherence, met in ((0.985, True), (0.975, False)):
        of_before = [plain | {"adherence": 1.0}, row | {"adherence": adherence}]
        assert list(met_of(result | {"summary": of_before}, "captions").values()) == [met]


def test_results_that_do_not_look_at_captions_make_no_target(at_2x: Make) -> None:
    result = at_2x(ours=41.0)
    assert met_of(result, "captions") == {}
    of_before = [row | {"adherence": None} for row in result["summary"]]  # of prompts that are none
    assert met_of(result | {"summary": of_before}, "captions") == {}


def test_wall_clock_is_held_against_the_ideal(make_result: Make, make_record: Make, made_up: Any) -> None:
    ours, never = made_up["ours"], policy_method("mixcache", first_interval=1)
    for ideal, met in ((2.1, True), (2.2, False)):
        result = make_result(
            [ours, never],
            [make_record(ours, 2.0, 40.0, ideal_speedup=ideal), make_record(never, 0.5, None, ideal_speedup=1.0)],
        )
        assert list(met_of(result, "of the ideal speed-up, median").values()) == [met]


def test_memory_is_the_most_over_a_familys_settings(make_result: Make, make_record: Make, made_up: Any) -> None:
    step = [cadence("step", period, "line") for period in (2, 3)]
    block = cadence("block", 2, "line")
    methods = [*step, block, made_up["peer"]]
    records = [make_record(method) for method in methods]
    for second, met in ((4096, True), (5000, False)):
        added = {step[0].name: second, step[1].name: 100, block.name: 10**9, made_up["peer"].name: 4096}
        result = make_result(methods, records, added=added)
        assert list(met_of(result, "memory added by step").values()) == [met]
        seen = next(target.measured for target in targets(result) if "memory added by step" in target.text)
        assert seen == f"every_nth step, line {second / 1024:.0f} KiB, {FIRST_BLOCK} 4 KiB"
    assert (
        met_of(
            make_result(methods, records, failures={made_up["peer"].name: "no"}, added=added), "memory added by step"
        )
        == {}
    )


def test_the_target_of_memory_names_a_peer_that_there_is() -> None:
    assert FIRST_BLOCK in PEERS


def test_block_may_hold_a_tensor_of_tokens_for_each_branch_and_entry(make_result: Make, make_record: Make) -> None:
    methods = [cadence("block", 2, predictor) for predictor in ("reuse", "line")]
    added = dict(zip([method.name for method in methods], (1000, 2010), strict=True))
    result = make_result(methods, [make_record(method) for method in methods], added=added)
    found = [target for target in targets(result) if "token" in target.text]
    assert [target.is_met for target in found] == [True, False]
    assert found[1].measured == "added 2 KiB, such tensors 2 KiB"
    assert found[1].text.startswith("memory added by every_nth block, line at most")


def test_a_tensor_of_tokens_is_measured_for_every_branch(pipeline: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "open_model", lambda name: (pipeline, {}))
    arguments = {"height": 16, "width": 16, "num_frames": 5, "guidance_scale": 5.0, "max_sequence_length": 24}
    # 2 branches of 2 tokens: 2 x 2 x 2 latents, in patches of 1 x 2 x 2; 24 floats a token
    assert token_bytes("tiny", json.dumps(arguments)) == 2 * 2 * 24 * 4
    assert not any(block._forward_hooks for block in pipeline.transformer.modules())


@pytest.mark.parametrize(
    ("change", "missed"),
    [
        ({}, []),
        ({"speedup": 2.2}, ["speed-up between 1.9 and 2.1"]),
        ({"psnr_db": 33.9}, ["PSNR no lower"]),
        ({"ideal_speedup": 2.2}, ["at least 93%"]),
        ({"granularity_counts": THREE | {"cfg": 0}}, ["every granularity"]),
    ],
)
def test_what_is_asked_of_mixcache_with_its_defaults(
    make_result: Make, make_record: Make, made_up: Any, change: dict[str, Any], missed: list[str]
) -> None:
    """Fewer steps have 40 dB at 1.5x and 28 dB at 2.5x, so 34 dB at 2x."""
    more, fewer = made_up["more steps"], made_up["fewer steps"]
    fields = {"speedup": 2.0, "psnr_db": 34.0, "ideal_speedup": 2.0, "granularity_counts": THREE}
    if change.get("speedup"):
        fields |= {"ideal_speedup": 2.2, "psnr_db": 40.0}
    records = [make_record(more, 1.5, 40.0), make_record(fewer, 2.5, 28.0), make_record(MIXCACHE, **fields | change)]
    result = make_result([more, fewer, MIXCACHE], records)
    bars = met_of(result, "mixcache: ")
    assert len(bars) == 4
    assert [bar for bar, met in bars.items() if not met] == [bar for bar in bars if any(m in bar for m in missed)]
    outside = make_result([MIXCACHE], [make_record(MIXCACHE, **fields | change)])
    assert met_of(outside, "PSNR no lower") == {
        "mixcache: PSNR no lower than that of fewer plain steps of the same time": None
    }


def test_what_is_asked_of_mixcache_on_a_model_that_it_was_not_tuned_on(make_result: Make, make_record: Make) -> None:
    """Every granularity but those whose own cadence could cache nothing."""
    every = "mixcache: every granularity of the model chosen"
    cadences = {name: cadence(name, 3, "reuse") for name in ("step", "cfg", "block")}
    unguided = [make_record(cadences[name], granularity_counts={name: 9}) for name in ("step", "block")]
    unguided.append(make_record(cadences["cfg"], granularity_counts={}))

    def bars(speedup: float, counts: dict[str, int], others: list[Any]) -> dict[str, bool | None]:
        mine = make_record(MIXCACHE, speedup, granularity_counts=counts)
        methods = [MIXCACHE, *(m for m in cadences.values() if m.name in {record.method for record in others})]
        return met_of(make_result(methods, [mine, *others], model="shapes-other"), "mixcache: ")

    met = bars(2.5, {"step": 9, "block": 9}, unguided)
    assert (met["mixcache: speed-up at least 1.7"], met[every]) == (True, True)
    missed = bars(1.6, {"step": 9}, unguided)
    assert (missed["mixcache: speed-up at least 1.7"], missed[every]) == (False, False)
    assert not bars(2.5, {"step": 9, "block": 9}, unguided[:1])[every]


@pytest.mark.parametrize(("speedup", "met"), [(2.09, True), (1.91, True), (2.11, False), (1.89, False)])
def test_a_wish_is_kept(make_result: Make, make_record: Make, made_up: Any, speedup: float, met: bool) -> None:
    with_more = policy_method("hold", corrector=False, speedup=2, max_age=9)
    methods = [made_up["calibrated"], with_more]
    result = make_result(methods, [make_record(method, speedup) for method in methods])
    assert met_of(result, "asked for") == {
        "hold, speedup 2.0: within 5% of the 2.0x asked for": met,
        "hold, corrector False, speedup 2, max_age 9: within 5% of the 2x asked for": met,
    }


@pytest.mark.parametrize(
    ("psnrs", "speedups", "smooth", "rising"),
    [
        ([60.0 - 2.9 * k for k in range(12)], [1 + 0.1 * k for k in range(12)], True, True),
        ([60.0 - 2.0 * k - 1.1 * (k > 6) for k in range(12)], [1 + 0.1 * k for k in range(12)], False, True),
        ([60.0] * 12, [2.0 - 0.1 * (k == 5) for k in range(12)], True, False),
    ],
)
def test_one_setting_without_a_cliff(
    make_result: Make, make_record: Make, psnrs: list[float], speedups: list[float], smooth: bool, rising: bool
) -> None:
    methods = [policy_method("hindsight", error=0.001 * 1.3**k) for k in range(12)]
    records = [make_record(*found) for found in zip(methods, speedups, psnrs, strict=True)]
    result = make_result(methods[::-1], records)
    assert met_of(result, "hindsight: ") == {
        "hindsight: from one of 12 values of error to the next at most 3 dB lost": smooth,
        "hindsight: more error is never less work saved": rising,
    }
    assert not met_of(make_result(methods[1:], records[1:]), "hindsight: ")


def test_the_verdict_on_a_file_is_printed(at_2x: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = at_2x(ours=41.0, calibrated=41.9, peer=40.0)
    path = tmp_path / "results.json"
    path.write_text(json.dumps(result))
    main([str(path)])
    first, *lines = capsys.readouterr().out.splitlines()
    assert first == f"{path}: {tally(result)}"
    assert tally(result) == "4 of 6 targets are met"
    ours = "hindsight 41.0 dB, first-block-cache 40.0 dB"
    assert f"- yes: 2x: the best policy without calibration at least 1 dB above the best peer: {ours}" in lines
    assert any(
        line.startswith("- NO: 2x: the best calibrated policy at least 2 dB above the best peer") for line in lines
    )
    assert any(line.startswith("- \N{EN DASH}: 3x: ") for line in lines)
