"""LTX-2: video and sound in one model, up to three calls a step, guidance on the clean estimates."""

from __future__ import annotations

from functools import partial
from typing import Any

from conformance.variant import SHORT, Calls, Variant

PROMPT = "a small red circle moving left"
OTHER_PROMPT = "a big blue square moving right"
JOINED: Calls = (("uncond", "cond"),)
ALONE: Calls = (("cond",),)
STG: Calls = (("uncond_stg",),)
MODALITY: Calls = (("uncond_modality",),)
NO_GUIDANCE = {"guidance_scale": 1.0, "audio_guidance_scale": 1.0}
NO_STG = {"stg_scale": 0.0, "audio_stg_scale": 0.0}
NO_MODALITY = {"modality_scale": 1.0, "audio_modality_scale": 1.0}
TEXT_DIM = 16
PER_MODALITY = {
    "gated_attn": True,
    "cross_attn_mod": True,
    "audio_gated_attn": True,
    "audio_cross_attn_mod": True,
    "use_prompt_embeddings": False,
}
"""What tells the transformer of LTX-2.3 from that of LTX-2.0."""
KEYFRAMES = PER_MODALITY | {"use_prompt_adaln_single": False, "use_keyframes_abs_pos_embedding": True}
"""And that of LTX-2.5."""


def _text_encoder(vocab_size: int) -> Any:
    """One layer, so two hidden states a token; the picture tower is there but sees nothing."""
    from transformers import Gemma3Config, Gemma3ForConditionalGeneration, Gemma3TextConfig, SiglipVisionConfig

    text_config = Gemma3TextConfig(
        vocab_size=vocab_size,
        hidden_size=TEXT_DIM,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
    )
    vision_config = SiglipVisionConfig(
        hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1, image_size=8, patch_size=4
    )
    config = Gemma3Config(text_config=text_config, vision_config=vision_config, mm_tokens_per_image=1)
    return Gemma3ForConditionalGeneration(config).eval()


def _strengthen(transformer: Any) -> None:
    """Doubles what attention adds but across video and sound, so that the prompt and the perturbed block tell; draws
    what begins as zeros."""
    import torch

    with torch.no_grad():
        for name, weight in transformer.transformer_blocks.named_parameters():
            is_output = "to_v." in name or "to_out." in name
            if is_output and not ("audio_to_video" in name or "video_to_audio" in name):
                weight.mul_(2)
        if transformer.config.use_keyframes_abs_pos_embedding:
            transformer.keyframes_abs_pos_embedding.normal_(std=0.05)


def _build(pipeline_class: str, shifts: bool = True, **changes: Any) -> Any:
    """4 blocks of width 24 (video) and 16 (sound); latents of 8 channels in both."""
    import diffusers
    import torch
    from diffusers.pipelines.ltx2 import LTX2TextConnectors, LTX2Vocoder

    from training.tokenizer import build_tokenizer

    torch.set_num_threads(1)
    torch.manual_seed(0)
    tokenizer = build_tokenizer()
    settings = dict(
        in_channels=8,
        out_channels=8,
        num_attention_heads=2,
        attention_head_dim=12,
        cross_attention_dim=24,
        audio_in_channels=8,
        audio_out_channels=8,
        audio_num_attention_heads=2,
        audio_attention_head_dim=8,
        audio_cross_attention_dim=16,
        num_layers=4,
        caption_channels=TEXT_DIM,
        rope_double_precision=False,
        perturbed_attn=True,
    )
    transformer = diffusers.LTX2VideoTransformer3DModel(**settings | changes)
    _strengthen(transformer)
    is_per_modality = not transformer.config.use_prompt_embeddings
    connectors = LTX2TextConnectors(
        caption_channels=TEXT_DIM,
        text_proj_in_factor=2,
        video_connector_num_attention_heads=2,
        video_connector_attention_head_dim=12 if is_per_modality else 8,
        video_connector_num_layers=1,
        video_connector_num_learnable_registers=8,
        audio_connector_num_attention_heads=2,
        audio_connector_attention_head_dim=8,
        audio_connector_num_layers=1,
        audio_connector_num_learnable_registers=8,
        rope_double_precision=False,
        per_modality_projections=is_per_modality,
        video_hidden_dim=24,
        audio_hidden_dim=16,
    )
    vae = diffusers.AutoencoderKLLTX2Video(
        latent_channels=8,
        block_out_channels=(8, 8),
        down_block_types=("LTX2VideoDownBlock3D", "LTX2VideoDownBlock3D"),
        decoder_block_out_channels=(8, 8),
        layers_per_block=(1, 1, 1),
        decoder_layers_per_block=(1, 1, 1),
        spatio_temporal_scaling=(True, True),
        decoder_spatio_temporal_scaling=(True, True),
        decoder_inject_noise=(False, False, False),
        downsample_type=("spatiotemporal", "spatiotemporal"),
        upsample_type=("spatiotemporal", "spatiotemporal"),
        upsample_residual=(False, False),
        upsample_factor=(1, 1),
        patch_size=2,
    )
    audio_vae = diffusers.AutoencoderKLLTX2Audio(
        base_channels=8, ch_mult=(1,), num_res_blocks=1, latent_channels=2, mel_bins=16
    )
    vocoder = LTX2Vocoder(
        in_channels=32,
        hidden_channels=8,
        upsample_kernel_sizes=[4],
        upsample_factors=[2],
        resnet_kernel_sizes=[3],
        resnet_dilations=[[1]],
    )
    schedule = dict(use_dynamic_shifting=True, base_shift=0.95, max_shift=2.05, shift_terminal=0.1) if shifts else {}
    pipeline = getattr(diffusers, pipeline_class)(
        tokenizer=tokenizer,
        text_encoder=_text_encoder(len(tokenizer)),
        connectors=connectors.eval(),
        vae=vae.eval(),
        audio_vae=audio_vae.eval(),
        vocoder=vocoder.eval(),
        transformer=transformer.eval(),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(**schedule),
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def _frames(count: int, seed: int) -> list[Any]:
    """Pictures of coarse random colours."""
    import numpy
    from PIL import Image

    colours = numpy.random.default_rng(seed).integers(0, 256, (count, 2, 2, 3), dtype=numpy.uint8)
    return [Image.fromarray(one).resize((32, 32)) for one in colours]


def _arguments(other: bool, **changes: Any) -> dict[str, Any]:
    """The perturbed block is the third of four."""
    arguments = dict(
        prompt=OTHER_PROMPT if other else PROMPT,
        height=32,
        width=64 if other else 32,
        num_frames=9,
        num_inference_steps=SHORT,
        spatio_temporal_guidance_blocks=[2],
        max_sequence_length=24,
        output_type="latent",
    )
    return arguments | changes


def _image_arguments(other: bool) -> dict[str, Any]:
    """Without the re-compression of the picture, which needs a video codec."""
    return _arguments(other, image=_frames(1, seed=int(other))[0], image_crf=0)


def _condition_arguments(other: bool) -> dict[str, Any]:
    """A picture as the first frame, and a weaker one later, whose tokens come on top of the clip's."""
    from diffusers.pipelines.ltx2.pipeline_ltx2_condition import LTX2VideoCondition

    conditions = [
        LTX2VideoCondition(frames=_frames(1, seed=int(other))[0], index=0, strength=1.0, crf=0),
        LTX2VideoCondition(frames=_frames(1, seed=2)[0], index=1, strength=0.7, crf=0),
    ]
    return _arguments(other, conditions=conditions)


def _in_context_arguments(other: bool) -> dict[str, Any]:
    """A reference clip, attended to at half strength: a mask of the video's self-attention."""
    from diffusers.pipelines.ltx2.pipeline_ltx2_ic_lora import LTX2ReferenceCondition

    reference = LTX2ReferenceCondition(frames=_frames(9, seed=int(other)), strength=1.0)
    return _arguments(other, reference_conditions=[reference], conditioning_attention_strength=0.5)


def _hdr_arguments(other: bool, **changes: Any) -> dict[str, Any]:
    from diffusers.pipelines.ltx2.pipeline_ltx2_hdr_lora import LTX2HDRReferenceCondition

    reference = LTX2HDRReferenceCondition(frames=_frames(9, seed=int(other)), strength=1.0)
    return _arguments(other, reference_conditions=[reference], **changes)


def _dfr_arguments(other: bool) -> dict[str, Any]:
    """8 distilled steps; tokens for key frames come on top of the clip's."""
    arguments = _arguments(other, num_frames=13)
    del arguments["num_inference_steps"], arguments["spatio_temporal_guidance_blocks"]
    return arguments


def _tiled_arguments(other: bool) -> dict[str, Any]:
    """The left and the right half of the clip, one call each."""
    import torch
    from diffusers.pipelines.ltx2.dfr_layout import LTX2DFREpilogueTile

    arguments = _dfr_arguments(other)
    size = arguments["width"] // 16
    weight = torch.ones(4, 4, size)
    sides = (slice(0, size), slice(size, 2 * size))
    tiles = [LTX2DFREpilogueTile(slice(0, 4), slice(0, 4), side, weight) for side in sides]
    return arguments | {"video_tiles": tiles, "generate_slots": False}


def _both(arguments: Any, **changes: Any) -> dict[str, Any]:
    """The two argument makers of a variant."""
    return {
        "arguments": partial(arguments, False, **changes),
        "other_arguments": partial(arguments, True, **changes),
    }


def _video_and_sound(output: Any) -> Any:
    return output.frames, output.audio


_variant = partial(Variant, output=_video_and_sound, num_steps=SHORT)


VARIANTS: tuple[Variant, ...] = (
    _variant(
        name="ltx2-t2v", build=partial(_build, "LTX2Pipeline"), calls=JOINED + STG + MODALITY, **_both(_arguments)
    ),
    _variant(
        name="ltx2-t2v-no-stg-no-modality",
        build=partial(_build, "LTX2Pipeline"),
        calls=JOINED,
        **_both(_arguments, **NO_STG, **NO_MODALITY),
    ),
    _variant(
        name="ltx2-t2v-no-modality",
        build=partial(_build, "LTX2Pipeline"),
        calls=JOINED + STG,
        **_both(_arguments, **NO_MODALITY),
    ),
    _variant(
        name="ltx2-t2v-no-stg",
        build=partial(_build, "LTX2Pipeline"),
        calls=JOINED + MODALITY,
        **_both(_arguments, **NO_STG),
    ),
    _variant(
        name="ltx2-t2v-no-text-guidance",
        build=partial(_build, "LTX2Pipeline"),
        calls=ALONE + STG + MODALITY,
        **_both(_arguments, **NO_GUIDANCE),
    ),
    _variant(
        name="ltx2-t2v-unguided",
        build=partial(_build, "LTX2Pipeline"),
        calls=ALONE,
        **_both(_arguments, **NO_GUIDANCE, **NO_STG, **NO_MODALITY),
    ),
    _variant(
        name="ltx2.3-t2v",
        build=partial(_build, "LTX2Pipeline", **PER_MODALITY),
        calls=JOINED + STG + MODALITY,
        **_both(_arguments),
    ),
    _variant(
        name="ltx2-i2v",
        build=partial(_build, "LTX2ImageToVideoPipeline"),
        calls=JOINED + STG + MODALITY,
        **_both(_image_arguments),
    ),
    _variant(
        name="ltx2-condition",
        build=partial(_build, "LTX2ConditionPipeline"),
        calls=JOINED + STG + MODALITY,
        **_both(_condition_arguments),
    ),
    _variant(
        name="ltx2-in-context",
        build=partial(_build, "LTX2InContextPipeline"),
        calls=JOINED + STG + MODALITY,
        **_both(_in_context_arguments),
    ),
    Variant(
        name="ltx2-hdr",
        build=partial(_build, "LTX2HDRPipeline"),
        num_steps=SHORT,
        calls=ALONE,
        **_both(_hdr_arguments),
    ),
    Variant(
        name="ltx2-hdr-guided",
        build=partial(_build, "LTX2HDRPipeline"),
        num_steps=SHORT,
        calls=JOINED + STG + MODALITY,
        **_both(_hdr_arguments, guidance_scale=3.0, stg_scale=1.0, modality_scale=3.0),
    ),
    _variant(
        name="ltx2.5-dfr",
        build=partial(_build, "LTX2DFRPipeline", shifts=False, **KEYFRAMES),
        calls=ALONE,
        unsafe="whether a step is one call or one for every tile depends on the size",
        **_both(_dfr_arguments),
    ),
    _variant(
        name="ltx2.5-dfr-tiled",
        build=partial(_build, "LTX2DFRPipeline", shifts=False, **KEYFRAMES),
        calls=ALONE + ALONE,
        unsafe="the calls of a step are of other parts of the clip and nothing tells them apart",
        **_both(_tiled_arguments),
    ),
)
