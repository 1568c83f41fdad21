"""Two results held against each other: what is noise, what is a change, what is a loss."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from mixcache import cli
from mixcache.bench import compare as compare_module
from mixcache.bench.compare import Change, compare
from mixcache.bench.results import ResultsError

Make = Callable[..., Any]
PROMPTS = ("p", "q", "r", "s")
PSNRS = (30.0, 32.0, 34.0, 36.0)


@pytest.fixture
def result_of(make_result: Make, make_record: Make, made_up: Any) -> Make:
    """A result of one method of ours on four prompts, its records given field by field."""

    def build(psnrs: Sequence[float | None] = PSNRS, failure: str | None = None, **other: Any) -> dict[str, Any]:
        case = {name: other.pop(name) for name in ("weights", "seed") if name in other}
        ours = made_up["ours"]
        records = [
            make_record(ours, psnr_db=psnr, prompt=prompt, seed=seed, **other)
            for seed, (prompt, psnr) in enumerate(zip(PROMPTS, psnrs, strict=True))
            if failure is None
        ]
        return make_result([ours], records, failures={ours.name: failure}, **case)

    return build


def only_change(before: Any, after: Any) -> Change:
    (change,) = compare(before, after)
    assert change.method == "hindsight, error 0.01"
    return change


def test_the_same_result_has_no_change(result_of: Make) -> None:
    assert compare(result_of(), result_of()) == []


def test_psnr_that_fell_everywhere_is_a_loss(result_of: Make) -> None:
    change = only_change(result_of(), result_of([psnr - 0.3 for psnr in PSNRS]))
    assert change == Change(
        method="hindsight, error 0.01", what="PSNR", before="33.00 dB", after="32.70 dB", is_loss=True
    )


def test_a_gain_is_told_and_is_no_loss(result_of: Make) -> None:
    change = only_change(result_of(), result_of([psnr + 0.3 for psnr in PSNRS]))
    assert (change.what, change.after, change.is_loss) == ("PSNR", "33.30 dB", False)


@pytest.mark.parametrize(
    "differences",
    [
        (-0.09, -0.09, -0.09, -0.09),  # sure, and too little to matter
        (-1.0, 0.6, -0.9, 0.7),  # -0.15 with a standard error of 0.46
        (0.0, 0.0, 0.0, -1.9),  # one clip alone is within two standard errors of none
    ],
)
def test_noise_is_no_change(result_of: Make, differences: Sequence[float]) -> None:
    after = [psnr + difference for psnr, difference in zip(PSNRS, differences, strict=True)]
    assert compare(result_of(), result_of(after)) == []


@pytest.mark.parametrize(
    ("before", "after", "is_loss"),
    [
        ((None, 32.0, 34.0, 36.0), (45.0, 32.0, 34.0, 36.0), True),  # was identical, and no longer is
        ((45.0, 32.0, 34.0, 36.0), (None, 32.0, 34.0, 36.0), False),
        ((None, 45.0, 34.0, 36.0), (45.0, None, 34.0, 36.0), True),
        ((None, None, None, None), (None, None, None, None), None),
    ],
)
def test_an_identical_clip_is_infinitely_good(result_of: Make, before: Any, after: Any, is_loss: bool | None) -> None:
    changes = compare(result_of(before), result_of(after))
    assert [(change.what, change.is_loss) for change in changes] == ([] if is_loss is None else [("PSNR", is_loss)])


def test_other_decisions_are_a_loss(result_of: Make) -> None:
    after = result_of()
    after["records"][2]["schedule"] = "#s##"
    change = only_change(result_of(), after)
    assert change.what == "decisions of 1 of 4 clips (seed 1)"
    assert (change.before, change.after, change.is_loss) == ("##s#", "#s##", True)
    assert only_change(result_of(), result_of(work="##5#")).what == "decisions of 4 of 4 clips (seed 0, 1, 2, 3)"


def test_not_all_of_many_clips_are_named(result_of: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compare_module, "MAX_SEEDS", 2)
    assert only_change(result_of(), result_of(work="##5#")).what == "decisions of 4 of 4 clips (seed 0, 1, ...)"


def test_a_cache_that_fires_less_is_a_loss_and_one_that_fires_more_is_not(result_of: Make) -> None:
    change = only_change(result_of(), result_of(ideal_speedup=1.6))
    assert change == Change(
        method="hindsight, error 0.01", what="work done", before="50.0%", after="62.5%", is_loss=True
    )
    assert not only_change(result_of(), result_of(ideal_speedup=2.5)).is_loss
    assert compare(result_of(), result_of(ideal_speedup=2.01)) == []


def test_time_is_told_and_is_never_a_loss(result_of: Make) -> None:
    change = only_change(result_of(), result_of(speedup=1.0, ideal_speedup=2.0))
    assert (change.what, change.before, change.after) == ("speed-up (never a loss)", "2.00x", "1.00x")
    assert not change.is_loss


def test_a_method_that_is_gone_is_a_loss_and_a_new_one_is_not(make_result: Make, result_of: Make) -> None:
    without = make_result([], [])
    gone = only_change(result_of(), without)
    assert (gone.what, gone.before, gone.after, gone.is_loss) == ("state", "measured", "absent", True)
    assert not only_change(without, result_of()).is_loss


def test_a_method_that_newly_fails_is_a_loss(result_of: Make) -> None:
    failing = result_of(failure="KeyError: 'x'")
    change = only_change(result_of(), failing)
    assert (change.after, change.is_loss) == ("fails: KeyError: 'x'", True)
    assert not only_change(failing, result_of()).is_loss
    assert compare(failing, failing) == []


@pytest.mark.parametrize(("name", "value"), [("weights", "beef"), ("seed", 1)])
def test_results_of_other_runs_are_an_error(result_of: Make, name: str, value: Any) -> None:
    with pytest.raises(ResultsError, match=f"results of different runs: {name} is .* and {value!r}"):
        compare(result_of(), result_of(**{name: value}))


def test_results_of_other_prompts_are_an_error(result_of: Make) -> None:
    """And not "no change": there is nothing to compare."""
    after = result_of()
    for record in after["records"]:
        record["prompt"] = f"another {record['prompt']}"
    with pytest.raises(ResultsError, match="no clip is of the same prompt and seed"):
        compare(result_of(), after)


def test_clips_that_are_gone_are_a_loss_and_new_ones_are_left_out(result_of: Make) -> None:
    other = result_of()
    other["records"][-1] |= {"prompt": "another", "psnr_db": 5.0}
    change = only_change(result_of(), other)
    assert (change.what, change.before, change.after, change.is_loss) == (
        "clips",
        "4 clips",
        "3 of them (without seed 3)",
        True,
    )
    fewer = result_of()
    del fewer["records"][2:]  # the plain clip and one of four are left
    assert only_change(result_of(), fewer).after == "1 of them (without seed 1, 2, 3)"
    assert compare(fewer, result_of()) == []


def test_the_command_says_it_with_its_exit_code(result_of: Make, tmp_path: Path) -> None:
    before, worse, other = tmp_path / "before.json", tmp_path / "worse.json", tmp_path / "other.json"
    before.write_text(json.dumps(result_of()))
    worse.write_text(json.dumps(result_of([20.0] * 4) | {"machine": {"threads": "2"}}))
    other.write_text(json.dumps(result_of(weights="beef")))
    runner = CliRunner()
    same = runner.invoke(cli.app, ["compare", str(before), str(before)])
    assert (same.exit_code, same.output) == (0, "no change beyond noise\n")
    loss = runner.invoke(cli.app, ["compare", str(before), str(worse)])
    assert loss.exit_code == 1
    assert loss.stdout == "LOSS      hindsight, error 0.01: PSNR: 33.00 dB -> 20.00 dB\n"
    assert loss.stderr.startswith("note      machine differ: {'threads': '1'}")
    gain = runner.invoke(cli.app, ["compare", str(worse), str(before)])
    assert gain.exit_code == 0
    assert gain.stdout.startswith("change    hindsight")
    for path, message in ((other, "weights is '00ff' and 'beef'"), (tmp_path / "none.json", "cannot be read")):
        failed = runner.invoke(cli.app, ["compare", str(before), str(path)])
        assert failed.exit_code == 2
        assert message in failed.stderr
        assert failed.stderr.count("\n") == 1
