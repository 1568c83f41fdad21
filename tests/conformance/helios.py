"""Tiny pipelines of the Helios family: videos chunk by chunk, each chunk also stage by stage in the pyramid."""

from __future__ import annotations

from functools import partial
from typing import Any

from conformance.variant import SHORT, Calls, Variant, draw_image

PROMPT = "a small red circle moving left"
OTHER_PROMPT = "a big blue square moving right"
NEGATIVE_PROMPT = "a big square on blue background"
LATENT_CHANNELS = 4
ONE_BRANCH: Calls = (("cond",),)


def build_components() -> dict[str, Any]:
    """All but the scheduler; 4 blocks of width 24, latents of 4 channels."""
    import torch
    from diffusers import AutoencoderKLWan, HeliosTransformer3DModel
    from transformers import UMT5Config, UMT5EncoderModel

    from training.tokenizer import build_tokenizer

    torch.manual_seed(0)
    tokenizer = build_tokenizer()
    transformer = HeliosTransformer3DModel(
        patch_size=(1, 2, 2),
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        text_dim=16,
        freq_dim=16,
        ffn_dim=32,
        num_layers=4,
        rope_dim=(4, 4, 4),
        is_amplify_history=True,
    )
    vae = AutoencoderKLWan(
        base_dim=3,
        z_dim=LATENT_CHANNELS,
        dim_mult=[1, 1, 1, 1],
        num_res_blocks=1,
        temperal_downsample=[False, True, True],
        latents_mean=[0.0] * LATENT_CHANNELS,
        latents_std=[1.0] * LATENT_CHANNELS,
    )
    text_config = UMT5Config(vocab_size=len(tokenizer), d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    return {
        "tokenizer": tokenizer,
        "text_encoder": UMT5EncoderModel(text_config).eval(),
        "vae": vae.eval(),
        "transformer": transformer.eval(),
    }


def build_pipeline(solver: str = "unipc") -> Any:
    """HeliosPipeline: one stage."""
    from diffusers import HeliosPipeline, HeliosScheduler

    scheduler = HeliosScheduler(stages=1, stage_range=[0, 1], scheduler_type=solver, use_dynamic_shifting=True)
    pipeline = HeliosPipeline(scheduler=scheduler, **build_components())
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def build_pyramid(kind: str) -> Any:
    """HeliosPyramidPipeline: three stages."""
    from diffusers import HeliosDMDScheduler, HeliosPyramidPipeline, HeliosScheduler

    distilled = kind == "distilled"
    # With the default of 1 / 3 the covariance of the noise that joins the stages is singular to float32 on the CPU.
    gamma = 0.3
    if distilled:
        scheduler = HeliosDMDScheduler(use_dynamic_shifting=True, gamma=gamma)
    else:
        scheduler = HeliosScheduler(scheduler_type="unipc", gamma=gamma)
    pipeline = HeliosPyramidPipeline(
        scheduler=scheduler, is_cfg_zero_star=kind == "zero-star", is_distilled=distilled, **build_components()
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def arguments(**settings: Any) -> dict[str, Any]:
    """One chunk of 2 latent frames of 4 x 4."""
    values = {"prompt": PROMPT, "negative_prompt": NEGATIVE_PROMPT, "height": 32, "width": 32, "num_frames": 5}
    values |= {"num_latent_frames_per_chunk": 2, "max_sequence_length": 24, "output_type": "latent"}
    return values | {"num_inference_steps": SHORT, "guidance_scale": 5.0} | settings


def image_arguments(*, seed: int = 1, **settings: Any) -> dict[str, Any]:
    return arguments(image=draw_image(seed), **settings)


def pyramid_arguments(**settings: Any) -> dict[str, Any]:
    """One chunk of 2 latent frames, of 4 x 4, 8 x 8 and 16 x 16 in turn: 3, 3 and 2 steps."""
    values = arguments(height=128, width=128, pyramid_num_inference_steps_list=[3, 3, 2])
    del values["num_inference_steps"]
    return values | settings


def other(call: Any, **settings: Any) -> Any:
    return partial(call, prompt=OTHER_PROMPT, **settings)


DISTILLED: dict[str, Any] = {"guidance_scale": 1.0, "is_amplify_first_chunk": True, "num_frames": 10}

VARIANTS: tuple[Variant, ...] = (
    Variant(
        name="helios",
        num_steps=SHORT,
        build=build_pipeline,
        arguments=arguments,
        other_arguments=other(arguments, width=48),
    ),
    Variant(
        name="helios-euler-no-guidance",
        num_steps=SHORT,
        build=partial(build_pipeline, "euler"),
        arguments=partial(arguments, guidance_scale=1.0),
        other_arguments=other(arguments, guidance_scale=1.0, width=48),
        calls=ONE_BRANCH,
    ),
    Variant(
        name="helios-two-chunks",
        build=build_pipeline,
        arguments=partial(arguments, num_frames=10),
        other_arguments=other(arguments, num_frames=10, width=48),
        num_steps=2 * SHORT,
    ),
    Variant(
        name="helios-i2v",
        num_steps=SHORT,
        build=build_pipeline,
        arguments=image_arguments,
        other_arguments=other(image_arguments, seed=2, width=48),
    ),
    Variant(
        name="helios-pyramid",
        build=partial(build_pyramid, "cfg"),
        arguments=pyramid_arguments,
        other_arguments=other(pyramid_arguments, width=192),
    ),
    Variant(
        name="helios-pyramid-zero-star-two-chunks",
        build=partial(build_pyramid, "zero-star"),
        arguments=partial(pyramid_arguments, num_frames=10),
        other_arguments=other(pyramid_arguments, num_frames=10, width=192),
        num_steps=16,
    ),
    Variant(
        name="helios-pyramid-distilled-two-chunks",
        build=partial(build_pyramid, "distilled"),
        arguments=partial(pyramid_arguments, **DISTILLED),
        other_arguments=other(pyramid_arguments, **DISTILLED, width=192),
        calls=ONE_BRANCH,
        num_steps=24,
    ),
)
