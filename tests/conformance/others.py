"""Allegro and Latte: joined [uncond, cond] calls without a cache context."""

from __future__ import annotations

from functools import partial
from typing import Any

from conformance.variant import SHORT, Calls, Variant

PROMPT = "a small red circle moving left"
OTHER_PROMPT = "a big blue square moving right"
JOINED: Calls = (("uncond", "cond"),)
ALONE: Calls = (("cond",),)


def _text_parts() -> dict[str, Any]:
    from transformers import T5Config, T5EncoderModel

    from training.tokenizer import build_tokenizer

    tokenizer = build_tokenizer()
    config = T5Config(vocab_size=len(tokenizer), d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    return {"tokenizer": tokenizer, "text_encoder": T5EncoderModel(config).eval()}


def _scheduler(name: str) -> Any:
    """Its noise is of about the clip's size: from a greater one a model that has learnt nothing does not come back."""
    import diffusers

    return getattr(diffusers, name)(beta_schedule="linear", beta_end=0.002)


def _strengthen(*block_lists: Any) -> None:
    """Doubles the matrices of the blocks, so that the prompt tells."""
    import torch

    with torch.no_grad():
        for blocks in block_lists:
            for weight in blocks.parameters():
                if weight.ndim == 2:
                    weight.mul_(2)


def _build_allegro(scheduler: str) -> Any:
    """4 blocks of width 48; latents of 4 channels, 8 times smaller than the frames and 4 times shorter."""
    import torch
    from diffusers import AllegroPipeline, AllegroTransformer3DModel, AutoencoderKLAllegro

    torch.set_num_threads(1)
    torch.manual_seed(0)
    transformer = AllegroTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=24,
        in_channels=4,
        out_channels=4,
        num_layers=4,
        cross_attention_dim=48,
        sample_width=4,
        sample_height=4,
        sample_frames=3,
        caption_channels=16,
    )
    _strengthen(transformer.transformer_blocks)
    vae = AutoencoderKLAllegro(block_out_channels=(8, 8, 8, 8), layers_per_block=1, norm_num_groups=2)
    pipeline = AllegroPipeline(
        **_text_parts(), vae=vae.eval(), transformer=transformer.eval(), scheduler=_scheduler(scheduler)
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def _build_latte(scheduler: str) -> Any:
    """4 blocks over space and 4 over time, in turn, of width 16; the variance comes in further channels."""
    import torch
    from diffusers import AutoencoderKL, LattePipeline, LatteTransformer3DModel

    torch.set_num_threads(1)
    torch.manual_seed(0)
    transformer = LatteTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=4,
        out_channels=8,
        num_layers=4,
        cross_attention_dim=16,
        attention_bias=True,
        sample_size=4,
        patch_size=2,
        activation_fn="gelu-approximate",
        num_embeds_ada_norm=1000,
        norm_type="ada_norm_single",
        norm_elementwise_affine=False,
        norm_eps=1e-6,
        caption_channels=16,
        video_length=3,
    )
    _strengthen(transformer.transformer_blocks, transformer.temporal_transformer_blocks)
    vae = AutoencoderKL(
        block_out_channels=(8, 8, 8, 8),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        norm_num_groups=2,
    )
    pipeline = LattePipeline(
        **_text_parts(), vae=vae.eval(), transformer=transformer.eval(), scheduler=_scheduler(scheduler)
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def _allegro_arguments(other: bool, guidance_scale: float = 7.5) -> dict[str, Any]:
    return dict(
        prompt=OTHER_PROMPT if other else PROMPT,
        height=32,
        width=48 if other else 32,
        num_frames=12,
        num_inference_steps=SHORT,
        guidance_scale=guidance_scale,
        max_sequence_length=24,
        clean_caption=False,
        output_type="latent",
    )


def _latte_arguments(other: bool, guidance_scale: float = 7.5) -> dict[str, Any]:
    """The number of frames is the transformer's own."""
    return dict(
        prompt=OTHER_PROMPT if other else PROMPT,
        height=32,
        width=48 if other else 32,
        video_length=3,
        num_inference_steps=SHORT,
        guidance_scale=guidance_scale,
        clean_caption=False,
        output_type="latent",
    )


def _both(arguments: Any, *values: float) -> dict[str, Any]:
    """The two argument makers of a variant."""
    return {"arguments": partial(arguments, False, *values), "other_arguments": partial(arguments, True, *values)}


_variant = partial(Variant, num_steps=SHORT)

VARIANTS: tuple[Variant, ...] = (
    _variant(
        name="allegro",
        build=partial(_build_allegro, "EulerAncestralDiscreteScheduler"),
        calls=JOINED,
        **_both(_allegro_arguments),
    ),
    _variant(
        name="allegro-ddim-unguided",
        build=partial(_build_allegro, "DDIMScheduler"),
        calls=ALONE,
        **_both(_allegro_arguments, 1.0),
    ),
    _variant(name="latte-ddim", build=partial(_build_latte, "DDIMScheduler"), calls=JOINED, **_both(_latte_arguments)),
    _variant(
        name="latte-euler",
        build=partial(_build_latte, "EulerDiscreteScheduler"),
        calls=JOINED,
        **_both(_latte_arguments),
    ),
    _variant(
        name="latte-dpm",
        build=partial(_build_latte, "DPMSolverMultistepScheduler"),
        calls=JOINED,
        **_both(_latte_arguments),
    ),
    _variant(
        name="latte-heun",
        build=partial(_build_latte, "HeunDiscreteScheduler"),
        calls=JOINED,
        num_steps=2 * SHORT - 1,
        **_both(_latte_arguments),
    ),
    _variant(
        name="latte-unguided",
        build=partial(_build_latte, "DDIMScheduler"),
        calls=ALONE,
        **_both(_latte_arguments, 1.0),
    ),
)
