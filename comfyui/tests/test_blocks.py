"""Middle blocks left out of a trained model, under what may be around it in a workflow."""

from __future__ import annotations

from typing import Any

import comfy.model_base
import pytest
import torch
from comfyui_mixcache import report
from comfyui_mixcache.attachment import attach
from comfyui_mixcache.settings import Settings
from definitions import without_blocks
from test_conditions import CASES, EVERY_SECOND, model, run_of, sample

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


@pytest.mark.parametrize("name", ["guidance", "guidance of 1", "two calls", "a batch", "half denoised", "a LoRA"])
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


def test_runs_that_are_split_otherwise_than_before_are_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where memory gets short in mid-way, ComfyUI asks for each prompt in a run of its own."""
    num_asked = 0

    def required(self: Any, *args: Any, **kwargs: Any) -> float:
        nonlocal num_asked
        num_asked += 1
        return 0.0 if num_asked <= 7 else float("inf")

    monkeypatch.setattr(comfy.model_base.BaseModel, "memory_required", required)
    patcher = model()
    cached = attach(patcher, Settings(**BLOCKS))
    clip = sample(cached)
    words = report.did(run_of(cached))
    assert words.count("in full") == 1
    assert words.count("block") >= 3
    assert "in doubt     ComfyUI runs the model otherwise than before" in report.text(run_of(cached))
    num_asked = 0
    with without_blocks(patcher, [word == "block" for word in words], middle(patcher)) as reference:
        wanted = sample(reference)
    torch.testing.assert_close(clip, wanted, rtol=2e-3, atol=2e-3)


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


def test_what_is_left_of_it_is_nothing() -> None:
    patcher = replacing()
    patcher.model_options["transformer_options"]["patches_replace"]["dit"].clear()
    before = patcher.model_options["transformer_options"]["patches_replace"]
    cached = attach(patcher, Settings(**BLOCKS))
    sample(cached)
    assert "block" in report.did(run_of(cached))
    assert cached.model_options["transformer_options"]["patches_replace"] == before == {"dit": {}}
    gate = cached.model_options["transformer_options"]["mixcache"].gate
    assert gate._begun is gate._given is gate._recorded is None
