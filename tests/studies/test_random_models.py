"""The rows of public models, and what is built of them."""

from __future__ import annotations

import pytest
import torch

from studies.random_models import MODELS, build_pipeline, build_transformer, call_arguments, tiny

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("name", "billions"),
    [("wan-1.3b-480p", 1.42), ("wan-14b-480p", 14.29), ("hunyuan-720p", 12.82), ("cogvideox-5b", 5.57)],
)
def test_the_configs_have_as_many_parameters_as_the_public_models(name: str, billions: float) -> None:
    transformer = build_transformer(MODELS[name], torch.device("meta"), torch.bfloat16)
    count = sum(parameter.numel() for parameter in transformer.parameters())
    assert count / 1e9 == pytest.approx(billions, abs=0.006)


def test_weights_are_finite_and_of_the_types_that_a_checkpoint_would_have() -> None:
    transformer = build_transformer(tiny(MODELS["wan-1.3b-480p"]), CPU, torch.bfloat16)
    types = {name: parameter.dtype for name, parameter in transformer.named_parameters()}
    assert types["blocks.0.attn1.to_q.weight"] == torch.bfloat16
    assert types["blocks.0.scale_shift_table"] == types["blocks.0.norm2.weight"] == torch.float32
    assert all(bool(parameter.isfinite().all()) for parameter in transformer.parameters())
    assert torch.get_default_dtype() == torch.float32


@pytest.mark.parametrize(
    ("name", "shape", "others"),
    [
        ("wan-1.3b-480p", (1, 8, 16), {"negative_prompt_embeds"}),
        ("cogvideox-5b", (1, 8, 16), {"negative_prompt_embeds"}),
        ("hunyuan-720p", (1, 8, 16), {"pooled_prompt_embeds", "prompt_attention_mask"}),
    ],
)
def test_a_call_brings_embeddings_in_the_models_type(name: str, shape: tuple[int, ...], others: set[str]) -> None:
    model = tiny(MODELS[name])
    arguments = call_arguments(model, build_pipeline(model, CPU, torch.bfloat16))
    assert (arguments["prompt_embeds"].shape, arguments["prompt_embeds"].dtype) == (shape, torch.bfloat16)
    size = {"height", "width", "guidance_scale", "output_type"}
    assert set(arguments) == {"prompt_embeds", *others, *size}
