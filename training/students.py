"""Classes and sizes of the models that learn from `shapes-wan`: they share its latents, and its denoiser teaches
theirs.

A latent of theirs is one of `shapes-wan` after normalising, so that their autoencoders have a scaling factor of 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from diffusers import (
    AutoencoderKLCogVideoX,
    AutoencoderKLHunyuanVideo,
    CogVideoXTransformer3DModel,
    HunyuanVideoTransformer3DModel,
)

from mixcache.zoo import world
from mixcache.zoo.world import MAX_SEQUENCE_LENGTH

CHANNELS, TEXT_WIDTH, POOLED_WIDTH = 20, 64, 48
LATENT_SIDE, LATENT_FRAMES = world.SIDE // 8, (world.NUM_FRAMES + 3) // 4
COGVIDEOX_SCHEDULER = dict(
    beta_schedule="scaled_linear",
    beta_start=0.00085,
    beta_end=0.012,
    prediction_type="v_prediction",
    rescale_betas_zero_snr=True,
    snr_shift_scale=3.0,
    timestep_spacing="trailing",
    clip_sample=False,
    set_alpha_to_one=True,
)
"""Of the CogVideoXDDIMScheduler that `shapes-cogvideox` is trained for and ships, as CogVideoX-2b does."""
HUNYUAN_SCHEDULER = dict(shift=7.0)
"""Of the FlowMatchEulerDiscreteScheduler that `shapes-hunyuan` ships, as HunyuanVideo does."""


def stretches(num_blocks: int, cross: Sequence[int]) -> list[tuple[int, str]]:
    """What each block of a student stands for: a block of the teacher and "all" of it, "self", its self-attention, or
    "rest", what comes behind that.

    The cross-attention of a block in `cross` has a block of its own. Told nothing in one of its blocks, the teacher
    misses 3, 6, 5, 21 and 17 % of the difference that a caption makes in blocks 4 to 8, and 2 % at most in the others.
    """
    return [(block, part) for block in range(num_blocks) for part in (("self", "rest") if block in cross else ("all",))]


STRETCHES = {"shapes-hunyuan": stretches(12, (5, 7, 8)), "shapes-cogvideox": stretches(12, (4, 5, 6, 7, 8))}


@dataclass(frozen=True, kw_only=True, slots=True)
class Student:
    """Autoencoder and denoiser of one model."""

    vae_class: Any
    vae: dict[str, Any]
    transformer_class: Any
    transformer: dict[str, Any]


STUDENTS = {
    "shapes-hunyuan": Student(
        vae_class=AutoencoderKLHunyuanVideo,
        vae=dict(
            latent_channels=CHANNELS,
            block_out_channels=(16, 24, 40, 40),
            layers_per_block=1,
            norm_num_groups=8,
            scaling_factor=1.0,
            mid_block_add_attention=False,
        ),
        transformer_class=HunyuanVideoTransformer3DModel,
        transformer=dict(
            in_channels=CHANNELS,
            out_channels=CHANNELS,
            num_attention_heads=5,
            attention_head_dim=32,
            num_layers=2,
            num_single_layers=len(STRETCHES["shapes-hunyuan"]) - 2,
            num_refiner_layers=1,
            mlp_ratio=3.0,
            patch_size=2,
            text_embed_dim=TEXT_WIDTH,
            pooled_projection_dim=POOLED_WIDTH,
            rope_axes_dim=(12, 10, 10),
            rope_theta=10000.0,
        ),
    ),
    "shapes-cogvideox": Student(
        vae_class=AutoencoderKLCogVideoX,
        vae=dict(
            latent_channels=CHANNELS,
            block_out_channels=(16, 32, 40, 40),
            layers_per_block=1,
            norm_num_groups=8,
            scaling_factor=1.0,
            sample_height=world.SIDE,
            sample_width=world.SIDE,
        ),
        transformer_class=CogVideoXTransformer3DModel,
        transformer=dict(
            in_channels=CHANNELS,
            out_channels=CHANNELS,
            num_attention_heads=5,
            attention_head_dim=32,
            num_layers=len(STRETCHES["shapes-cogvideox"]),
            time_embed_dim=32,
            text_embed_dim=128,
            sample_width=LATENT_SIDE,
            sample_height=LATENT_SIDE,
            sample_frames=world.NUM_FRAMES,
            max_text_seq_length=MAX_SEQUENCE_LENGTH,
            use_rotary_positional_embeddings=True,
        ),
    ),
}


def load_latents(folder: Path, clip_seed: int) -> tuple[np.ndarray, list[world.Scene]]:
    """The latents that `train_transformer.py` left in `folder`, and the scenes that they were encoded from."""
    latents = np.load(folder / "latents.npy", mmap_mode="r")
    if int((folder / "latents.done").read_text()) < len(latents):
        raise SystemExit(f"{folder}/latents.npy is not complete: run train_transformer.py until it trains")
    return latents, world.sample_scenes(len(latents), clip_seed, held_out=False)
