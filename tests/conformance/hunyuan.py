"""Tiny pipelines of the HunyuanVideo family: HunyuanVideo, SkyReels V1, Framepack and HunyuanVideo 1.5."""

from __future__ import annotations

from functools import partial
from typing import Any

from conformance.variant import LONG, SHORT, Calls, Variant, draw_image

PROMPT = "a small red circle moving left"
OTHER_PROMPT = "a big blue square moving right"
NEGATIVE_PROMPT = "a big square on blue background"
MAX_SEQUENCE_LENGTH = 24
HIDDEN_SIZE = 16
"""Width of every text and image encoder."""
INITIALIZER_RANGE = 1.0
"""Of the language models: drawn as small as by default, they give all prompts nearly the same embedding."""
LATENT_CHANNELS = 4
TEMPLATE = {"template": "{}", "crop_start": 0}
IMAGE_TOKENS = 4
"""Patches of the image that the vision encoders see: 2 x 2."""
IMAGE_TEMPLATE = {
    "template": (
        "<|end_header_id|> <image> <|end_header_id|> {} <|eot_id|> <|start_header_id|> <|user|> <|end_header_id|>"
    ),
    "crop_start": 3,
    "image_emb_start": 1,
    "image_emb_end": 1 + IMAGE_TOKENS,
    "image_emb_len": IMAGE_TOKENS,
}
ONE_BRANCH: Calls = (("cond",),)
TWO_CALLS: Calls = (("cond",), ("uncond",))
THREE_CALLS: Calls = (("cond",), ("uncond",), ("cond_skip",))


def finish(pipeline: Any) -> Any:
    """Eval mode and no progress bar."""
    import torch

    for component in pipeline.components.values():
        if isinstance(component, torch.nn.Module):
            component.eval()
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def build_text_encoders() -> dict[str, Any]:
    """Llama and CLIP, both read by the tokenizer of the drawn world."""
    from transformers import CLIPTextConfig, CLIPTextModel, LlamaConfig, LlamaModel

    from training.tokenizer import build_tokenizer

    tokenizer = build_tokenizer()
    sizes = {
        "vocab_size": len(tokenizer),
        "hidden_size": HIDDEN_SIZE,
        "intermediate_size": HIDDEN_SIZE,
        "num_attention_heads": 2,
        "pad_token_id": tokenizer.pad_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }
    return {
        "tokenizer": tokenizer,
        "text_encoder": LlamaModel(
            LlamaConfig(num_hidden_layers=3, num_key_value_heads=2, initializer_range=INITIALIZER_RANGE, **sizes)
        ),
        "tokenizer_2": tokenizer,
        "text_encoder_2": CLIPTextModel(CLIPTextConfig(num_hidden_layers=1, max_position_embeddings=77, **sizes)),
    }


def build_image_text_encoders() -> dict[str, Any]:
    """As `build_text_encoders`, with Llava, which reads the image too, for Llama."""
    from transformers import (
        CLIPImageProcessor,
        CLIPVisionConfig,
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
    )

    encoders = build_text_encoders()
    tokenizer = encoders["tokenizer"]
    marks = ["<image>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|user|>"]
    tokenizer.add_special_tokens({"additional_special_tokens": marks})
    sizes = {"hidden_size": HIDDEN_SIZE, "intermediate_size": HIDDEN_SIZE, "num_attention_heads": 2}
    config = LlavaConfig(
        text_config=LlamaConfig(
            vocab_size=len(tokenizer),
            num_hidden_layers=3,
            num_key_value_heads=2,
            initializer_range=INITIALIZER_RANGE,
            pad_token_id=tokenizer.pad_token_id,
            **sizes,
        ),
        vision_config=CLIPVisionConfig(image_size=8, patch_size=4, num_hidden_layers=2, projection_dim=8, **sizes),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        pad_token_id=tokenizer.pad_token_id,
    )
    encoders["text_encoder"] = LlavaForConditionalGeneration(config)
    encoders["image_processor"] = CLIPImageProcessor(
        size={"height": 8, "width": 8}, crop_size={"height": 8, "width": 8}
    )
    return encoders


def build_siglip() -> dict[str, Any]:
    """An encoder of images of 8 x 8 into 4 tokens."""
    from transformers import SiglipImageProcessor, SiglipVisionConfig, SiglipVisionModel

    config = SiglipVisionConfig(
        image_size=8,
        patch_size=4,
        hidden_size=HIDDEN_SIZE,
        intermediate_size=HIDDEN_SIZE,
        num_hidden_layers=1,
        num_attention_heads=2,
    )
    return {
        "image_encoder": SiglipVisionModel(config),
        "feature_extractor": SiglipImageProcessor(size={"height": 8, "width": 8}),
    }


def build_vae() -> Any:
    """8 times smaller in space, 4 times in time."""
    from diffusers import AutoencoderKLHunyuanVideo

    return AutoencoderKLHunyuanVideo(
        latent_channels=LATENT_CHANNELS,
        block_out_channels=(8, 8, 8, 8),
        layers_per_block=1,
        norm_num_groups=4,
    )


def transformer_sizes(in_channels: int) -> dict[str, Any]:
    """2 dual and 3 single blocks of width 24."""
    return {
        "in_channels": in_channels,
        "out_channels": LATENT_CHANNELS,
        "num_attention_heads": 2,
        "attention_head_dim": 12,
        "num_layers": 2,
        "num_single_layers": 3,
        "num_refiner_layers": 1,
        "patch_size": 2,
        "text_embed_dim": HIDDEN_SIZE,
        "pooled_projection_dim": HIDDEN_SIZE,
        "rope_axes_dim": (4, 4, 4),
    }


def build_scheduler() -> Any:
    from diffusers import FlowMatchEulerDiscreteScheduler

    return FlowMatchEulerDiscreteScheduler(shift=7.0)


def build_text_to_video(guidance_embeds: bool = True) -> Any:
    """HunyuanVideoPipeline."""
    import torch
    from diffusers import HunyuanVideoPipeline, HunyuanVideoTransformer3DModel

    torch.manual_seed(0)
    transformer = HunyuanVideoTransformer3DModel(
        guidance_embeds=guidance_embeds, **transformer_sizes(in_channels=LATENT_CHANNELS)
    )
    return finish(
        HunyuanVideoPipeline(
            transformer=transformer, vae=build_vae(), scheduler=build_scheduler(), **build_text_encoders()
        )
    )


def build_image_to_video(condition: str) -> Any:
    """HunyuanVideoImageToVideoPipeline."""
    import torch
    from diffusers import HunyuanVideoImageToVideoPipeline, HunyuanVideoTransformer3DModel

    torch.manual_seed(0)
    in_channels = LATENT_CHANNELS if condition == "token_replace" else 2 * LATENT_CHANNELS + 1
    transformer = HunyuanVideoTransformer3DModel(
        image_condition_type=condition,
        guidance_embeds=condition == "token_replace",
        **transformer_sizes(in_channels=in_channels),
    )
    return finish(
        HunyuanVideoImageToVideoPipeline(
            transformer=transformer, vae=build_vae(), scheduler=build_scheduler(), **build_image_text_encoders()
        )
    )


def build_skyreels() -> Any:
    """HunyuanSkyreelsImageToVideoPipeline."""
    import torch
    from diffusers import HunyuanSkyreelsImageToVideoPipeline, HunyuanVideoTransformer3DModel

    torch.manual_seed(0)
    transformer = HunyuanVideoTransformer3DModel(
        guidance_embeds=False, **transformer_sizes(in_channels=2 * LATENT_CHANNELS)
    )
    return finish(
        HunyuanSkyreelsImageToVideoPipeline(
            transformer=transformer, vae=build_vae(), scheduler=build_scheduler(), **build_text_encoders()
        )
    )


def build_framepack() -> Any:
    """HunyuanVideoFramepackPipeline."""
    import torch
    from diffusers import (
        FlowMatchEulerDiscreteScheduler,
        HunyuanVideoFramepackPipeline,
        HunyuanVideoFramepackTransformer3DModel,
    )

    torch.manual_seed(0)
    transformer = HunyuanVideoFramepackTransformer3DModel(
        has_image_proj=True,
        image_proj_dim=HIDDEN_SIZE,
        has_clean_x_embedder=True,
        **transformer_sizes(in_channels=LATENT_CHANNELS),
    )
    return finish(
        HunyuanVideoFramepackPipeline(
            transformer=transformer,
            vae=build_vae(),
            scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
            **build_text_encoders(),
            **build_siglip(),
        )
    )


def build_guider(kind: str) -> Any:
    """`interval` guides from the third step on: guidance that stops early loses the negative prompt at a second call
    of the pipeline, which asks the guider for it before the first step is set."""
    from diffusers import ClassifierFreeGuidance, SkipLayerGuidance
    from diffusers.hooks import LayerSkipConfig

    if kind == "skip-layer":
        # Whole blocks cannot be skipped: the block class is not registered with diffusers' hooks.
        skipped = LayerSkipConfig(indices=[1], fqn="transformer_blocks", skip_attention=False, skip_ff=True)
        return SkipLayerGuidance(
            guidance_scale=5.0,
            skip_layer_config=skipped,
            skip_layer_guidance_scale=2.0,
            skip_layer_guidance_start=0.25,
            skip_layer_guidance_stop=0.75,
        )
    settings = {"cfg": {}, "interval": {"start": 0.25}, "off": {"enabled": False}}
    return ClassifierFreeGuidance(guidance_scale=5.0, **settings[kind])


HUNYUAN15_LENGTHS: dict[str, Any] = {
    "system_message": "a",
    "prompt_template_encode_start_idx": 1,
    "tokenizer_max_length": MAX_SEQUENCE_LENGTH,
    "tokenizer_2_max_length": 8,
    "vision_num_semantic_tokens": IMAGE_TOKENS,
}
"""In place of those that the pipeline classes fix for the published checkpoints."""


def hunyuan15_parts(guider: str, image: bool, use_meanflow: bool) -> dict[str, Any]:
    """Components; with `image` those of image to video."""
    import torch
    from diffusers import (
        AutoencoderKLHunyuanVideo15,
        FlowMatchEulerDiscreteScheduler,
        HunyuanVideo15Transformer3DModel,
    )
    from transformers import ByT5Tokenizer, Qwen2_5_VLTextConfig, Qwen2_5_VLTextModel, T5Config, T5EncoderModel

    from training.tokenizer import build_tokenizer

    torch.manual_seed(0)
    tokenizer = build_tokenizer()
    tokenizer.chat_template = "{% for message in messages %}{{ message['content'] }} {% endfor %}"
    text_config = Qwen2_5_VLTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=HIDDEN_SIZE,
        intermediate_size=HIDDEN_SIZE,
        num_hidden_layers=3,
        num_attention_heads=2,
        num_key_value_heads=2,
        initializer_range=INITIALIZER_RANGE,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]},
        pad_token_id=tokenizer.pad_token_id,
    )
    tokenizer_2 = ByT5Tokenizer()
    glyph_config = T5Config(
        vocab_size=len(tokenizer_2), d_model=HIDDEN_SIZE, d_kv=8, d_ff=HIDDEN_SIZE, num_layers=1, num_heads=2
    )
    transformer = HunyuanVideo15Transformer3DModel(
        in_channels=2 * LATENT_CHANNELS + 1,
        out_channels=LATENT_CHANNELS,
        num_attention_heads=2,
        attention_head_dim=12,
        num_layers=4,
        num_refiner_layers=1,
        patch_size=1,
        text_embed_dim=HIDDEN_SIZE,
        text_embed_2_dim=HIDDEN_SIZE,
        image_embed_dim=HIDDEN_SIZE,
        rope_axes_dim=(4, 4, 4),
        target_size=32,
        task_type="i2v" if image else "t2v",
        use_meanflow=use_meanflow,
    )
    vae = AutoencoderKLHunyuanVideo15(
        latent_channels=LATENT_CHANNELS,
        block_out_channels=(16, 16, 16, 16),
        layers_per_block=1,
        spatial_compression_ratio=8,
    )
    return dict(
        tokenizer=tokenizer,
        text_encoder=Qwen2_5_VLTextModel(text_config),
        tokenizer_2=tokenizer_2,
        text_encoder_2=T5EncoderModel(glyph_config),
        transformer=transformer,
        vae=vae,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=5.0),
        guider=build_guider(guider),
        **(build_siglip() if image else {}),
    )


def build_hunyuan15(guider: str, image: bool = False, use_meanflow: bool = False) -> Any:
    """HunyuanVideo15Pipeline, or with `image` HunyuanVideo15ImageToVideoPipeline."""
    from diffusers import HunyuanVideo15ImageToVideoPipeline, HunyuanVideo15Pipeline

    pipeline_class = HunyuanVideo15ImageToVideoPipeline if image else HunyuanVideo15Pipeline
    pipeline = pipeline_class(**hunyuan15_parts(guider, image, use_meanflow))
    for name, value in HUNYUAN15_LENGTHS.items():
        setattr(pipeline, name, value)
    return finish(pipeline)


def build_hunyuan15_modular(guider: str, image: bool = False, use_meanflow: bool = False) -> Any:
    """HunyuanVideo15ModularPipeline for text, or with `image` for an image; its lengths are properties of the class."""
    import torch
    from diffusers import HunyuanVideo15AutoBlocks

    blocks = HunyuanVideo15AutoBlocks()
    for way in blocks.sub_blocks["denoise"].sub_blocks.values():
        way.sub_blocks["denoise"].set_progress_bar_config(disable=True)
    pipeline = blocks.init_pipeline()
    published = type(pipeline)
    pipeline.__class__ = type(published.__name__, (published,), HUNYUAN15_LENGTHS)
    pipeline.update_components(**hunyuan15_parts(guider, image, use_meanflow))
    for component in pipeline.components.values():
        if isinstance(component, torch.nn.Module):
            component.eval()
    return pipeline


def arguments(*, num_steps: int = SHORT, **settings: Any) -> dict[str, Any]:
    """5 frames of 32 x 32: latents of 2 frames of 4 x 4."""
    values = {"prompt": PROMPT, "height": 32, "width": 32, "num_frames": 5, "output_type": "latent"}
    return values | {"num_inference_steps": num_steps} | settings


def text_arguments(**settings: Any) -> dict[str, Any]:
    """Of the pipelines that read a prompt template."""
    template = {"prompt_template": TEMPLATE, "max_sequence_length": MAX_SEQUENCE_LENGTH}
    return arguments(**{"guidance_scale": 6.0} | template | settings)


def image_arguments(*, seed: int = 1, **settings: Any) -> dict[str, Any]:
    return text_arguments(image=draw_image(seed), **settings)


def other(call: Any, **settings: Any) -> Any:
    """`call` with another prompt in a wider frame."""
    return partial(call, prompt=OTHER_PROMPT, **{"width": 48} | settings)


def hunyuan15_image_arguments(*, seed: int = 1, width: int = 32, **settings: Any) -> dict[str, Any]:
    """The frame takes its shape from the image."""
    values = arguments(**settings) | {"image": draw_image(seed, width=width)}
    return {name: value for name, value in values.items() if name not in ("height", "width")}


def hunyuan15_modular_arguments(*, image: int | None = None, **settings: Any) -> dict[str, Any]:
    """The latents are asked for by name; `image` is the seed of one."""
    given = {} if image is None else {"image": draw_image(image, width=settings.get("width", 32))}
    return arguments(**settings) | given | {"output_type": "pt", "output": "latents"}


def itself(output: Any) -> Any:
    return output


def sections(output: Any) -> Any:
    """Framepack gives the latents after each section."""
    return tuple(output.frames)


TRUE_CFG: dict[str, Any] = {"negative_prompt": NEGATIVE_PROMPT, "true_cfg_scale": 4.0}
FRAMEPACK: dict[str, Any] = {"latent_window_size": 2}
IMAGE_PROMPT: dict[str, Any] = {"prompt_template": IMAGE_TEMPLATE}
LATENT_CONCAT: dict[str, Any] = {"guidance_scale": 1.0, "num_frames": 9}
"""The pipeline drops the first of the latent frames."""
NEGATIVE: dict[str, Any] = {"negative_prompt": NEGATIVE_PROMPT}
INTERVAL = (ONE_BRANCH,) * 2 + (TWO_CALLS,) * 6
SKIP_LAYER = (TWO_CALLS,) * 3 + (THREE_CALLS,) * 3 + (TWO_CALLS,) * 2

_variant = partial(Variant, num_steps=SHORT)


def hunyuan15_variants() -> tuple[Variant, ...]:
    """Text to video and image to video under each guider."""
    variants = []
    modes = {
        "cfg": {},
        "interval": {"expected_steps": INTERVAL},
        "skip-layer": {"expected_steps": SKIP_LAYER},
        "off": {"calls": ONE_BRANCH},
    }
    for guider, expected in modes.items():
        given = {"num_steps": LONG if "expected_steps" in expected else SHORT, **({} if guider == "off" else NEGATIVE)}
        call = partial(arguments, **given)
        image_call = partial(hunyuan15_image_arguments, **given)
        variants += [
            _variant(
                name=f"hunyuan15-{guider}",
                build=partial(build_hunyuan15, guider),
                arguments=call,
                # Quoted words are read by the second encoder.
                other_arguments=partial(call, prompt='a big "blue" square moving right', width=48),
                **expected,
            ),
            _variant(
                name=f"hunyuan15-i2v-{guider}",
                build=partial(build_hunyuan15, guider, image=True),
                arguments=image_call,
                other_arguments=partial(image_call, prompt=OTHER_PROMPT, seed=2, width=64),
                **expected,
            ),
        ]
    return tuple(variants)


def hunyuan15_modular_variants() -> tuple[Variant, ...]:
    """The modular pipeline: text to video under three guiders, and image to video; without guidance diffusers has no
    negative prompt for it."""
    call = partial(hunyuan15_modular_arguments, **NEGATIVE)
    image_call = partial(call, image=1)
    return (
        _variant(
            name="hunyuan15-modular",
            build=partial(build_hunyuan15_modular, "cfg"),
            arguments=call,
            other_arguments=partial(call, prompt='a big "blue" square moving right', width=48),
            output=itself,
        ),
        _variant(
            name="hunyuan15-modular-interval",
            build=partial(build_hunyuan15_modular, "interval"),
            arguments=partial(call, num_steps=LONG),
            other_arguments=partial(call, prompt=OTHER_PROMPT, width=48, num_steps=LONG),
            expected_steps=INTERVAL,
            output=itself,
        ),
        _variant(
            name="hunyuan15-modular-skip-layer",
            build=partial(build_hunyuan15_modular, "skip-layer"),
            arguments=partial(call, num_steps=LONG),
            other_arguments=partial(call, prompt=OTHER_PROMPT, width=48, num_steps=LONG),
            expected_steps=SKIP_LAYER,
            output=itself,
        ),
        _variant(
            name="hunyuan15-modular-i2v",
            build=partial(build_hunyuan15_modular, "cfg", image=True),
            arguments=image_call,
            other_arguments=partial(image_call, prompt=OTHER_PROMPT, image=2, width=48),
            output=itself,
        ),
        _variant(
            name="hunyuan15-modular-i2v-meanflow",
            build=partial(build_hunyuan15_modular, "cfg", image=True, use_meanflow=True),
            arguments=image_call,
            other_arguments=partial(image_call, prompt=OTHER_PROMPT, image=2, width=48),
            output=itself,
        ),
    )


VARIANTS: tuple[Variant, ...] = (
    _variant(
        name="hunyuan-video",
        build=build_text_to_video,
        arguments=text_arguments,
        other_arguments=other(text_arguments),
        calls=ONE_BRANCH,
    ),
    _variant(
        name="hunyuan-video-true-cfg",
        build=build_text_to_video,
        arguments=partial(text_arguments, **TRUE_CFG),
        other_arguments=other(text_arguments, **TRUE_CFG),
    ),
    _variant(
        name="hunyuan-video-i2v-latent-concat",
        build=partial(build_image_to_video, "latent_concat"),
        arguments=partial(image_arguments, **IMAGE_PROMPT, **LATENT_CONCAT),
        other_arguments=other(image_arguments, **IMAGE_PROMPT, **LATENT_CONCAT, seed=2),
        calls=ONE_BRANCH,
    ),
    _variant(
        name="hunyuan-video-i2v-latent-concat-true-cfg",
        build=partial(build_image_to_video, "latent_concat"),
        arguments=partial(image_arguments, **IMAGE_PROMPT, **LATENT_CONCAT, **TRUE_CFG),
        other_arguments=other(image_arguments, **IMAGE_PROMPT, **LATENT_CONCAT, **TRUE_CFG, seed=2),
    ),
    _variant(
        name="hunyuan-video-i2v-token-replace",
        build=partial(build_image_to_video, "token_replace"),
        arguments=partial(image_arguments, **IMAGE_PROMPT),
        other_arguments=other(image_arguments, **IMAGE_PROMPT, seed=2),
        calls=ONE_BRANCH,
    ),
    _variant(
        name="hunyuan-video-i2v-token-replace-true-cfg",
        build=partial(build_image_to_video, "token_replace"),
        arguments=partial(image_arguments, **IMAGE_PROMPT, **TRUE_CFG, guidance_scale=1.0),
        other_arguments=other(image_arguments, **IMAGE_PROMPT, **TRUE_CFG, guidance_scale=1.0, seed=2),
    ),
    _variant(
        name="hunyuan-skyreels-i2v",
        build=build_skyreels,
        arguments=partial(image_arguments, guidance_scale=1.0, **TRUE_CFG),
        other_arguments=other(image_arguments, guidance_scale=1.0, **TRUE_CFG, seed=2),
    ),
    _variant(
        name="hunyuan-skyreels-i2v-no-negative-prompt",
        build=build_skyreels,
        arguments=partial(image_arguments, guidance_scale=1.0),
        other_arguments=other(image_arguments, guidance_scale=1.0, seed=2),
        calls=ONE_BRANCH,
    ),
    _variant(
        name="hunyuan-framepack",
        build=build_framepack,
        arguments=partial(image_arguments, **FRAMEPACK),
        other_arguments=other(image_arguments, **FRAMEPACK, seed=2),
        calls=ONE_BRANCH,
        output=sections,
    ),
    _variant(
        name="hunyuan-framepack-true-cfg",
        build=build_framepack,
        arguments=partial(image_arguments, **FRAMEPACK, **TRUE_CFG),
        other_arguments=other(image_arguments, **FRAMEPACK, **TRUE_CFG, seed=2),
        output=sections,
    ),
    _variant(
        name="hunyuan-framepack-two-sections",
        build=build_framepack,
        arguments=partial(image_arguments, **FRAMEPACK, num_frames=10),
        other_arguments=other(image_arguments, **FRAMEPACK, num_frames=10, seed=2),
        calls=ONE_BRANCH,
        num_steps=2 * SHORT,
        output=sections,
    ),
    _variant(
        name="hunyuan-framepack-f1-two-sections-true-cfg",
        build=build_framepack,
        arguments=partial(image_arguments, **FRAMEPACK, **TRUE_CFG, num_frames=10, sampling_type="vanilla"),
        other_arguments=other(image_arguments, **FRAMEPACK, **TRUE_CFG, num_frames=10, sampling_type="vanilla", seed=2),
        num_steps=2 * SHORT,
        output=sections,
    ),
    *hunyuan15_variants(),
    *hunyuan15_modular_variants(),
    _variant(
        name="hunyuan15-i2v-meanflow",
        build=partial(build_hunyuan15, "off", image=True, use_meanflow=True),
        arguments=hunyuan15_image_arguments,
        other_arguments=partial(hunyuan15_image_arguments, prompt=OTHER_PROMPT, seed=2, width=64),
        calls=ONE_BRANCH,
    ),
)
