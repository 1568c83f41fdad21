"""How branches were combined, found from the tensors: 2 samples of 100 elements."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest
import torch

from mixcache.core.guidance import combination, tolerance


def branches(dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    """Two that are much alike, as outputs of one model are, and one further."""
    generator = torch.Generator().manual_seed(0)
    cond = torch.randn(2, 4, 25, generator=generator)
    return {
        "cond": cond.to(dtype),
        "uncond": (cond + 0.2 * torch.randn(2, 4, 25, generator=generator)).to(dtype),
        "skip": (cond + 0.2 * torch.randn(2, 4, 25, generator=generator)).to(dtype),
    }


@pytest.mark.parametrize(
    "mode", [nullcontext, lambda: torch.autocast("cpu", torch.bfloat16), torch.inference_mode], ids=["", "cast", "mode"]
)
def test_the_shares_of_three_branches_are_found_for_each_sample(mode: Any) -> None:
    values, scale = branches(), torch.tensor([2.0, 8.0]).view(2, 1, 1)
    with mode():
        output = values["uncond"] + scale * (values["cond"] - values["uncond"]) + 3 * (values["cond"] - values["skip"])
        found = combination(output, values)
    assert found is not None
    assert found.shares["uncond"].tolist() == pytest.approx([-1, -7], abs=1e-3)
    assert found.shares["cond"].tolist() == pytest.approx([5, 11], abs=1e-3)
    assert found.shares["skip"].tolist() == pytest.approx([-3, -3], abs=1e-3)
    assert float(found.misfit) < tolerance(torch.float32)
    assert torch.allclose(found.of(values), output, atol=1e-3)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision(dtype: torch.dtype) -> None:
    values = branches(dtype)
    found = combination(values["uncond"] + 5 * (values["cond"] - values["uncond"]), values)
    assert found is not None
    assert found.shares["cond"].tolist() == pytest.approx([5, 5], abs=0.05)
    assert float(found.misfit) < tolerance(dtype)


def test_branches_that_agree_have_finite_shares_that_add_up_to_one() -> None:
    values = branches() | {"uncond": branches()["cond"], "skip": branches()["cond"]}
    found = combination(values["cond"].clone(), values)
    assert found is not None
    assert sum(found.shares.values()).tolist() == pytest.approx([1, 1], abs=1e-4)
    assert float(found.misfit) < tolerance(torch.float32)


def test_what_is_no_combination_misfits() -> None:
    values = branches()
    clamped = combination((5 * values["cond"] - 4 * values["uncond"]).clamp(-1, 1), values)
    assert clamped is not None
    assert float(clamped.misfit) > 0.05
    assert combination(values["cond"][:1], values) is None
    assert combination(values["cond"], {}) is None
