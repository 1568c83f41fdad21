"""Middle blocks left out of a trained model, under what may be around it in a workflow."""

from __future__ import annotations

from typing import Any

import comfy.model_base
import comfy.patcher_extension
import comfy.sample
import comfy.samplers
import pytest
import torch
from comfyui_mixcache import report
from comfyui_mixcache.attachment import attach
from comfyui_mixcache.blocks import Gate
from comfyui_mixcache.settings import Settings
from definitions import without_blocks
from test_conditions import CASES, EVERY_SECOND, model, run_of, sample
from tiny import TinyWan
from workflows import CAPTION

BLOCKS = {**EVERY_SECOND, "leave_out": "middle blocks"}


def middle(patcher: Any) -> list[Any]:
    return list(patcher.model.diffusion_model.blocks)[1:-1]


def replacing() -> Any:
    clone = model().clone()
    clone.set_model_patch_replace(lambda args, extra: extra["original_block"](args), "dit", "double_block", 2)
    return clone


def adding() -> Any:
    clone = model().clone()
    clone.set_model_patch(lambda args: args, "double_block")
    return clone


KINDS = ["guidance", "guidance of 1", "two calls", "a batch", "half denoised", "a mask", "prompts in turn", "a LoRA"]


@pytest.mark.parametrize("name", KINDS)
def test_a_clip_is_what_its_definition_says(name: str) -> None:
    case = CASES[name]
    patcher = case.made()
    cached = attach(patcher, Settings(**BLOCKS))
    clip = sample(cached, case)
    words = report.did(run_of(cached))
    assert words.count("block") >= 4
    assert run_of(cached).num_corrected == 0  # more is known of them than an interpolation says
    with without_blocks(patcher, [word == "block" for word in words], middle(patcher)) as reference:
        wanted = sample(reference, case)
    torch.testing.assert_close(clip, wanted, rtol=2e-3, atol=2e-3)
    plain = sample(patcher, case)
    assert not torch.equal(clip, plain)
    assert torch.equal(sample(attach(patcher, Settings(**BLOCKS, start_percent=0.99)), case), plain)


def test_all_three_take_turns() -> None:
    cached = attach(model(), Settings(policy="hindsight", setting=0.02, leave_out="all three"))
    assert sample(cached).isfinite().all()
    words = report.did(run_of(cached))
    assert set(words) == {"compute", "step", "block"}  # cfg errs as much as step here, and saves half of it
    assert 0.5 < report.share_computed(run_of(cached)) < 0.8


@pytest.mark.parametrize(
    "policy", [EVERY_SECOND, {"policy": "hindsight", "setting": 0.05}], ids=["every_nth", "hindsight"]
)
@pytest.mark.parametrize(("num_asked_before", "grows"), [(7, False), (8, False), (17, True), (20, True)])
def test_runs_that_are_split_otherwise_than_before_are_computed(
    monkeypatch: pytest.MonkeyPatch, policy: dict[str, Any], num_asked_before: int, grows: bool
) -> None:
    """Where memory gets short in mid-way, ComfyUI asks for each prompt in its own run; when it is back, no more."""
    num_asked = 0

    def required(self: Any, *args: Any, **kwargs: Any) -> float:
        nonlocal num_asked
        num_asked += 1
        return float("inf") if (num_asked <= num_asked_before) is grows else 0.0

    monkeypatch.setattr(comfy.model_base.BaseModel, "memory_required", required)
    patcher = model()
    cached = attach(patcher, Settings(**policy, leave_out="middle blocks"))
    clip = sample(cached)
    words = report.did(run_of(cached))
    assert words.count("in full") <= 1
    assert ("in doubt     ComfyUI r" in report.text(run_of(cached))) is ("in full" in words)
    assert words.count("block") >= 3
    assert clip.isfinite().all()
    if policy != EVERY_SECOND:
        return  # hindsight does not only repeat
    num_asked = 0
    with without_blocks(patcher, [word == "block" for word in words], middle(patcher)) as reference:
        wanted = sample(reference)
    torch.testing.assert_close(clip, wanted, rtol=2e-3, atol=2e-3)


def test_where_runs_are_split_again_and_again_blocks_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    step = 0

    def required(self: Any, *args: Any, **kwargs: Any) -> float:
        return float("inf") if step > 5 and step % 2 == 0 else 0.0

    def next_step(executor: Any, *args: Any) -> Any:
        nonlocal step
        step += 1
        return executor(*args)

    monkeypatch.setattr(comfy.model_base.BaseModel, "memory_required", required)
    patcher = model().clone()
    patcher.add_wrapper_with_key(comfy.patcher_extension.WrappersMP.PREDICT_NOISE, "test", next_step)
    cached = attach(patcher, Settings(**BLOCKS))
    sample(cached)
    words = report.did(run_of(cached))
    assert words.count("in full") == 2
    assert words.count("block") == 0


def test_a_negative_prompt_with_a_model_of_its_own_is_passed_through() -> None:
    import comfy_extras.nodes_custom_sampler as nodes

    cached, other = attach(model(), Settings(**BLOCKS)), model()
    _, positive, negative, empty = TinyWan().load(CAPTION, "", 32, 5)
    guider = nodes.Guider_DualModel(cached, other)
    guider.set_conds(positive, negative)
    guider.set_cfg(5.0)
    sigmas = comfy.samplers.KSampler(model(), 8, torch.device("cpu"), "euler", "simple").sigmas
    noise = comfy.sample.prepare_noise(empty["samples"], 1)
    with torch.inference_mode():
        guider.sample(noise, empty["samples"], comfy.samplers.ksampler("euler"), sigmas, disable_pbar=True, seed=1)
    assert "passed through: the negative prompt has a model of its own" in report.text(run_of(cached))


@pytest.mark.parametrize(
    ("made", "says"),
    [
        (replacing, "another node replaces blocks of the model, or adds to them"),
        (adding, "another node replaces blocks of the model, or adds to them"),
        (CASES["skip-layer guidance"].made, "a node that guides may run the blocks in its own way"),
        (CASES["compiled"].made, "the model is compiled as a whole, and blocks of one graph cannot be left out"),
    ],
)
def test_where_blocks_must_stay_the_run_is_passed_through_to_the_bit(made: Any, says: str) -> None:
    patcher = made()
    cached = attach(patcher, Settings(**BLOCKS))
    assert torch.equal(sample(cached), sample(patcher))
    assert f"passed through: {says}" in report.text(run_of(cached))


def test_what_is_left_of_it_is_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    gates: list[Gate] = []

    def anew(self: Gate, inner: Any = Gate.anew) -> Gate:
        gates.append(inner(self))
        return gates[-1]

    monkeypatch.setattr(Gate, "anew", anew)
    patcher = replacing()
    patcher.model_options["transformer_options"]["patches_replace"]["dit"].clear()
    before = patcher.model_options["transformer_options"]["patches_replace"]
    cached = attach(patcher, Settings(**BLOCKS))
    sample(cached)
    assert "block" in report.did(run_of(cached))
    assert cached.model_options["transformer_options"]["patches_replace"] == before == {"dit": {}}
    (gate,) = gates  # that of the run
    assert gate._layouts
    assert gate._begun is gate._given is gate._recorded is None
