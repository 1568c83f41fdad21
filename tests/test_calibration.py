"""Impacts by Gaussian perturbation, on a tiny pipeline."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from mixcache.calibration import PerturbingEngine, measure_impacts
from mixcache.policies import POLICIES

ARGUMENTS = {
    "height": 16,
    "width": 16,
    "num_frames": 5,
    "num_inference_steps": 6,
    "guidance_scale": 5.0,
    "max_sequence_length": 24,
}


def test_every_granularity_and_step_has_an_impact_and_nothing_stays_attached(pipeline: Any, generate: Any) -> None:
    before = generate(pipeline)
    impacts = measure_impacts(pipeline, ["a circle"], [1, 4], ARGUMENTS)
    assert {name: list(rows) for name, rows in impacts.items()} == {g: [1, 4] for g in ("step", "cfg", "block")}
    assert all(value > 0 for rows in impacts.values() for value in rows.values())
    assert torch.equal(generate(pipeline), before)


def test_no_strength_changes_nothing(pipeline: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PerturbingEngine, "strength", 1e-30)
    impacts = measure_impacts(pipeline, ["a circle"], [2], ARGUMENTS)
    # block adds its residual again, which may differ in the last bit of the sum
    assert impacts["step"] == {2: 0.0}
    assert impacts["cfg"] == {2: 0.0}


def test_a_shipped_profile_is_found_for_its_model_and_no_other(pipeline: Any) -> None:
    from mixcache.profiles import impacts_for, shipped_profiles
    from mixcache.zoo import load

    impacts = impacts_for(load("shapes-wan").transformer)
    assert impacts is not None
    assert set(impacts) == {"step", "cfg", "block"}
    assert impacts_for(pipeline.transformer) is None
    assert POLICIES["mixcache"](impacts=impacts).granularities
    for profile in shipped_profiles():
        assert {"command", "prompts", "versions", "date", "strength"} <= set(profile["provenance"])
