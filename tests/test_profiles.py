"""A profile as a file, and whose it is."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from mixcache.planning.profiles import (
    FORMAT,
    Profile,
    ProfileError,
    dtype_family,
    fingerprint,
    profile_for,
    weights_hash,
)


def small_profile(**changed: Any) -> Profile:
    """Three steps; outputs in two dimensions, residuals in one."""
    values: dict[str, Any] = {
        "format": FORMAT,
        "model": "small",
        "transformer_class": "Small",
        "fingerprint": "0" * 16,
        "weights": "1" * 16,
        "dtype": "torch.float32",
        "guidance": 5.0,
        "sigmas": [1.0, 0.75, 0.5, 0.0],
        "outputs": [[1.0, 0.0], [2.0, 0.5], [4.0, 1.0]],
        "differences": [[0.1, 0.0], [0.2, 0.1], [0.3, 0.1]],
        "residuals": [[1.0], [0.9], [0.7]],
        "sensitivity": {"step": [[1.0, 2.0], [0.5, 1.0]], "block": [[1.0, 0.5]]},
        "costs": {"compute": 1.0, "step": 0.1, "cfg": 0.6, "block": 0.5},
        "damping": 1.0,
        "psnr_at_one": 10.0,
        "band": 1.5,
        "impacts": {"step": 1.0},
        "impacts_by_step": {"step": {"1": 1.0}},
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


def with_fewer_steps() -> Profile:
    """The small profile of 3 steps, and one of 2."""
    two = {name: getattr(small_profile(), name)[:2] for name in ("outputs", "differences", "residuals")}
    return small_profile(others=[small_profile(sigmas=[1.0, 0.5, 0.0], band=2.5, **two)])


def test_the_nearest_number_of_steps_is_read_as_a_ratio() -> None:
    profile = with_fewer_steps()
    assert [profile.nearest(n).num_steps for n in (1, 2, 3, 50)] == [2, 2, 3, 3]
    assert small_profile().nearest(50).num_steps == 3


def test_others_are_saved_loaded_and_checked(tmp_path: Path) -> None:
    profile = with_fewer_steps()
    profile.save(tmp_path / "two.json")
    assert Profile.load(tmp_path / "two.json") == profile
    values = asdict(profile)
    values["others"][0]["weights"] = "2" * 16
    (tmp_path / "two.json").write_text(json.dumps(values))
    with pytest.raises(ProfileError, match="one of its others is of other weights"):
        Profile.load(tmp_path / "two.json")
    values["others"][0]["format"] = FORMAT + 1
    (tmp_path / "two.json").write_text(json.dumps(values))
    with pytest.raises(ProfileError, match="newer than this mixcache"):
        Profile.load(tmp_path / "two.json")


def profile_of(transformer: Any, **changed: Any) -> Profile:
    own = {
        "transformer_class": type(transformer).__name__,
        "fingerprint": fingerprint(transformer),
        "weights": weights_hash(transformer),
        "dtype": str(transformer.dtype),
    }
    return small_profile(**own | changed)


def of_two_experts(**of_second: Any) -> Profile:
    """The small profile down to a level of 0.25, and another expert's from there on, of two steps."""
    two = {name: getattr(small_profile(), name)[:2] for name in ("outputs", "differences", "residuals")}
    second = small_profile(**{"sigmas": [0.25, 0.125, 0.0], "weights": "2" * 16, "share": 0.25} | two | of_second)
    return small_profile(sigmas=[1.0, 0.75, 0.5, 0.25], share=0.75, second=second)


# ---------------------------------------------------------------------------------------------------------------- file


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    profile = small_profile(guidance=None, residuals=[])
    profile.save(tmp_path / "small.json")
    assert Profile.load(tmp_path / "small.json") == profile
    assert [path.name for path in tmp_path.iterdir()] == ["small.json"]


def test_a_profile_of_two_experts_is_saved_and_loaded(tmp_path: Path) -> None:
    profile = of_two_experts()
    profile = replace(profile, others=[replace(profile, band=2.5)])
    profile.save(tmp_path / "small.json")
    assert Profile.load(tmp_path / "small.json") == profile
    assert profile.loop_sigmas == [1.0, 0.75, 0.5, 0.25, 0.125, 0.0]
    assert profile.num_steps == 5
    first, second = profile.experts
    assert (first.num_steps, second.num_steps) == (3, 2)
    assert [other.band for other in first.others] == [2.5]
    assert (first.second, second.weights, second.others[0].weights) == (None, "2" * 16, "2" * 16)


@pytest.mark.parametrize(
    ("of_second", "message"),
    [
        ({"sigmas": [0.3, 0.125, 0.0]}, "its second does not begin where it ends"),
        ({"others": [small_profile()], "weights": "1" * 16}, "its second has others, or a second, itself"),
        ({"share": 0.0}, "share is not between 0 and 1"),
    ],
)
def test_a_second_expert_that_is_not_sound(of_second: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        of_two_experts(**of_second)


def test_other_numbers_of_steps_have_the_same_second_expert() -> None:
    profile = of_two_experts()
    for other in (of_two_experts(weights="3" * 16), replace(profile, second=None)):
        with pytest.raises(ValueError, match="the second expert of one of its others is another"):
            replace(profile, others=[other])


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
        (b'{"format": 9, "model": "small"}', f"has format 9, newer than this mixcache, which reads {FORMAT}"),
        (b'{"format": 7, "model": "small"}', f"has format 7, not of this mixcache, which reads {FORMAT}"),
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
        ({"colour": "red"}, "it has an unknown key 'colour'"),
        ({"costs": None}, "it has no 'costs'"),
        ({"provenance": None}, "it has no 'provenance'"),
        ({"band": float("nan")}, "band is under 1"),
        ({"damping": 1.5}, "damping is not between 0 and 1"),
        ({"psnr_at_one": float("nan")}, "a NaN is in it"),
        ({"psnr_at_one": float("inf")}, "a NaN is in it"),
        ({"outputs": [[1.0], [float("nan")], [1.0]], "differences": [[0.0]] * 3}, "a NaN is in it"),
        ({"sensitivity": {"step": [[1.0, float("nan")]]}}, "a NaN is in it"),
        ({"sigmas": [80.0, 5.0, 0.5, 0.0]}, "sigmas are over 1"),
        ({"sigmas": [1.0, 0.5, 0.75, 0.0]}, "sigmas does not fall"),
        ({"sigmas": [1.0, 0.5, 0.5, 0.0]}, "sigmas does not fall"),
        ({"sigmas": [1.0, float("nan"), 0.5, 0.0]}, "sigmas does not fall"),
        ({"sigmas": [1.0, 0.0]}, "sigmas has fewer than 3 values"),
        ({"sigmas": 4}, "is no sound profile"),
        ({"outputs": [[1.0, 0.0]] * 4}, "outputs has 4 points for 3 steps"),
        ({"differences": [[1.0, 0.0]] * 2}, "differences has 2 points for 3 steps"),
        ({"residuals": [[1.0]]}, "residuals has 1 points for 3 steps"),
        ({"outputs": [[1.0, 0.0], [1.0], [1.0, 0.0]]}, "outputs has points of different dimensions"),
        ({"outputs": [[1.0]] * 3}, "outputs and differences are not in the same space"),
        ({"outputs": [1.0, 2.0, 3.0]}, "is no sound profile"),
        ({"sensitivity": {}}, "sensitivity has nothing for step"),
        ({"sensitivity": {"step": []}}, "sensitivity has nothing for step"),
        ({"sensitivity": ["step"]}, "is no sound profile"),
        ({"costs": {"compute": 1.0}}, "costs lacks compute or step"),
        ({"costs": {"compute": 1.0, "step": 0.0}}, "a cost is not over 0"),
        ({"costs": {"compute": 1.0, "step": "cheap"}}, "is no sound profile"),
        ({"band": 0.9}, "band is under 1"),
    ],
)
def test_a_profile_that_is_not_sound(tmp_path: Path, changed: dict[str, Any], message: str) -> None:
    path = written(tmp_path, **changed)
    with pytest.raises(ProfileError, match=message) as caught:
        Profile.load(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


# --------------------------------------------------------------------------------------------------------- whose it is


def test_a_profile_fits_the_model_it_was_made_on(pipeline: Any, make_pipeline: Callable[..., Any]) -> None:
    profile = profile_of(pipeline.transformer)
    assert profile.misfit(pipeline.transformer) is None
    assert profile.misfit(make_pipeline(scheduler="euler").transformer) is None


def test_a_profile_fits_the_same_weights_in_bfloat16(pipeline: Any, make_pipeline: Callable[..., Any]) -> None:
    in_bfloat16 = make_pipeline(dtype="bfloat16").transformer
    assert in_bfloat16.dtype is torch.bfloat16
    assert profile_of(pipeline.transformer).misfit(in_bfloat16) is None
    assert profile_of(in_bfloat16).misfit(pipeline.transformer) is None


def test_a_profile_does_not_fit_another_model(pipeline: Any, make_pipeline: Callable[..., Any]) -> None:
    transformer = pipeline.transformer
    profile = profile_of(transformer)
    for changed, reason in (
        ({"transformer_class": "LTXTransformer"}, "it is of a LTXTransformer, not of a WanTransformer3DModel"),
        ({"fingerprint": "0" * 16}, "it is of another architecture of WanTransformer3DModel"),
        ({"dtype": "torch.float8_e4m3fn"}, "it was measured in torch.float8_e4m3fn, and the model is in torch.float32"),
        ({"weights": "0" * 16}, "it is of other weights of the same architecture"),
    ):
        assert replace(profile, **changed).misfit(transformer) == reason
    other_weights = make_pipeline(seed=1).transformer
    assert profile.misfit(other_weights) == "it is of other weights of the same architecture"
    assert profile_for(transformer) is None


def test_both_experts_must_fit(make_pipeline: Callable[..., Any]) -> None:
    high, low, other = (make_pipeline(seed=seed).transformer for seed in range(3))
    points = {"outputs": [[0.0]] * 2, "differences": [[0.0]] * 2, "residuals": []}
    of_low = profile_of(low, sigmas=[0.25, 0.125, 0.0], **points)
    of_both = profile_of(high, sigmas=[1.0, 0.75, 0.5, 0.25], second=of_low)
    other_weights = "it is of other weights of the same architecture"
    assert of_both.misfit(high, low) is None
    assert of_both.misfit(high, other) == f"{other_weights} (transformer_2)"
    assert of_both.misfit(other, low) == f"{other_weights} (transformer)"
    assert of_both.misfit(high) == "it is of two experts, and this model has one transformer"
    two = "and this model has two experts: it does not fit"
    assert profile_of(high).misfit(high, low) == f"it is of transformer alone, {two} transformer_2"
    assert profile_of(low).misfit(high, low) == f"it is of transformer_2 alone, {two} transformer"
    assert profile_of(other).misfit(high, low) == f"it is of one transformer, {two} transformer and transformer_2"


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
