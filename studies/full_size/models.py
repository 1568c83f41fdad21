"""The models of full size, as rows: the configs of public checkpoints, and how their pipelines are called.

Wan 2.1 after `wan/configs` of its authors' code, which the class defaults of diffusers repeat; HunyuanVideo and
CogVideoX-5B after the `transformer/config.json` of their diffusers checkpoints. What a config leaves out is the default
of the class.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any


@dataclass(frozen=True, kw_only=True, slots=True)
class FullSizeModel:
    """One model at one size of video."""

    name: str
    family: str
    """Key of `families.FAMILIES`: the classes, and what the text encoders would have given."""
    source: str
    """The public checkpoint with this config."""
    config: Mapping[str, Any]
    """Of the transformer."""
    scheduler: Mapping[str, Any]
    """Settings of the scheduler."""
    height: int
    width: int
    num_frames: tuple[int, ...]
    """What is tried, the wanted number first: the next one where memory is too small."""
    guidance_scale: float
    text_length: int
    """Tokens of a prompt with its padding."""
    num_steps: int
    """Denoising steps, unless told: few where a step takes long."""


_WAN_14B: dict[str, Any] = {
    "patch_size": (1, 2, 2),
    "num_attention_heads": 40,
    "attention_head_dim": 128,
    "in_channels": 16,
    "out_channels": 16,
    "text_dim": 4096,
    "freq_dim": 256,
    "ffn_dim": 13824,
    "num_layers": 40,
    "cross_attn_norm": True,
    "qk_norm": "rms_norm_across_heads",
    "eps": 1e-6,
    "rope_max_seq_len": 1024,
}
_WAN_1_3B = _WAN_14B | {"num_attention_heads": 12, "ffn_dim": 8960, "num_layers": 30}
_HUNYUAN: dict[str, Any] = {
    "in_channels": 16,
    "out_channels": 16,
    "num_attention_heads": 24,
    "attention_head_dim": 128,
    "num_layers": 20,
    "num_single_layers": 40,
    "num_refiner_layers": 2,
    "mlp_ratio": 4.0,
    "patch_size": 2,
    "patch_size_t": 1,
    "qk_norm": "rms_norm",
    "guidance_embeds": True,
    "text_embed_dim": 4096,
    "pooled_projection_dim": 768,
    "rope_theta": 256.0,
    "rope_axes_dim": (16, 56, 56),
}
_COGVIDEOX_5B: dict[str, Any] = {
    "num_attention_heads": 48,
    "attention_head_dim": 64,
    "in_channels": 16,
    "out_channels": 16,
    "time_embed_dim": 512,
    "text_embed_dim": 4096,
    "num_layers": 42,
    "sample_width": 90,
    "sample_height": 60,
    "sample_frames": 49,
    "patch_size": 2,
    "temporal_compression_ratio": 4,
    "max_text_seq_length": 226,
    "use_rotary_positional_embeddings": True,
}


def _wan(
    name: str, checkpoint: str, config: dict[str, Any], *, height: int, width: int, num_steps: int
) -> FullSizeModel:
    """Wan 2.1, text to video; its authors advise a flow shift of 3 at 480p and of 5 at 720p."""
    shift = 5.0 if height >= 720 else 3.0
    return FullSizeModel(
        name=name,
        family="wan",
        source=checkpoint,
        config=config,
        scheduler={"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": shift},
        height=height,
        width=width,
        num_frames=(81, 61, 41, 21),
        guidance_scale=5.0,
        text_length=512,
        num_steps=num_steps,
    )


_SMALL, _LARGE = "Wan-AI/Wan2.1-T2V-1.3B-Diffusers", "Wan-AI/Wan2.1-T2V-14B-Diffusers"
_ROWS: tuple[FullSizeModel, ...] = (
    _wan("wan-1.3b-480p", _SMALL, _WAN_1_3B, height=480, width=832, num_steps=20),
    _wan("wan-1.3b-720p", _SMALL, _WAN_1_3B, height=720, width=1280, num_steps=10),
    _wan("wan-14b-480p", _LARGE, _WAN_14B, height=480, width=832, num_steps=10),
    _wan("wan-14b-720p", _LARGE, _WAN_14B, height=720, width=1280, num_steps=8),
    FullSizeModel(
        name="hunyuan-720p",
        family="hunyuan",
        source="hunyuanvideo-community/HunyuanVideo",
        config=_HUNYUAN,
        scheduler={"shift": 7.0},
        height=720,
        width=1280,
        num_frames=(129, 97, 65, 33),
        guidance_scale=6.0,
        text_length=256,
        num_steps=8,
    ),
    FullSizeModel(
        name="cogvideox-5b",
        family="cogvideox",
        source="zai-org/CogVideoX-5b",
        config=_COGVIDEOX_5B,
        # of the conversion of the checkpoint; the solver is the one its authors advise
        scheduler={
            "beta_schedule": "scaled_linear",
            "beta_start": 0.00085,
            "beta_end": 0.012,
            "prediction_type": "v_prediction",
            "rescale_betas_zero_snr": True,
            "snr_shift_scale": 1.0,
            "timestep_spacing": "trailing",
        },
        height=480,
        width=720,
        num_frames=(49, 33, 17),
        guidance_scale=6.0,
        text_length=226,
        num_steps=20,
    ),
)
MODELS: dict[str, FullSizeModel] = {row.name: row for row in _ROWS}


TINY: dict[str, dict[str, Any]] = {
    "wan": dict(num_attention_heads=2, attention_head_dim=12, text_dim=16, freq_dim=16, ffn_dim=32, num_layers=4),
    "hunyuan": dict(
        num_attention_heads=2,
        attention_head_dim=12,
        num_layers=2,
        num_single_layers=3,
        num_refiner_layers=1,
        text_embed_dim=16,
        pooled_projection_dim=16,
        rope_axes_dim=(4, 4, 4),
    ),
    "cogvideox": dict(
        num_attention_heads=3,
        attention_head_dim=16,
        time_embed_dim=8,
        text_embed_dim=16,
        num_layers=4,
        sample_width=4,
        sample_height=4,
        sample_frames=9,
        max_text_seq_length=8,
    ),
}
"""By family: what makes a config so small that a CPU runs it in a second."""


def tiny(model: FullSizeModel) -> FullSizeModel:
    """The same row made tiny, to try the benchmark itself out."""
    return replace(
        model,
        name=f"tiny-{model.name}",
        config={**model.config, **TINY[model.family]},
        height=32,
        width=32,
        num_frames=(9,),
        text_length=8,
        num_steps=8,
    )
