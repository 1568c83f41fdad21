"""A profile as a file, whose it is, and what it says."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from statistics import NormalDist
from typing import Any

import pytest
import torch

from mixcache import zoo
from mixcache.policies.way import PRIOR, Learnt
from mixcache.profiles import (
    FORMAT,
    Expert,
    Profile,
    ProfileError,
    dtype_family,
    fingerprint,
    profile_for,
    profile_of,
    shipped_profiles,
    weights_hash,
)
from mixcache.profiles.estimates import MOST_BEYOND, TENTH, USUAL_CLIPS, USUAL_SPREAD_DB

EXPERT = Expert(transformer_class="Small", fingerprint="0" * 16, weights="1" * 16, dtype="torch.float32")
PSNRS = [[0.25, 50, 50.0], [1.0, 50, 40.0], [0.25, 20, 30.0], [1.0, 20, 10.0]]


def small_profile(**changed: Any) -> Profile:
    values: dict[str, Any] = {
        "model": "small",
        "experts": [EXPERT],
        "rates": {"-1.0": 2.0, "0.5": 0.5},
        "cached_share": 0.05,
        "num_generations": 3,
        "impacts": {"step": 1.0},
        "psnrs": PSNRS,
        "provenance": {"seed": 1, "prompts": ["a circle"]},
    }
    return Profile(**values | changed)


def written(tmp_path: Path, **changed: Any) -> Path:
    """A file of the small profile with some keys changed, or left out where they are None."""
    values = asdict(small_profile()) | changed
    values = {name: value for name, value in values.items() if value is not None or name not in changed}
    path = tmp_path / "small.json"
    path.write_text(json.dumps(values))
    return path


# ---------------------------------------------------------------------------------------------------------------- file


@pytest.mark.parametrize(
    "changed", [{}, {"cached_share": None, "impacts": {}, "psnrs": []}, {"experts": [EXPERT, EXPERT], "rates": {}}]
)
def test_what_is_saved_is_loaded(tmp_path: Path, changed: dict[str, Any]) -> None:
    profile = small_profile(**changed)
    profile.save(tmp_path / "small.json")
    assert Profile.load(tmp_path / "small.json") == profile
    assert Profile.load(tmp_path / "small.json").digest == profile.digest
    assert [path.name for path in tmp_path.iterdir()] == ["small.json"]


def test_a_profile_that_cannot_be_written_leaves_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "small.json"
    small_profile().save(path)
    with pytest.raises(TypeError):
        small_profile(provenance={"machine": object()}).save(path)
    assert Profile.load(path) == small_profile()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be read: No such file or directory"),
        (b"\x89PNG\r\n\x1a\n\x00\xff", "cannot be read: it is no text"),
        (b"", "broken off or damaged JSON"),
        (b'{"format": 3,\n "model": "sma', r"broken off or damaged JSON \(line 2\)"),
        (b"[1, 2]", "is no profile of mixcache"),
        (b'{"name": "small"}', "is no profile of mixcache"),
        (b'{"format": 11, "model": "small"}', f"has format 11, newer than this mixcache, which reads {FORMAT}"),
        (b'{"format": 8, "model": "small"}', f"has format 8, not of this mixcache, which reads {FORMAT}"),
        (b'{"format": "two"}', "has format two, not of this mixcache"),
    ],
)
def test_a_file_that_is_no_profile(tmp_path: Path, content: bytes | None, message: str) -> None:
    path = tmp_path / "small.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ProfileError, match=message) as caught:
        Profile.load(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_directory_is_no_profile(tmp_path: Path) -> None:
    with pytest.raises(ProfileError, match="cannot be read: Is a directory"):
        Profile.load(tmp_path)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"colour": "red"}, "is no profile of this mixcache: it has an unknown key 'colour'"),
        ({"rates": None}, "is no profile of this mixcache: it has no 'rates'"),
        ({"provenance": None}, "it has no 'provenance'"),
        ({"experts": []}, "is no sound profile: it is of no transformer, or of more than two"),
        ({"experts": [asdict(EXPERT)] * 3}, "it is of no transformer, or of more than two"),
        ({"experts": [asdict(EXPERT) | {"colour": "red"}]}, "is no sound profile"),
        ({"experts": [{"weights": "1"}]}, "is no sound profile"),
        ({"experts": 1}, "is no sound profile"),
        ({"rates": {"-1.25": 2.0}}, "rates are at other places"),
        ({"rates": {"-1.0": 0.0}}, "a rate is no number over 0"),
        ({"rates": {"-1.0": math.nan}}, "a rate is no number over 0"),
        ({"rates": {"-1.0": "fast"}}, "a rate is no number over 0"),
        ({"rates": ["-1.0"]}, "is no sound profile"),
        ({"impacts": {"step": -1.0}}, "an impact is no number over 0"),
        ({"impacts": {"step": math.inf}}, "an impact is no number over 0"),
        ({"impacts": {"step": True}}, "an impact is no number over 0"),
        ({"cached_share": 1.0}, "cached_share is not between 0 and 1"),
        ({"cached_share": 0.0}, "cached_share is not between 0 and 1"),
        ({"cached_share": "little"}, "cached_share is not between 0 and 1"),
        ({"psnrs": [[0.25, 50]]}, "psnrs has rows that are none"),
        ({"psnrs": [[0.25, 50, math.nan]]}, "psnrs has rows that are none"),
        ({"psnrs": [0.25]}, "is no sound profile"),
    ],
)
def test_a_profile_that_is_not_sound(tmp_path: Path, changed: dict[str, Any], message: str) -> None:
    path = written(tmp_path, **changed)
    with pytest.raises(ProfileError, match=message) as caught:
        Profile.load(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


# -------------------------------------------------------------------------------------------------------- what it says


def test_rates_are_what_a_policy_begins_with() -> None:
    learnt = small_profile().learnt
    places = {PRIOR.places[index]: rate for index, rate in learnt.log_rates.items()}
    assert places == {-1.0: pytest.approx(math.log(2)), 0.5: pytest.approx(math.log(0.5))}
    assert (learnt.cached_share, learnt.num_generations) == (0.05, 3)


def test_what_was_learnt_since_is_put_in_and_all_else_stays() -> None:
    learnt = Learnt(log_rates={3: math.log(7.0)}, cached_share=1.5, num_generations=9)
    profile = small_profile().with_learnt(learnt)
    assert profile == small_profile(rates={str(PRIOR.places[3]): 7.0}, cached_share=0.99, num_generations=9)
    assert profile.learnt.log_rates == pytest.approx(learnt.log_rates)
    assert profile.digest != small_profile().digest
    assert small_profile().with_learnt(Learnt()) == small_profile(rates={}, cached_share=None, num_generations=0)


def test_each_use_of_a_profile_learns_for_itself() -> None:
    profile = small_profile()
    profile.learnt.see(0.5, 99.0)
    assert profile == small_profile()
    assert profile.learnt == small_profile().learnt


@pytest.mark.parametrize(
    ("psnr_db", "num_steps", "error"),
    [
        (45.0, 50, 0.5),  # 10 dB for four times the error
        (45.0, 40, 0.5),
        (35.0, 50, 2.0),
        (20.0, 20, 0.5),  # 20 dB for it
        (20.0, 31, 0.5),  # nearest as a ratio
        (45.0, 32, 0.5),
    ],
)
def test_the_error_for_a_psnr_is_on_the_line_of_the_nearest_number_of_steps(
    psnr_db: float, num_steps: int, error: float
) -> None:
    estimate = small_profile().estimate(psnr_db - TENTH * USUAL_SPREAD_DB, num_steps)
    assert (estimate.error, estimate.mean_db) == (pytest.approx(error), pytest.approx(psnr_db))


def test_an_estimate_is_of_the_tenth_percentile() -> None:
    """Four clips 3 dB off a line count beside four that are as far off as is usual."""
    rows = [[error, 50, psnr + off] for error, psnr in ((0.25, 50.0), (1.0, 40.0)) for off in (-3.0, 3.0)]
    spread = math.sqrt((USUAL_CLIPS * USUAL_SPREAD_DB**2 + 4 * 3.0**2) / (USUAL_CLIPS + 2))
    estimate = small_profile(psnrs=rows).estimate(45.0 - NormalDist().inv_cdf(0.9) * spread, 40)
    assert (estimate.error, estimate.spread_db) == (pytest.approx(0.5, abs=1e-4), pytest.approx(spread))
    assert str(estimate) == (
        f"{estimate.psnr_db:.3g} dB or more in nine clips of ten, 45 in the mean: an estimate for this model's clips, "
        "from 4 clips of 50 steps"
    )


def test_what_is_far_from_all_that_was_measured_is_not_estimated() -> None:
    """0.25 to 1.0 were measured; 10 dB are lost for four times the error."""
    off = TENTH * USUAL_SPREAD_DB
    assert small_profile().estimate(59.99 - off, 50).error == pytest.approx(0.25 / MOST_BEYOND, rel=0.01)
    for psnr_db in (60.1 - off, 29.9 - off):
        with pytest.raises(ProfileError, match=r"^quality=\S+ is beyond .* of 50 steps, 23 to 52 dB; ask for"):
            small_profile().estimate(psnr_db, 50)


def test_times_and_rates_however_small_are_kept(tmp_path: Path) -> None:
    learnt = Learnt(log_rates={3: math.log(2e-6)}, cached_share=3e-6, limits={"2 of 50 from 0": (math.log(1e-7), 1)})
    small_profile().with_learnt(learnt).save(tmp_path / "small.json")
    again = Profile.load(tmp_path / "small.json").learnt
    assert again.cached_share == 3e-6
    assert again.log_rates[3] == pytest.approx(math.log(2e-6))
    assert again.limits["2 of 50 from 0"][0] == pytest.approx(math.log(1e-7))


@pytest.mark.parametrize(
    ("psnrs", "message"),
    [
        ([], "this profile knows no PSNR; `mixcache calibrate` measures it"),
        ([[0.25, 50, 40.0], [0.6, 50, 41.0]], "clips do not tell what an error costs; calibrate on more prompts"),
        ([[0.25, 50, 40.0]], "clips do not tell what an error costs"),
    ],
)
def test_a_profile_that_does_not_know_what_an_error_costs(psnrs: list[list[float]], message: str) -> None:
    with pytest.raises(ProfileError, match=message):
        small_profile(psnrs=psnrs).estimate(40.0, 50)


# --------------------------------------------------------------------------------------------------------- whose it is


def test_a_profile_fits_the_model_it_was_made_on(pipeline: Any, make_pipeline: Callable[..., Any]) -> None:
    profile = profile_of("tiny", [pipeline.transformer])
    assert (profile.model, profile.rates, profile.num_generations) == ("tiny", {}, 0)
    assert profile.misfit(pipeline.transformer) is None
    assert profile.misfit(make_pipeline(scheduler="euler").transformer) is None


def test_a_profile_fits_the_same_weights_in_bfloat16(pipeline: Any, make_pipeline: Callable[..., Any]) -> None:
    in_bfloat16 = make_pipeline(dtype="bfloat16").transformer
    assert in_bfloat16.dtype is torch.bfloat16
    assert profile_of("tiny", [pipeline.transformer]).misfit(in_bfloat16) is None
    assert profile_of("tiny", [in_bfloat16]).misfit(pipeline.transformer) is None


def test_a_profile_does_not_fit_another_model(pipeline: Any, make_pipeline: Callable[..., Any]) -> None:
    transformer = pipeline.transformer
    profile = profile_of("tiny", [transformer])
    for changed, reason in (
        ({"transformer_class": "LTXTransformer"}, "it is of a LTXTransformer, not of a WanTransformer3DModel"),
        ({"fingerprint": "0" * 16}, "it is of another architecture of WanTransformer3DModel"),
        ({"dtype": "torch.float8_e4m3fn"}, "it was measured in torch.float8_e4m3fn, and the model is in torch.float32"),
        ({"weights": "0" * 16}, "it is of other weights of the same architecture"),
    ):
        other = replace(profile, experts=[replace(profile.experts[0], **changed)])
        assert other.misfit(transformer) == reason
    other_weights = make_pipeline(seed=1).transformer
    assert profile.misfit(other_weights) == "it is of other weights of the same architecture"
    assert profile_for(transformer) is None


def test_both_experts_must_fit_in_their_order(make_pipeline: Callable[..., Any]) -> None:
    high, low = (make_pipeline(seed=seed).transformer for seed in range(2))
    of_both = profile_of("tiny", [high, low])
    assert of_both.misfit(high, low) is None
    assert of_both.misfit(low, high) == of_both.misfit(high, high) == "it is of other weights of the same architecture"
    assert of_both.misfit(high) == "it is of two experts, and this model has one transformer"
    assert profile_of("tiny", [high]).misfit(high, low) == "it is of one transformer, and this model has two experts"


@pytest.mark.parametrize(
    ("name", "granularities"),
    [
        ("shapes-wan", {"step", "cfg", "block"}),
        ("shapes-cogvideox", {"step", "cfg", "block"}),
        ("shapes-hunyuan", {"step", "block"}),  # its guidance is embedded
    ],
)
def test_a_built_in_model_has_a_profile_that_fits(name: str, granularities: set[str]) -> None:
    profile = profile_for(zoo.load(name).transformer)
    assert profile is not None
    assert profile.model == name
    assert set(profile.impacts) == granularities
    assert {"prompts", "versions", "date", "command"} <= set(profile.provenance)
    assert profile in shipped_profiles()


def test_the_fingerprint_is_of_the_architecture(pipeline: Any, make_pipeline: Callable[..., Any]) -> None:
    before = fingerprint(pipeline.transformer)
    assert fingerprint(make_pipeline(seed=1).transformer) == before
    pipeline.transformer.register_to_config(_name_or_path="somewhere/else")
    assert fingerprint(pipeline.transformer) == before
    pipeline.transformer.register_to_config(num_layers=5)
    assert fingerprint(pipeline.transformer) != before


@pytest.mark.parametrize("place", [0, 999])
def test_one_value_changes_the_hash_of_the_weights(place: int) -> None:
    torch.manual_seed(0)
    model = torch.nn.Linear(1000, 1)
    before = weights_hash(model)
    with torch.no_grad():
        model.weight[0, place] += 1.0
    assert weights_hash(model) != before


def test_names_and_shapes_are_in_the_hash_of_the_weights() -> None:
    def hash_of(name: str, *shape: int) -> str:
        model = torch.nn.Module()
        model.register_parameter(name, torch.nn.Parameter(torch.zeros(shape)))
        return weights_hash(model)

    assert len({hash_of("a", 2, 3), hash_of("b", 2, 3), hash_of("a", 3, 2)}) == 3


def test_the_hash_of_the_weights_is_the_same_in_bfloat16() -> None:
    torch.manual_seed(0)
    model = torch.nn.Linear(70, 30)
    assert weights_hash(model.to(torch.bfloat16)) == weights_hash(model.to(torch.float32))
    torch.manual_seed(0)
    assert weights_hash(torch.nn.Linear(70, 30)) == weights_hash(model)


@pytest.mark.parametrize("num_values", [0, 1, 63, 5120 * 5120, 5120 * 13824])
def test_parameters_of_every_size_have_a_hash(num_values: int) -> None:
    model = torch.nn.Module()
    model.weight = torch.nn.Parameter(torch.zeros(1).expand(num_values))
    assert len(weights_hash(model)) == 16


def test_families_of_dtypes() -> None:
    assert len({dtype_family(f"torch.{name}") for name in ("float32", "bfloat16", "float16")}) == 1
    assert dtype_family("torch.float8_e4m3fn") != dtype_family("torch.bfloat16")
