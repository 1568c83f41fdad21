"""SkyReels-V2: text and image to video, and diffusion forcing, where every latent frame has its own timestep."""

from __future__ import annotations

from functools import partial
from typing import Any

from conformance.variant import Variant
from conformance.wan import (
    IMAGE_CONDITION,
    build_scheduler,
    build_transformer,
    build_vae,
    edit_arguments,
    image_arguments,
    image_parts,
    start,
    text_arguments,
    text_parts,
    variant,
)

FORCING = {"inject_sample_info": True}


def build_pipeline(class_name: str, image_encoder: bool = False, **transformer: Any) -> Any:
    """4 blocks of width 24; `transformer` changes settings of the denoiser."""
    import diffusers

    start()
    parts = text_parts()
    if image_encoder:
        parts |= image_parts(projection=True)
    pipeline = getattr(diffusers, class_name)(
        vae=build_vae(),
        transformer=build_transformer("SkyReelsV2Transformer3DModel", image_encoder, **transformer),
        scheduler=build_scheduler("unipc"),
        **parts,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def _forcing(name: str, pipeline: str, arguments: Any, changes: dict[str, Any], **facts: Any) -> Variant:
    build = partial(build_pipeline, f"SkyReelsV2DiffusionForcing{pipeline}Pipeline", **FORCING)
    return variant(f"skyreels-forcing-{name}", build, arguments, changes, **facts)


STAGGERED = {"num_frames": 13, "ar_step": 2, "causal_block_size": 2}
"""Two blocks of two latent frames, the second two steps behind the first."""

VARIANTS: tuple[Variant, ...] = (
    variant("skyreels-t2v", partial(build_pipeline, "SkyReelsV2Pipeline"), text_arguments, {}),
    variant(
        "skyreels-i2v",
        partial(build_pipeline, "SkyReelsV2ImageToVideoPipeline", image_encoder=True, **IMAGE_CONDITION),
        image_arguments,
        {"long_text": True},
    ),
    _forcing("t2v", "", text_arguments, {"num_frames": 9}),
    _forcing("t2v-no-guidance", "", text_arguments, {"num_frames": 9, "guidance_scale": 1.0}, calls=(("cond",),)),
    _forcing("t2v-staggered", "", text_arguments, STAGGERED, num_steps=10),
    _forcing(
        "t2v-long",
        "",
        text_arguments,
        {"num_frames": 17, "base_num_frames": 9, "overlap_history": 1},
        num_steps=16,
    ),
    _forcing("i2v", "ImageToVideo", image_arguments, {"num_frames": 9}),
    _forcing(
        "i2v-staggered-last-image",
        "ImageToVideo",
        image_arguments,
        {"num_frames": 9, "ar_step": 2, "last_image": True},
        num_steps=12,
    ),
    _forcing("v2v", "VideoToVideo", edit_arguments, {"num_frames": 13, "base_num_frames": 13, "overlap_history": 5}),
    _forcing(
        "v2v-staggered",
        "VideoToVideo",
        edit_arguments,
        STAGGERED | {"num_frames": 21, "base_num_frames": 21, "overlap_history": 5},
        num_steps=10,
    ),
    _forcing(
        "v2v-long",
        "VideoToVideo",
        edit_arguments,
        {"num_frames": 17, "base_num_frames": 13, "overlap_history": 5},
        num_steps=16,
    ),
)
