"""Sana-Video, Sana-WM and AnyFlow."""

from __future__ import annotations

from functools import partial
from typing import Any

from conformance.tiny_qwen import build_chat_tokenizer, build_wan_vae, draw_image, redraw_weights
from conformance.variant import SHORT, Variant

PROMPT = "a small red circle moving left"
OTHER_PROMPT = "a big blue square moving right"
NEGATIVE_PROMPT = "a green triangle"
TEXT_WIDTH = 16


def build_gemma(vocabulary_size: int, encoder_class: str) -> Any:
    import transformers

    config = transformers.Gemma2Config(
        vocab_size=vocabulary_size,
        hidden_size=TEXT_WIDTH,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=8,
        bos_token_id=None,
        eos_token_id=1,
    )
    return getattr(transformers, encoder_class)(config).eval()


def build_scheduler(scheduler: str) -> Any:
    from diffusers import DPMSolverMultistepScheduler, FlowMatchEulerDiscreteScheduler

    if scheduler == "euler":
        return FlowMatchEulerDiscreteScheduler(shift=5.0)
    return DPMSolverMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=5.0)


def build_video(pipeline_class: str, scheduler: str) -> Any:
    import diffusers
    import torch

    torch.manual_seed(0)
    tokenizer = build_chat_tokenizer()
    transformer = diffusers.SanaVideoTransformer3DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=12,
        num_layers=4,
        num_cross_attention_heads=2,
        cross_attention_head_dim=12,
        cross_attention_dim=24,
        caption_channels=TEXT_WIDTH,
        rope_max_seq_len=32,
    )
    pipeline = getattr(diffusers, pipeline_class)(
        tokenizer=tokenizer,
        text_encoder=build_gemma(len(tokenizer), "Gemma2Model"),
        vae=build_wan_vae(),
        transformer=redraw_weights(transformer),
        scheduler=build_scheduler(scheduler),
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def build_world_model() -> Any:
    """Blocks 0 to 2 and 4 have the gated delta rule, 3 has softmax; the VAE is 2 times smaller in space and time."""
    import torch
    from diffusers import (
        AutoencoderKLLTX2Video,
        FlowMatchEulerDiscreteScheduler,
        SanaWMPipeline,
        SanaWMTransformer3DModel,
    )

    torch.manual_seed(0)
    tokenizer = build_chat_tokenizer()
    transformer = SanaWMTransformer3DModel(
        in_channels=4,
        num_layers=5,
        hidden_size=32,
        num_attention_heads=2,
        linear_head_dim=16,
        chunk_plucker_channels=12,
        chunk_plucker_post_attn_blocks=5,
        caption_channels=TEXT_WIDTH,
    )
    vae = AutoencoderKLLTX2Video(
        latent_channels=4,
        block_out_channels=(8,),
        decoder_block_out_channels=(8,),
        layers_per_block=(1,),
        decoder_layers_per_block=(1, 1),
        spatio_temporal_scaling=(True,),
        decoder_spatio_temporal_scaling=(True,),
        decoder_inject_noise=(False, False),
        downsample_type=("spatial",),
        upsample_residual=(False,),
        upsample_factor=(1,),
        patch_size=1,
    )
    pipeline = SanaWMPipeline(
        tokenizer=tokenizer,
        text_encoder=build_gemma(len(tokenizer), "Gemma2ForCausalLM"),
        vae=vae.eval(),
        transformer=redraw_weights(transformer),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=5.0),
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def build_anyflow(pipeline_class: str, transformer_class: str, **settings: Any) -> Any:
    """Flow maps: the model is asked for the mean velocity between the step's time and the next one."""
    import diffusers
    import torch
    from transformers import UMT5Config, UMT5EncoderModel

    torch.manual_seed(0)
    tokenizer = build_chat_tokenizer()
    transformer = getattr(diffusers, transformer_class)(
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=4,
        out_channels=4,
        text_dim=TEXT_WIDTH,
        freq_dim=16,
        ffn_dim=32,
        num_layers=4,
        **settings,
    )
    text_config = UMT5Config(vocab_size=len(tokenizer), d_model=TEXT_WIDTH, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    pipeline = getattr(diffusers, pipeline_class)(
        tokenizer=tokenizer,
        text_encoder=UMT5EncoderModel(text_config).eval(),
        vae=build_wan_vae(),
        transformer=redraw_weights(transformer),
        scheduler=diffusers.FlowMapEulerDiscreteScheduler(shift=5.0),
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def make_arguments(prompt: str, size: int, **settings: Any) -> dict[str, Any]:
    arguments = {
        "prompt": prompt,
        "negative_prompt": NEGATIVE_PROMPT,
        "height": size,
        "width": size,
        "num_inference_steps": SHORT,
        "guidance_scale": 4.0,
        "max_sequence_length": 12,
        "output_type": "latent",
    }
    return arguments | settings


def for_video(prompt: str, size: int, **settings: Any) -> dict[str, Any]:
    plain = {"frames": 5, "use_resolution_binning": False, "complex_human_instruction": None}
    return make_arguments(prompt, size, **plain | settings)


def for_image_to_video(prompt: str, size: int, **settings: Any) -> dict[str, Any]:
    return for_video(prompt, size, image=draw_image(size, size), **settings)


def for_world_model(prompt: str, size: int, **settings: Any) -> dict[str, Any]:
    """The camera goes forward, then turns."""
    camera = {"action": "w-4,jw-4", "intrinsics": [16.0, 16.0, 8.0, 8.0], "num_frames": 9}
    return make_arguments(prompt, size, image=draw_image(size, 16), **camera | settings)


def build_causal_anyflow() -> Any:
    """Frames come in chunks of one and two; without the flag flex attention warns and compiles, which takes long."""
    from torch.nn.attention import flex_attention

    flex_attention._FLEX_ATTENTION_DISABLE_COMPILE_DEBUG = True
    return build_anyflow(
        "AnyFlowFARPipeline", "AnyFlowFARTransformer3DModel", chunk_partition=(1, 2), full_chunk_limit=2
    )


BIDIRECTIONAL = partial(build_anyflow, "AnyFlowPipeline", "AnyFlowTransformer3DModel")
ONE_BRANCH = (("cond",),)
JOINED = (("uncond", "cond"),)

_variant = partial(Variant, num_steps=SHORT)

VARIANTS: tuple[Variant, ...] = (
    _variant(
        name="sana-video-dpm",
        build=partial(build_video, "SanaVideoPipeline", "dpm"),
        arguments=partial(for_video, PROMPT, 32),
        other_arguments=partial(for_video, OTHER_PROMPT, 64),
        calls=JOINED,
    ),
    _variant(
        name="sana-video-euler",
        build=partial(build_video, "SanaVideoPipeline", "euler"),
        arguments=partial(for_video, PROMPT, 32),
        other_arguments=partial(for_video, OTHER_PROMPT, 64),
        calls=JOINED,
    ),
    _variant(
        name="sana-video-dpm-no-guidance",
        build=partial(build_video, "SanaVideoPipeline", "dpm"),
        arguments=partial(for_video, PROMPT, 32, guidance_scale=1.0),
        other_arguments=partial(for_video, OTHER_PROMPT, 64, guidance_scale=1.0),
        calls=ONE_BRANCH,
    ),
    # a timestep for each token, zero on the given frame
    _variant(
        name="sana-video-i2v",
        build=partial(build_video, "SanaImageToVideoPipeline", "euler"),
        arguments=partial(for_image_to_video, PROMPT, 32),
        other_arguments=partial(for_image_to_video, OTHER_PROMPT, 64),
        calls=JOINED,
    ),
    # a timestep for each frame
    _variant(
        name="sana-wm",
        build=build_world_model,
        arguments=partial(for_world_model, PROMPT, 8),
        other_arguments=partial(for_world_model, OTHER_PROMPT, 4),
        calls=JOINED,
    ),
    _variant(
        name="sana-wm-no-guidance",
        build=build_world_model,
        arguments=partial(for_world_model, PROMPT, 8, guidance_scale=1.0),
        other_arguments=partial(for_world_model, OTHER_PROMPT, 4, guidance_scale=1.0),
        calls=ONE_BRANCH,
    ),
    _variant(
        name="anyflow",
        build=BIDIRECTIONAL,
        arguments=partial(make_arguments, PROMPT, 32, num_frames=9),
        other_arguments=partial(make_arguments, OTHER_PROMPT, 16, num_frames=9),
        calls=JOINED,
    ),
    # as released: distilled, without guidance
    _variant(
        name="anyflow-no-guidance",
        build=BIDIRECTIONAL,
        arguments=partial(make_arguments, PROMPT, 32, num_frames=9, guidance_scale=1.0),
        other_arguments=partial(make_arguments, OTHER_PROMPT, 16, num_frames=9, guidance_scale=1.0),
        calls=ONE_BRANCH,
    ),
    # two chunks of four steps; between them one more call, at timestep zero, writes the first chunk's keys and values
    _variant(
        name="anyflow-far",
        build=build_causal_anyflow,
        arguments=partial(make_arguments, PROMPT, 32, num_frames=9, num_inference_steps=4),
        other_arguments=partial(make_arguments, OTHER_PROMPT, 32, num_frames=9, num_inference_steps=4),
        calls=JOINED,
        expected_steps=(JOINED,) * 3 + (JOINED * 2,) + (JOINED,) * 4,
        unsafe="a call of the transformer also writes the keys and values of a finished chunk, which later chunks read",
    ),
)
