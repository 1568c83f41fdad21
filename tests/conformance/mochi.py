"""Mochi: joined [uncond, cond] calls and a schedule that runs from 0 to 1000."""

from __future__ import annotations

from functools import partial
from typing import Any

from conformance.variant import SHORT, Calls, Variant

PROMPT = "a small red circle moving left"
OTHER_PROMPT = "a big blue square moving right"
JOINED: Calls = (("uncond", "cond"),)
ALONE: Calls = (("cond",),)


def _build() -> Any:
    """4 blocks of width 24, the text's 16; latents of 12 channels, 8 times smaller than the frames, 6 times shorter."""
    import torch
    from diffusers import AutoencoderKLMochi, FlowMatchEulerDiscreteScheduler, MochiPipeline, MochiTransformer3DModel
    from transformers import T5Config, T5EncoderModel

    from training.tokenizer import build_tokenizer

    torch.set_num_threads(1)
    torch.manual_seed(0)
    tokenizer = build_tokenizer()
    transformer = MochiTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=12,
        num_layers=4,
        pooled_projection_dim=16,
        in_channels=12,
        text_embed_dim=16,
        time_embed_dim=16,
        max_sequence_length=24,
    )
    with torch.no_grad():
        transformer.pos_frequencies.normal_(std=0.05)
    vae = AutoencoderKLMochi(
        encoder_block_out_channels=(32, 32, 32, 32),
        decoder_block_out_channels=(32, 32, 32, 32),
        layers_per_block=(1, 1, 1, 1, 1),
    )
    text_config = T5Config(vocab_size=len(tokenizer), d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    pipeline = MochiPipeline(
        tokenizer=tokenizer,
        text_encoder=T5EncoderModel(text_config).eval(),
        vae=vae.eval(),
        transformer=transformer.eval(),
        scheduler=FlowMatchEulerDiscreteScheduler(invert_sigmas=True),
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def _arguments(other: bool, guidance_scale: float) -> dict[str, Any]:
    return dict(
        prompt=OTHER_PROMPT if other else PROMPT,
        height=32,
        width=48 if other else 32,
        num_frames=13,
        num_inference_steps=SHORT,
        guidance_scale=guidance_scale,
        max_sequence_length=24,
        output_type="latent",
    )


_variant = partial(Variant, num_steps=SHORT)

VARIANTS: tuple[Variant, ...] = (
    _variant(
        name="mochi",
        build=_build,
        arguments=partial(_arguments, False, 4.5),
        other_arguments=partial(_arguments, True, 4.5),
        calls=JOINED,
    ),
    _variant(
        name="mochi-unguided",
        build=_build,
        arguments=partial(_arguments, False, 1.0),
        other_arguments=partial(_arguments, True, 1.0),
        calls=ALONE,
    ),
)
