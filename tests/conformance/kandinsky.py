"""Kandinsky 5 and 6."""

from __future__ import annotations

from functools import partial
from typing import Any

from conformance.tiny_qwen import build_chat_tokenizer, build_qwen, draw_image, redraw_weights
from conformance.variant import SHORT, Variant

PROMPT = "a small red circle moving left"
OTHER_PROMPT = "a big blue square moving right"
NEGATIVE_PROMPT = "a green triangle"
WIDTH = 16


def build_encoders() -> dict[str, Any]:
    """Qwen2.5-VL for the tokens and CLIP for the pooled embedding, and the VAE."""
    from diffusers import AutoencoderKLHunyuanVideo
    from transformers import CLIPTextConfig, CLIPTextModel

    from training.tokenizer import build_tokenizer

    tokenizer, tokenizer_2 = build_chat_tokenizer(), build_tokenizer()
    clip_config = CLIPTextConfig(
        vocab_size=len(tokenizer_2),
        hidden_size=WIDTH,
        intermediate_size=WIDTH,
        num_hidden_layers=1,
        num_attention_heads=2,
        bos_token_id=None,
        eos_token_id=1,
        pad_token_id=0,
    )
    vae = AutoencoderKLHunyuanVideo(
        latent_channels=4,
        down_block_types=("HunyuanVideoDownBlock3D",) * 3,
        up_block_types=("HunyuanVideoUpBlock3D",) * 3,
        block_out_channels=(8, 8, 8),
        layers_per_block=1,
        norm_num_groups=2,
        mid_block_add_attention=False,
    )
    return {
        "tokenizer": tokenizer,
        "text_encoder": build_qwen(len(tokenizer), WIDTH),
        "tokenizer_2": tokenizer_2,
        "text_encoder_2": CLIPTextModel(clip_config).eval(),
        "vae": vae.eval(),
    }


NABLA = {
    "attention_type": "nabla",
    "attention_P": 0.9,
    "attention_wT": 3,
    "attention_wW": 3,
    "attention_wH": 3,
    "attention_add_sta": True,
    "attention_method": "topcdf",
}


def build_kandinsky5_nabla() -> Any:
    """Sparse attention. Only these processors get flex attention: set on the model it becomes that of every model.

    Without the flag flex attention warns and compiles, which takes long.
    """
    from diffusers.models.attention_dispatch import AttentionBackendName
    from torch.nn.attention import flex_attention

    flex_attention._FLEX_ATTENTION_DISABLE_COMPILE_DEBUG = True
    pipeline = build_kandinsky5("Kandinsky5T2VPipeline", False, model_dim=32, axes_dims=(4, 6, 6), **NABLA)
    for block in pipeline.transformer.visual_transformer_blocks:
        block.self_attention.processor._attention_backend = AttentionBackendName.FLEX
    return pipeline


def build_kandinsky5(pipeline_class: str, visual_condition: bool, **settings: Any) -> Any:
    import diffusers
    import torch

    torch.manual_seed(0)
    transformer = diffusers.Kandinsky5Transformer3DModel(
        in_visual_dim=4,
        out_visual_dim=4,
        in_text_dim=WIDTH,
        in_text_dim2=WIDTH,
        time_dim=16,
        ff_dim=32,
        num_text_blocks=2,
        num_visual_blocks=4,
        visual_cond=visual_condition,
        **{"model_dim": 24, "axes_dims": (4, 4, 4)} | settings,
    )
    pipeline = getattr(diffusers, pipeline_class)(
        **build_encoders(),
        transformer=redraw_weights(transformer),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=5.0),
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def build_kandinsky6(piflow_grid: int = 1) -> Any:
    """With `piflow_grid` above 1 the model predicts so many points, which the scheduler integrates by itself."""
    import torch
    from diffusers import (
        FlowMatchEulerDiscreteScheduler,
        Kandinsky6TI2VAPipeline,
        Kandinsky6Transformer3DModel,
        MMAudioVAE,
        MMAudioVocoder,
        PiflowScheduler,
    )

    torch.manual_seed(0)
    transformer = Kandinsky6Transformer3DModel(
        in_visual_dim=4,
        out_visual_dim=4 * piflow_grid,
        in_text_dim=WIDTH,
        in_text_dim2=WIDTH,
        time_dim=16,
        model_dim=24,
        ff_dim=32,
        num_text_blocks=1,
        num_visual_blocks=4,
        axes_dims=(4, 4, 4),
        in_audio_dim=4,
        out_audio_dim=4 * piflow_grid,
        text_token_padding=True,
        ca_rope=True,
        cross_gates=True,
        fix_modulation=True,
        visual_token_type_num_embeddings=2,
    )
    audio_vae = MMAudioVAE(
        mel_bins=8,
        latent_channels=4,
        hidden_channels=8,
        channel_multipliers=(1, 2),
        layers_per_block=1,
        sample_rate=64,
        n_fft=16,
        hop_length=4,
    )
    vocoder = MMAudioVocoder(
        num_mels=8,
        upsample_initial_channel=8,
        upsample_rates=(2, 2),
        upsample_kernel_sizes=(4, 4),
        resblock_kernel_sizes=(3,),
        resblock_dilation_sizes=((1, 3),),
    )
    scheduler = (
        PiflowScheduler(shift=5.0, n_grid=piflow_grid)
        if piflow_grid > 1
        else FlowMatchEulerDiscreteScheduler(shift=7.0)
    )
    pipeline = Kandinsky6TI2VAPipeline(
        **build_encoders(),
        transformer=redraw_weights(transformer),
        scheduler=scheduler,
        audio_vae=audio_vae.eval(),
        vocoder=vocoder.eval(),
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def make_arguments(prompt: str, size: int, **settings: Any) -> dict[str, Any]:
    arguments = {
        "prompt": prompt,
        "negative_prompt": NEGATIVE_PROMPT,
        "height": size,
        "width": size,
        "num_frames": 5,
        "num_inference_steps": SHORT,
        "guidance_scale": 4.0,
        "max_sequence_length": 16,
        "output_type": "latent",
    }
    return arguments | settings


def with_image(prompt: str, size: int, **settings: Any) -> dict[str, Any]:
    return make_arguments(prompt, size, image=draw_image(size, size), **settings)


def video_and_audio(output: Any) -> Any:
    return output.frames, output.audio


TEXT2VIDEO = partial(build_kandinsky5, "Kandinsky5T2VPipeline", False)
ONE_BRANCH = (("cond",),)

_variant = partial(Variant, num_steps=SHORT)

VARIANTS: tuple[Variant, ...] = (
    _variant(
        name="kandinsky5-t2v",
        build=TEXT2VIDEO,
        arguments=partial(make_arguments, PROMPT, 32),
        other_arguments=partial(make_arguments, OTHER_PROMPT, 16),
    ),
    _variant(
        name="kandinsky5-t2v-no-guidance",
        build=TEXT2VIDEO,
        arguments=partial(make_arguments, PROMPT, 32, guidance_scale=1.0),
        other_arguments=partial(make_arguments, OTHER_PROMPT, 16, guidance_scale=1.0),
        calls=ONE_BRANCH,
    ),
    # the tokens are sorted into tiles of eight by eight before the blocks
    _variant(
        name="kandinsky5-t2v-nabla",
        build=build_kandinsky5_nabla,
        arguments=partial(make_arguments, PROMPT, 128),
        other_arguments=partial(make_arguments, OTHER_PROMPT, 128, num_frames=9),
    ),
    # five frames of latents: the pipeline normalises the first four by those which follow
    _variant(
        name="kandinsky5-i2v",
        build=partial(build_kandinsky5, "Kandinsky5I2VPipeline", True),
        arguments=partial(with_image, PROMPT, 32, num_frames=17),
        other_arguments=partial(with_image, OTHER_PROMPT, 16, num_frames=17),
    ),
    _variant(
        name="kandinsky6-t2va",
        build=build_kandinsky6,
        arguments=partial(make_arguments, PROMPT, 32),
        other_arguments=partial(make_arguments, OTHER_PROMPT, 16),
        output=video_and_audio,
    ),
    # the given frame is appended to the latents as one more frame
    _variant(
        name="kandinsky6-ti2va",
        build=build_kandinsky6,
        arguments=partial(with_image, PROMPT, 32),
        other_arguments=partial(with_image, OTHER_PROMPT, 16),
        output=video_and_audio,
    ),
    # blocks return None for the sound
    _variant(
        name="kandinsky6-t2v-silent",
        build=build_kandinsky6,
        arguments=partial(make_arguments, PROMPT, 32, sample_audio=False),
        other_arguments=partial(make_arguments, OTHER_PROMPT, 16, sample_audio=False),
    ),
    _variant(
        name="kandinsky6-t2va-no-guidance",
        build=build_kandinsky6,
        arguments=partial(make_arguments, PROMPT, 32, guidance_scale=1.0),
        other_arguments=partial(make_arguments, OTHER_PROMPT, 16, guidance_scale=1.0),
        calls=ONE_BRANCH,
        output=video_and_audio,
    ),
    # the output has twice the channels of the latents
    _variant(
        name="kandinsky6-t2va-piflow",
        build=partial(build_kandinsky6, piflow_grid=2),
        arguments=partial(make_arguments, PROMPT, 32, guidance_scale=1.0),
        other_arguments=partial(make_arguments, OTHER_PROMPT, 16, guidance_scale=1.0),
        calls=ONE_BRANCH,
        output=video_and_audio,
    ),
)
