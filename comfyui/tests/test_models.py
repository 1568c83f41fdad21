"""ComfyUI's own model classes, built tiny with random weights: what the table of models says of each."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field, replace
from typing import Any

import comfy.latent_formats
import comfy.model_base
import comfy.model_patcher
import comfy.nested_tensor
import comfy.sample
import comfy.supported_models
import comfy.supported_models_base
import pytest
import torch
from comfyui_mixcache import report
from comfyui_mixcache.attachment import attach, attachment_of
from comfyui_mixcache.blocks import BLOCKS
from comfyui_mixcache.models import MODELS, row_for
from comfyui_mixcache.settings import Settings
from definitions import reusing, without_blocks

WAN = {
    "dim": 96,
    "ffn_dim": 96,
    "freq_dim": 32,
    "text_dim": 16,
    "num_heads": 2,
    "num_layers": 2,
    "in_dim": 16,
    "out_dim": 16,
}
HUNYUAN = {
    "in_channels": 16,
    "out_channels": 16,
    "patch_size": [1, 2, 2],
    "vec_in_dim": 24,
    "axes_dim": [4, 6, 6],
    "context_in_dim": 16,
    "hidden_size": 32,
    "mlp_ratio": 2.0,
    "num_heads": 2,
    "depth": 1,
    "depth_single_blocks": 1,
    "theta": 256,
    "qkv_bias": True,
    "guidance_embed": True,
    "byt5": False,
    "meanflow": False,
    "use_cond_type_embedding": False,
    "vision_in_dim": None,
    "meanflow_sum": False,
}
COSMOS = {
    "max_img_h": 240,
    "max_img_w": 240,
    "max_frames": 128,
    "in_channels": 16,
    "out_channels": 16,
    "patch_spatial": 2,
    "patch_temporal": 1,
    "model_channels": 64,
    "num_blocks": 2,
    "num_heads": 2,
    "crossattn_emb_channels": 16,
    "pos_emb_cls": "rope3d",
    "pos_emb_learnable": True,
    "pos_emb_interpolation": "crop",
    "use_adaln_lora": True,
    "adaln_lora_dim": 8,
    "extra_per_block_abs_pos_emb": False,
    "rope_h_extrapolation_ratio": 1.0,
    "rope_w_extrapolation_ratio": 1.0,
    "rope_t_extrapolation_ratio": 1.0,
}
LTX = {
    "attention_head_dim": 16,
    "num_attention_heads": 2,
    "cross_attention_dim": 32,
    "caption_channels": 16,
    "num_layers": 2,
}


@dataclass(frozen=True, kw_only=True)
class Tiny:
    """A class of `comfy.model_base`, and how to build it small."""

    of: str
    """The class of `comfy.supported_models` that its settings are of."""
    config: dict[str, Any]
    shapes: tuple[tuple[int, ...], ...]
    """Of the latents; several where video and sound are packed."""
    text: tuple[int, int] = (6, 16)
    """Tokens and channels of the prompt."""
    prompt: dict[str, Any] = field(default_factory=dict)
    """More of what the prompt carries."""
    more: dict[str, Any] = field(default_factory=dict)
    """More arguments of the model."""


TINY = {
    "WAN21": Tiny(of="WAN21_T2V", config={"model_type": "t2v", **WAN}, shapes=((1, 16, 2, 4, 4),)),
    "WAN21 I2V": Tiny(
        of="WAN21_I2V",
        config={"model_type": "i2v", **WAN, "in_dim": 36},
        shapes=((1, 16, 2, 4, 4),),
        prompt={"concat_latent_image": torch.ones(1, 16, 2, 4, 4), "concat_mask": torch.ones(1, 1, 2, 4, 4)},
        more={"image_to_video": True},
    ),
    "WAN21_Vace": Tiny(
        of="WAN21_Vace",
        config={"model_type": "vace", **WAN, "vace_layers": 1, "vace_in_dim": 96},
        shapes=((1, 16, 2, 4, 4),),
    ),
    "WAN22": Tiny(
        of="WAN22_T2V", config={"model_type": "t2v", **WAN, "in_dim": 48, "out_dim": 48}, shapes=((1, 48, 2, 4, 4),)
    ),
    "HunyuanVideo": Tiny(
        of="HunyuanVideo",
        config=HUNYUAN,
        shapes=((1, 16, 2, 4, 4),),
        prompt={"pooled_output": torch.ones(1, 24)},
    ),
    "HunyuanVideo15": Tiny(
        of="HunyuanVideo15",
        config={**HUNYUAN, "in_channels": 65, "out_channels": 32, "vec_in_dim": None, "patch_size": [1, 1, 1]}
        | {"guidance_embed": False, "use_cond_type_embedding": True, "vision_in_dim": 12},
        shapes=((1, 32, 2, 3, 3),),
        prompt={"pooled_output": None},
    ),
    "LTXV": Tiny(
        of="LTXV",
        config=LTX,
        shapes=((1, 128, 2, 2, 2),),
        prompt={"attention_mask": torch.ones(1, 6, dtype=torch.long)},
    ),
    "LTXAV": Tiny(
        of="LTXAV",
        config=LTX
        | {"audio_attention_head_dim": 8, "audio_num_attention_heads": 2, "audio_cross_attention_dim": 16}
        | {"caption_channels": 16},
        shapes=((1, 128, 2, 2, 2), (1, 8, 4, 16)),
        text=(6, 32),
    ),
    "CogVideoX": Tiny(
        of="CogVideoX_T2V",
        config={
            "num_attention_heads": 2,
            "attention_head_dim": 16,
            "time_embed_dim": 16,
            "text_embed_dim": 16,
            "num_layers": 2,
            "max_text_seq_length": 6,
            "use_rotary_positional_embeddings": True,
        },
        shapes=((1, 16, 2, 4, 4),),
    ),
    "GenmoMochi": Tiny(
        of="GenmoMochi",
        config={
            "patch_size": 2,
            "in_channels": 12,
            "hidden_size_x": 48,
            "hidden_size_y": 32,
            "mlp_ratio_x": 256.0,  # the class asks for these widths
            "mlp_ratio_y": 192.0,
            "depth": 2,
            "num_heads": 2,
            "t5_feat_dim": 16,
            "t5_token_length": 6,
            "learn_sigma": False,
            "qk_norm": True,
            "qkv_bias": False,
            "out_bias": True,
            "use_t5": True,
            "attn_drop": 0.0,
            "use_extended_posenc": False,
            "rope_theta": 10000.0,
        },
        shapes=((1, 12, 2, 4, 4),),
        prompt={"attention_mask": torch.ones(1, 6, dtype=torch.long)},
    ),
    "CosmosVideo": Tiny(
        of="CosmosT2V",
        config={**COSMOS, "block_config": "FA-CA-MLP", "block_x_format": "THWBD", "affline_emb_norm": True}
        | {"extra_per_block_abs_pos_emb": True, "extra_per_block_abs_pos_emb_type": "learnable"},
        shapes=((1, 16, 2, 4, 4),),
    ),
    "CosmosPredict2": Tiny(of="CosmosT2IPredict2", config=COSMOS, shapes=((1, 16, 2, 4, 4),)),
    "Kandinsky5": Tiny(
        of="Kandinsky5",
        config={
            "in_text_dim": 16,
            "in_text_dim2": 12,
            "time_dim": 16,
            "model_dim": 64,
            "ff_dim": 64,
            "visual_embed_dim": 132,
            "num_text_blocks": 1,
            "num_visual_blocks": 2,
            "axes_dims": (16, 24, 24),
        },
        shapes=((1, 16, 2, 4, 4),),
        prompt={"pooled_output": torch.ones(1, 12)},
    ),
    "MiniMaxH3": Tiny(
        of="MiniMaxH3",
        config={
            "hidden_size": 64,
            "num_layers": 2,
            "token_refiner_num_layers": 1,
            "num_attention_heads": 2,
            "attention_head_dim": 32,
            "ffn_hidden_size": 64,
            "text_dim": 16,
            "timestep_input_dim": 16,
            "time_embed_hidden_size": 16,
            "time_embed_dim": 16,
            "rope_inv_freq_len": 4,
        },
        shapes=((1, 24, 2, 4, 4), (1, 32, 2, 4)),
    ),
}


CAMERA = {"model_type": "camera", "in_dim": 32, "in_dim_control_adapter": 24}
DEEP = {
    "WanModel": ("WAN21", TINY["WAN21"], {"num_layers": 5}),
    "CameraWanModel": ("WAN21_Camera", replace(TINY["WAN21"], of="WAN21_Camera"), {**CAMERA, "num_layers": 5}),
    "HunyuanVideo": ("HunyuanVideo", TINY["HunyuanVideo"], {"depth_single_blocks": 5}),
    "LTXVModel": ("LTXV", TINY["LTXV"], {"num_layers": 5}),
}
"""By the class of the diffusion model: a class that has it, one of the tiny ones, and what makes it deep enough."""


def deep(name: str) -> tuple[Any, Tiny, list[Any]]:
    """A patcher, what it is made of, and its blocks but for the first and the last one."""
    kind, tiny, layers = DEEP[name]
    tiny = replace(tiny, config=tiny.config | layers)
    patcher = built(kind, tiny)
    assert type(patcher.model.diffusion_model).__name__ == name
    return patcher, tiny, list(getattr(patcher.model.diffusion_model, BLOCKS[name].attribute))[1:-1]


def built(name: str, tiny: Tiny | None = None) -> Any:
    """A patcher of the class, on the CPU, with weights that make its output depend on all that goes in."""
    tiny = TINY[name] if tiny is None else tiny
    settings = getattr(comfy.supported_models, tiny.of)({**tiny.config})
    settings.set_inference_dtype(torch.float32, None)
    torch.manual_seed(0)
    made = getattr(comfy.model_base, name.split()[0])(settings, device="cpu", **tiny.more).eval()
    with torch.no_grad():
        for weight in made.diffusion_model.parameters():
            weight.copy_(torch.randn(weight.shape) * (0.3 / max(1, weight.shape[-1]) ** 0.5))
    cpu = torch.device("cpu")
    return comfy.model_patcher.ModelPatcher(made, load_device=cpu, offload_device=cpu)


def sample(patcher: Any, tiny: Tiny, steps: int = 12) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    texts = [torch.randn(1, *tiny.text, generator=generator) for _ in range(2)]
    positive, negative = ([[text, dict(tiny.prompt)]] for text in texts)
    parts = [torch.zeros(shape) for shape in tiny.shapes]
    latents = comfy.nested_tensor.NestedTensor(parts) if len(parts) > 1 else parts[0]
    noise = comfy.sample.prepare_noise(latents, 4)
    given = {"denoise": 1.0, "seed": 4, "disable_pbar": True}
    with torch.inference_mode():
        clip = comfy.sample.sample(patcher, noise, steps, 4.0, "euler", "simple", positive, negative, latents, **given)
    return torch.cat([part.flatten() for part in clip.unbind()]) if clip.is_nested else clip


@pytest.mark.parametrize("name", TINY)
def test_a_model_is_cached_as_its_definition_says(name: str) -> None:
    patcher, tiny = built(name), TINY[name]
    plain = sample(patcher, tiny)
    assert plain.isfinite().all()
    cached = attach(patcher, Settings(policy="every_nth", setting=2.0, correct=False))
    clip = sample(cached, tiny)
    run = attachment_of(cached).runs[-1]
    words = report.did(run)
    assert words.count("step") == 3
    wanted = sample(reusing(patcher, [word == "step" for word in words]), tiny)
    assert float((clip - wanted).norm() / wanted.norm()) < 1e-3
    assert float((clip - plain).norm() / plain.norm()) > 1e-5
    assert torch.equal(sample(attach(patcher, Settings(start_percent=0.99)), tiny), plain)
    corrected = attach(patcher, Settings(policy="every_nth", setting=2.0))
    sample(corrected, tiny)
    assert attachment_of(corrected).runs[-1].num_corrected == 3


@pytest.mark.parametrize("name", BLOCKS)
def test_middle_blocks_are_left_out_as_the_definition_says(name: str) -> None:
    patcher, tiny, blocks = deep(name)
    plain = sample(patcher, tiny)
    cached = attach(patcher, Settings(policy="every_nth", setting=2.0, leave_out="middle blocks"))
    clip = sample(cached, tiny)
    run = attachment_of(cached).runs[-1]
    words = report.did(run)
    assert words.count("block") >= 3
    assert words.count("block") + words.count("compute") == 12
    num_blocks = run.trace.num_blocks
    assert report.share_computed(run) == pytest.approx(1 - words.count("block") * 3 / num_blocks / 12)
    assert torch.equal(sample(patcher, tiny), plain)
    options = cached.model_options["transformer_options"]
    assert not options.get("patches_replace", {}).get("dit")
    with without_blocks(patcher, [word == "block" for word in words], blocks) as reference:
        wanted = sample(reference, tiny)
    assert float((clip - wanted).norm() / wanted.norm()) < 1e-3
    assert float((clip - plain).norm() / plain.norm()) > 1e-5


@pytest.mark.parametrize("name", ["WAN21_Vace", "CogVideoX", "GenmoMochi", "LTXAV", "Kandinsky5", "WAN21"])
def test_blocks_that_stay_are_one_line(name: str) -> None:
    with pytest.raises(
        ValueError, match=r"is not for this model \(.*\), which has no middle blocks that can be left out: set it"
    ):
        attach(built(name), Settings(policy="every_nth", setting=2.0, leave_out="middle blocks"))  # WAN21 has two


def test_every_row_is_a_class_of_comfyui_and_built_here() -> None:
    assert all(hasattr(comfy.model_base, row.model) for row in MODELS)
    assert {row.model for row in MODELS if not row.unsafe} == {name.split()[0] for name in TINY}


def test_classes_without_a_row_have_that_of_what_they_derive_from() -> None:
    rows = {
        "WAN21_HuMo": "WAN21",
        "WAN22_S2V": "WAN21",
        "WAN21_CausalAR": "WAN21_CausalAR",
        "HunyuanVideoI2V": "HunyuanVideo",
        "HunyuanVideo15_SR_Distilled": "HunyuanVideo15",
    }
    for name, row in rows.items():
        kind = getattr(comfy.model_base, name)
        assert row_for(kind.__new__(kind)).model == row


def test_an_unknown_class_is_one_line() -> None:
    kind = comfy.model_base.Flux
    with pytest.raises(ValueError, match="does not know the model class 'Flux': bypass the MixCache node, or give it"):
        row_for(kind.__new__(kind))


def test_a_model_that_allows_nothing_is_left_as_it_is(caplog: pytest.LogCaptureFixture) -> None:
    patcher = built("WAN21")
    patcher.model.__class__ = type("WAN21_CausalAR", (comfy.model_base.WAN21,), {})
    with caplog.at_level(logging.WARNING, logger="mixcache"):
        assert attach(patcher, Settings()) is patcher
    assert "leaves Wan 2.1, causal, streaming as it is: its calls write a key-value cache" in caplog.text
