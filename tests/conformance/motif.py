"""Tiny pipelines of the Motif-Video family under each guider."""

from __future__ import annotations

from functools import partial
from typing import Any

from conformance.variant import LONG, SHORT, Calls, Variant, draw_image

PROMPT = "a small red circle moving left"
OTHER_PROMPT = "a big blue square moving right"
NEGATIVE_PROMPT = "a big square on blue background"
MAX_SEQUENCE_LENGTH = 24
HIDDEN_SIZE = 16
"""Width of the text encoder and of its image encoder."""
LATENT_CHANNELS = 4
ONE_BRANCH: Calls = (("cond",),)
TWO_CALLS: Calls = (("cond",), ("uncond",))
THREE_CALLS: Calls = (("cond",), ("uncond",), ("cond_skip",))
COND_AND_SKIP: Calls = (("cond",), ("cond_skip",))


def build_text_encoder(vocabulary_size: int) -> Any:
    """T5Gemma 2, whose vision tower reads images of 8 x 8 into 4 tokens."""
    from transformers import SiglipVisionConfig, T5Gemma2TextConfig
    from transformers.models.t5gemma2.configuration_t5gemma2 import T5Gemma2EncoderConfig
    from transformers.models.t5gemma2.modeling_t5gemma2 import T5Gemma2Encoder

    sizes = {"hidden_size": HIDDEN_SIZE, "intermediate_size": HIDDEN_SIZE, "num_attention_heads": 2}
    text_config = T5Gemma2TextConfig(
        vocab_size=vocabulary_size,
        num_hidden_layers=2,
        num_key_value_heads=2,
        head_dim=8,
        layer_types=["sliding_attention", "full_attention"],
        initializer_range=1.0,
        dropout_rate=0.0,
        **sizes,
    )
    config = T5Gemma2EncoderConfig(
        text_config=text_config,
        vision_config=SiglipVisionConfig(image_size=8, patch_size=4, num_hidden_layers=1, **sizes),
        mm_tokens_per_image=4,
    )
    return T5Gemma2Encoder(config)


def build_guider(kind: str) -> Any:
    """The guider of one mode; `skip-layer-late` guides with skipped layers beyond the interval of the others."""
    from diffusers import AdaptiveProjectedGuidance, ClassifierFreeGuidance, SkipLayerGuidance
    from diffusers.hooks import LayerSkipConfig

    if kind == "apg":
        return AdaptiveProjectedGuidance(guidance_scale=5.0, adaptive_projected_guidance_momentum=-0.5)
    if kind.startswith("skip-layer"):
        start, stop = (0.5, 1.0) if kind == "skip-layer-late" else (0.25, 0.75)
        return SkipLayerGuidance(
            guidance_scale=5.0,
            skip_layer_config=LayerSkipConfig(indices=[1], fqn="transformer_blocks"),
            skip_layer_guidance_scale=2.0,
            skip_layer_guidance_start=start,
            skip_layer_guidance_stop=stop,
            stop=0.75 if kind == "skip-layer-late" else 1.0,
        )
    settings = {"cfg": {}, "interval": {"start": 0.25, "stop": 0.75}, "off": {"enabled": False}}
    return ClassifierFreeGuidance(guidance_scale=5.0, **settings[kind])


def build_scheduler(kind: str) -> Any:
    from diffusers import FlowMatchEulerDiscreteScheduler, UniPCMultistepScheduler

    if kind == "unipc":
        return UniPCMultistepScheduler(
            prediction_type="flow_prediction",
            use_flow_sigmas=True,
            use_dynamic_shifting=True,
            time_shift_type="exponential",
        )
    return FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)


def build_pipeline(guider: str, image: bool = False, scheduler: str = "euler", num_decoder_layers: int = 2) -> Any:
    """2 dual blocks and 5 single ones, of which the last `num_decoder_layers` run on a stream of their own."""
    import torch
    from diffusers import (
        AutoencoderKLWan,
        MotifVideoImage2VideoPipeline,
        MotifVideoPipeline,
        MotifVideoTransformer3DModel,
    )
    from transformers import SiglipImageProcessor

    from training.tokenizer import build_tokenizer

    torch.manual_seed(0)
    tokenizer = build_tokenizer()
    transformer = MotifVideoTransformer3DModel(
        in_channels=2 * LATENT_CHANNELS + 1,
        out_channels=LATENT_CHANNELS,
        num_attention_heads=2,
        attention_head_dim=12,
        num_layers=2,
        num_single_layers=5,
        num_decoder_layers=num_decoder_layers,
        text_embed_dim=HIDDEN_SIZE,
        image_embed_dim=HIDDEN_SIZE,
        rope_axes_dim=(4, 4, 4),
        enable_text_cross_attention_dual=True,
        enable_text_cross_attention_single=True,
    )
    # The text reaches the decoder only through the tokens of the encoder: without this it hardly matters.
    with torch.no_grad():
        for block in transformer.single_transformer_blocks[5 - num_decoder_layers :]:
            for parameter in block.parameters():
                parameter.mul_(2.0)
    vae = AutoencoderKLWan(
        base_dim=3,
        z_dim=LATENT_CHANNELS,
        dim_mult=[1, 1, 1, 1],
        num_res_blocks=1,
        temperal_downsample=[False, True, True],
        latents_mean=[0.0] * LATENT_CHANNELS,
        latents_std=[1.0] * LATENT_CHANNELS,
    )
    pipeline_class = MotifVideoImage2VideoPipeline if image else MotifVideoPipeline
    pipeline = pipeline_class(
        scheduler=build_scheduler(scheduler),
        vae=vae.eval(),
        text_encoder=build_text_encoder(len(tokenizer)).eval(),
        tokenizer=tokenizer,
        transformer=transformer.eval(),
        guider=build_guider(guider),
        feature_extractor=SiglipImageProcessor(size={"height": 8, "width": 8}),
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def arguments(**settings: Any) -> dict[str, Any]:
    """5 frames of 32 x 32: latents of 2 frames of 4 x 4."""
    values = {"prompt": PROMPT, "height": 32, "width": 32, "num_frames": 5, "num_inference_steps": LONG}
    values |= {"negative_prompt": NEGATIVE_PROMPT, "max_sequence_length": MAX_SEQUENCE_LENGTH}
    return values | {"output_type": "latent"} | settings


def image_arguments(*, seed: int = 1, **settings: Any) -> dict[str, Any]:
    return arguments(image=draw_image(seed), **settings)


def ask_for_both_prompts(pipeline: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
    """Of a guider that is idle in some steps. The pipeline asks it how many prompts it takes before it tells it of the
    step, and so fails where guidance begins and at the first step of a second call: shows it a guided step."""
    pipeline.guider.set_state(step=4, num_inference_steps=LONG, timestep=timestep)
    return {}


OTHER: dict[str, Any] = {"prompt": OTHER_PROMPT, "width": 48}
MODES: dict[str, dict[str, Any]] = {
    "cfg": {"num_steps": SHORT},
    "interval": {"expected_steps": (ONE_BRANCH,) * 2 + (TWO_CALLS,) * 4 + (ONE_BRANCH,) * 2},
    "skip-layer": {"expected_steps": (TWO_CALLS,) * 3 + (THREE_CALLS,) * 3 + (TWO_CALLS,) * 2},
    "off": {"calls": ONE_BRANCH, "num_steps": SHORT},
}


def guider_variants() -> tuple[Variant, ...]:
    """Text to video and image to video in each mode."""
    variants = []
    for guider, expected in MODES.items():
        more: dict[str, Any] = {"callback_on_step_end": ask_for_both_prompts} if guider == "interval" else {}
        more |= {"num_inference_steps": expected.get("num_steps", LONG)}
        variants += [
            Variant(
                name=f"motif-{guider}",
                build=partial(build_pipeline, guider),
                arguments=partial(arguments, **more),
                other_arguments=partial(arguments, **OTHER, **more),
                **expected,
            ),
            Variant(
                name=f"motif-i2v-{guider}",
                build=partial(build_pipeline, guider, image=True),
                arguments=partial(image_arguments, **more),
                other_arguments=partial(image_arguments, seed=2, **OTHER, **more),
                **expected,
            ),
        ]
    return tuple(variants)


def text_variant(name: str, build: Any, num_steps: int = SHORT, **expected: Any) -> Variant:
    call = partial(arguments, num_inference_steps=num_steps)
    others = partial(call, **OTHER)
    return Variant(name=name, build=build, arguments=call, other_arguments=others, num_steps=num_steps, **expected)


VARIANTS: tuple[Variant, ...] = (
    *guider_variants(),
    text_variant("motif-apg", partial(build_pipeline, "apg")),
    text_variant(
        "motif-skip-layer-late",
        partial(build_pipeline, "skip-layer-late"),
        LONG,
        expected_steps=(TWO_CALLS,) * 5 + (THREE_CALLS,) + (COND_AND_SKIP,) * 2,
    ),
    text_variant("motif-unipc", partial(build_pipeline, "cfg", scheduler="unipc")),
    text_variant("motif-no-decoder", partial(build_pipeline, "cfg", num_decoder_layers=0)),
)
