"""The Wan family: text, image and video to video, VACE, Animate, Lucy Edit, ChronoEdit and the modular pipelines."""

from __future__ import annotations

from functools import partial
from typing import Any

from conformance.variant import LONG, SHORT, Calls, Variant

PROMPT = "a small red circle moving left"
OTHER_PROMPT = "a big blue square moving right"
ALONE: Calls = (("cond",),)
GUIDED: Calls = (("cond",), ("uncond",))
SKIP_LAYER: Calls = (("cond",), ("uncond",), ("cond_skip",))
LATENT_CHANNELS = 4
MASK_CHANNELS = 4
WIDTH = 24
IMAGE_WIDTH = 16
FACE_SIZE = 16
TEXT_LENGTH = 512
"""The attention of models with image tokens takes the last 512 tokens for text, whatever `max_sequence_length` says."""


def start() -> None:
    """One thread, and the seed of all weights."""
    import torch

    torch.set_num_threads(1)
    torch.manual_seed(0)


def text_parts() -> dict[str, Any]:
    """Tokenizer and text encoder of width 16."""
    from transformers import UMT5Config, UMT5EncoderModel

    from training.tokenizer import build_tokenizer

    tokenizer = build_tokenizer()
    config = UMT5Config(vocab_size=len(tokenizer), d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    return {"tokenizer": tokenizer, "text_encoder": UMT5EncoderModel(config).eval()}


def image_parts(projection: bool = False) -> dict[str, Any]:
    """Image processor and image encoder: 5 tokens of width 16 for an image."""
    from transformers import CLIPVisionConfig, CLIPVisionModel, CLIPVisionModelWithProjection
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    config = CLIPVisionConfig(
        hidden_size=IMAGE_WIDTH,
        intermediate_size=16,
        projection_dim=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=16,
        patch_size=8,
    )
    encoder = (CLIPVisionModelWithProjection if projection else CLIPVisionModel)(config)
    processor = CLIPImageProcessorPil(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})
    return {"image_encoder": encoder.eval(), "image_processor": processor}


def build_vae() -> Any:
    """Latents of 4 channels, 8 times smaller than the frames and 4 times shorter."""
    from diffusers import AutoencoderKLWan

    return AutoencoderKLWan(
        base_dim=3,
        z_dim=LATENT_CHANNELS,
        dim_mult=[1, 1, 1, 1],
        num_res_blocks=1,
        temperal_downsample=[False, True, True],
        latents_mean=[0.0] * LATENT_CHANNELS,
        latents_std=[1.0] * LATENT_CHANNELS,
    ).eval()


def build_scheduler(name: str) -> Any:
    from diffusers import (
        FlowMatchEulerDiscreteScheduler,
        FlowMatchHeunDiscreteScheduler,
        UniPCMultistepScheduler,
    )

    if name == "unipc":
        return UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0)
    classes = {"euler": FlowMatchEulerDiscreteScheduler, "heun": FlowMatchHeunDiscreteScheduler}
    return classes[name](shift=3.0)


def build_transformer(class_name: str = "WanTransformer3DModel", image_tokens: bool = False, **changes: Any) -> Any:
    """4 blocks of width 24, unless `changes` say otherwise; parameters of zeros get small values, so they matter."""
    import diffusers
    import torch

    settings: dict[str, Any] = dict(
        patch_size=(1, 2, 2),
        num_attention_heads=2,
        attention_head_dim=WIDTH // 2,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        text_dim=16,
        freq_dim=16,
        ffn_dim=32,
        num_layers=4,
    )
    if image_tokens:
        settings |= dict(image_dim=IMAGE_WIDTH, added_kv_proj_dim=WIDTH)
    transformer = getattr(diffusers, class_name)(**settings | changes)
    for parameter in transformer.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.05)
    return transformer.eval()


def build_parts(transformer: dict[str, Any] | None, experts: bool, image_encoder: bool) -> dict[str, Any]:
    """Components but the scheduler; `transformer` changes the settings of the denoiser, or of both experts."""
    start()
    settings = {"image_tokens": image_encoder} | (transformer or {})
    parts = text_parts() | {"vae": build_vae(), "transformer": build_transformer(**settings)}
    if experts:
        parts |= {"transformer_2": build_transformer(**settings), "boundary_ratio": 0.8}
    return parts | image_parts() if image_encoder else parts


def build_pipeline(
    class_name: str,
    transformer: dict[str, Any] | None = None,
    experts: bool = False,
    image_encoder: bool = False,
    scheduler: str = "unipc",
    **changes: Any,
) -> Any:
    import diffusers

    parts = build_parts(transformer, experts, image_encoder)
    pipeline = getattr(diffusers, class_name)(**parts, scheduler=build_scheduler(scheduler), **changes)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def build_modular(
    class_name: str,
    guiders: dict[str, dict[str, Any]],
    transformer: dict[str, Any] | None = None,
    experts: bool = False,
    image_encoder: bool = False,
) -> Any:
    """`guiders`: component name to the guider's settings, with its class name under "guider"."""
    import diffusers

    parts = build_parts(transformer, experts, image_encoder)
    for name, settings in guiders.items():
        settings = dict(settings)
        parts[name] = getattr(diffusers, settings.pop("guider"))(**settings)
    blocks = getattr(diffusers, class_name)()
    blocks.sub_blocks["denoise"].sub_blocks["denoise"].set_progress_bar_config(disable=True)
    pipeline = blocks.init_pipeline()
    pipeline.update_components(**parts, scheduler=build_scheduler("unipc"))
    return pipeline


def picture(seed: int, height: int = 32, width: int = 32) -> Any:
    import numpy as np
    from PIL import Image

    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def film(seed: int, num_frames: int = 5, height: int = 32, width: int = 32) -> list[Any]:
    return [picture(seed * 100 + index, height, width) for index in range(num_frames)]


def text_arguments(prompt: str = PROMPT, long_text: bool = False, **changes: Any) -> dict[str, Any]:
    """With `long_text` the prompt fills most of the 512 tokens, so that it weighs against their padding."""
    settings = dict(
        prompt=" ".join([prompt] * 60) if long_text else prompt,
        height=32,
        width=32,
        num_frames=5,
        num_inference_steps=LONG,
        guidance_scale=5.0,
        max_sequence_length=TEXT_LENGTH if long_text else 24,
        output_type="latent",
    )
    return settings | changes


def image_arguments(prompt: str = PROMPT, last_image: bool = False, **changes: Any) -> dict[str, Any]:
    """Text arguments and a first image, on request a last one."""
    arguments = text_arguments(prompt, **changes)
    size = {"height": arguments["height"], "width": arguments["width"]}
    arguments["image"] = picture(0, **size)
    if last_image:
        arguments["last_image"] = picture(1, **size)
    return arguments


def vace_arguments(prompt: str = PROMPT, reference: bool = False, **changes: Any) -> dict[str, Any]:
    """Text arguments, a control video with a mask, on request a reference image, which takes a frame of its own."""
    from PIL import Image

    arguments = text_arguments(prompt, **changes)
    size = {"height": arguments["height"], "width": arguments["width"]}
    arguments["video"] = film(0, arguments["num_frames"], **size)
    arguments["mask"] = [Image.new("L", (size["width"], size["height"]), 255 * (index > 0)) for index in range(5)]
    arguments["mask"] += [arguments["mask"][-1]] * (arguments["num_frames"] - 5)
    if reference:
        arguments["reference_images"] = [picture(1, **size)]
    return arguments


def video_arguments(prompt: str = PROMPT, **changes: Any) -> dict[str, Any]:
    """Text arguments and a video in place of the number of frames: the last 8 of 10 steps."""
    arguments = text_arguments(prompt, num_inference_steps=10, strength=0.8, **changes)
    size = {"height": arguments["height"], "width": arguments["width"]}
    return arguments | {"video": film(0, arguments.pop("num_frames"), **size)}


def animate_arguments(prompt: str = PROMPT, **changes: Any) -> dict[str, Any]:
    """A character image, a pose film and a face film; segments of 5 frames, of which the first is known."""
    arguments = text_arguments(prompt, long_text=True, **{"guidance_scale": 1.0} | changes)
    size = {"height": arguments["height"], "width": arguments["width"]}
    num_frames = arguments.pop("num_frames")
    return arguments | dict(
        image=picture(0, **size),
        pose_video=film(1, num_frames, **size),
        face_video=film(2, num_frames, FACE_SIZE, FACE_SIZE),
        segment_frame_length=5,
    )


def edit_arguments(prompt: str = PROMPT, **changes: Any) -> dict[str, Any]:
    """Text arguments and the film to edit."""
    arguments = text_arguments(prompt, **changes)
    size = {"height": arguments["height"], "width": arguments["width"]}
    return arguments | {"video": film(0, arguments["num_frames"], **size)}


def modular_arguments(
    prompt: str = PROMPT, image: bool = False, control: bool = False, **changes: Any
) -> dict[str, Any]:
    """Arguments without a guidance scale, which is the guider's; the latents are asked for by name."""
    make = vace_arguments if control else image_arguments if image else text_arguments
    arguments = make(prompt, **changes) | {"output_type": "pt", "output": "latents"}
    del arguments["guidance_scale"]
    return arguments


def itself(output: Any) -> Any:
    return output


IMAGE_CONDITION = {"in_channels": 2 * LATENT_CHANNELS + MASK_CHANNELS}
VACE = {
    "class_name": "WanVACETransformer3DModel",
    "num_layers": 6,
    "vace_layers": [0, 2, 4],
    "vace_in_channels": 2 * LATENT_CHANNELS + 64,
}
ANIMATE = IMAGE_CONDITION | {
    "class_name": "WanAnimateTransformer3DModel",
    "num_layers": 6,
    "latent_channels": LATENT_CHANNELS,
    "motion_encoder_size": FACE_SIZE,
    "motion_encoder_channel_sizes": {"4": 8, "8": 8, "16": 8},
    "motion_style_dim": 16,
    "motion_dim": 4,
    "motion_encoder_dim": 16,
    "face_encoder_hidden_dim": 16,
    "face_encoder_num_heads": 2,
    "inject_face_latents_blocks": 2,
}
CHRONO_EDIT = IMAGE_CONDITION | {"class_name": "ChronoEditTransformer3DModel"}
CFG = {"guider": "ClassifierFreeGuidance", "guidance_scale": 5.0}
CFG_LATE = CFG | {"start": 0.25}
APG = {"guider": "AdaptiveProjectedGuidance", "guidance_scale": 5.0, "adaptive_projected_guidance_momentum": -0.5}
SLG = {
    "guider": "SkipLayerGuidance",
    "guidance_scale": 5.0,
    "skip_layer_config": {"indices": [1], "fqn": "blocks"},
    "skip_layer_guidance_start": 0.25,
    "skip_layer_guidance_stop": 0.75,
}


def variant(name: str, build: Any, arguments: Any, changes: dict[str, Any], **facts: Any) -> Variant:
    """`changes` go to both sets of arguments; the second has another prompt and wider frames."""
    if arguments is not video_arguments and not {"num_steps", "expected_steps"} & set(facts):
        changes, facts = changes | {"num_inference_steps": SHORT}, facts | {"num_steps": SHORT}
    return Variant(
        name=name,
        build=build,
        arguments=partial(arguments, **changes),
        other_arguments=partial(arguments, OTHER_PROMPT, **({"width": 48} | changes)),
        **facts,
    )


VARIANTS: tuple[Variant, ...] = (
    variant("wan-t2v", partial(build_pipeline, "WanPipeline"), text_arguments, {}),
    variant("wan-t2v-euler", partial(build_pipeline, "WanPipeline", scheduler="euler"), text_arguments, {}),
    variant("wan-t2v-heun", partial(build_pipeline, "WanPipeline", scheduler="heun"), text_arguments, {}, num_steps=15),
    variant(
        "wan-t2v-no-guidance",
        partial(build_pipeline, "WanPipeline"),
        text_arguments,
        {"guidance_scale": 1.0},
        calls=ALONE,
    ),
    variant("wan-t2v-two-videos", partial(build_pipeline, "WanPipeline"), text_arguments, {"num_videos_per_prompt": 2}),
    variant(
        "wan-t2v-two-experts",
        partial(build_pipeline, "WanPipeline", experts=True),
        text_arguments,
        {"guidance_scale_2": 3.0},
    ),
    variant("wan-ti2v-text", partial(build_pipeline, "WanPipeline", expand_timesteps=True), text_arguments, {}),
    variant(
        "wan-ti2v-image",
        partial(build_pipeline, "WanImageToVideoPipeline", expand_timesteps=True),
        image_arguments,
        {},
    ),
    variant(
        "wan-i2v",
        partial(build_pipeline, "WanImageToVideoPipeline", IMAGE_CONDITION, image_encoder=True),
        image_arguments,
        {"long_text": True},
    ),
    variant(
        "wan-i2v-first-and-last",
        partial(
            build_pipeline,
            "WanImageToVideoPipeline",
            IMAGE_CONDITION | {"pos_embed_seq_len": 10},
            image_encoder=True,
        ),
        image_arguments,
        {"long_text": True, "last_image": True},
    ),
    variant(
        "wan-i2v-two-experts",
        partial(build_pipeline, "WanImageToVideoPipeline", IMAGE_CONDITION, experts=True),
        image_arguments,
        {"guidance_scale_2": 3.0},
    ),
    variant("wan-vace", partial(build_pipeline, "WanVACEPipeline", VACE), vace_arguments, {"reference": True}),
    variant(
        "wan-vace-two-experts",
        partial(build_pipeline, "WanVACEPipeline", VACE, experts=True),
        vace_arguments,
        {"guidance_scale_2": 3.0},
    ),
    variant("wan-v2v", partial(build_pipeline, "WanVideoToVideoPipeline"), video_arguments, {}),
    variant(
        "wan-animate",
        partial(build_pipeline, "WanAnimatePipeline", ANIMATE, image_encoder=True),
        animate_arguments,
        {},
        calls=ALONE,
    ),
    variant(
        "wan-animate-guided",
        partial(build_pipeline, "WanAnimatePipeline", ANIMATE, image_encoder=True),
        animate_arguments,
        {"guidance_scale": 5.0},
    ),
    variant(
        "wan-animate-segments",
        partial(build_pipeline, "WanAnimatePipeline", ANIMATE, image_encoder=True),
        animate_arguments,
        {"guidance_scale": 5.0, "num_frames": 9, "output_type": "pt"},
        num_steps=16,
    ),
    variant(
        "lucy-edit",
        partial(build_pipeline, "LucyEditPipeline", {"in_channels": 2 * LATENT_CHANNELS}, expand_timesteps=True),
        edit_arguments,
        {},
    ),
    variant(
        "chronoedit",
        partial(build_pipeline, "ChronoEditPipeline", CHRONO_EDIT, image_encoder=True),
        image_arguments,
        {"long_text": True},
    ),
    variant(
        "chronoedit-reasoning",
        partial(build_pipeline, "ChronoEditPipeline", CHRONO_EDIT, image_encoder=True),
        image_arguments,
        {
            "long_text": True,
            "num_frames": 13,
            "enable_temporal_reasoning": True,
            "num_temporal_reasoning_steps": 4,
        },
        num_steps=LONG,
    ),
    variant("wan-modular", partial(build_modular, "WanBlocks", {"guider": CFG}), modular_arguments, {}, output=itself),
    variant(
        "wan-modular-guidance-interval",
        partial(build_modular, "WanBlocks", {"guider": CFG_LATE}),
        modular_arguments,
        {},
        expected_steps=(ALONE,) * 2 + (GUIDED,) * 6,
        output=itself,
    ),
    variant(
        "wan-modular-projected-guidance",
        partial(build_modular, "WanBlocks", {"guider": APG}),
        modular_arguments,
        {},
        output=itself,
    ),
    variant(
        "wan-modular-skip-layer",
        partial(build_modular, "WanBlocks", {"guider": SLG}),
        modular_arguments,
        {},
        expected_steps=(GUIDED,) * 3 + (SKIP_LAYER,) * 3 + (GUIDED,) * 2,
        output=itself,
    ),
    variant(
        "wan-modular-i2v",
        partial(build_modular, "WanImage2VideoAutoBlocks", {"guider": CFG}, IMAGE_CONDITION, image_encoder=True),
        modular_arguments,
        {"image": True, "long_text": True},
        output=itself,
    ),
    variant(
        "wan-modular-two-experts",
        partial(build_modular, "Wan22Blocks", {"guider": CFG, "guider_2": CFG | {"guidance_scale": 3.0}}, experts=True),
        modular_arguments,
        {},
        output=itself,
    ),
    variant(
        "wan-modular-vace-two-experts",
        partial(
            build_modular,
            "Wan22VaceBlocks",
            {"guider": CFG, "guider_2": CFG | {"guidance_scale": 3.0}},
            VACE,
            experts=True,
        ),
        modular_arguments,
        {"control": True},
        output=itself,
    ),
)
