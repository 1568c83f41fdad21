"""Pipelines of public models at their real size with random weights, and the same made tiny.

Real transformer and scheduler classes; text embeddings are drawn at random. There is no text encoder and no VAE: what
is timed is the denoising loop, and without a VAE the pipelines take its usual factors, which are those of all rows.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch


@dataclass(frozen=True, kw_only=True, slots=True)
class RandomModel:
    """One model at one size of video."""

    name: str
    source: str
    """The public checkpoint with this config."""
    classes: tuple[str, str, str]
    """In diffusers: pipeline, transformer and scheduler."""
    config: Mapping[str, Any]
    """Of the transformer, where it is not the default of the class."""
    scheduler: Mapping[str, Any]
    """Settings of the scheduler, likewise."""
    height: int
    width: int
    num_frames: tuple[int, ...]
    """What is tried, the wanted number first: the next one where memory is too small."""
    guidance_scale: float
    text_length: int
    """Tokens of a prompt with its padding."""


# its authors advise this flow shift at 480p
_WAN_14B = RandomModel(
    name="wan-14b-480p",
    source="Wan-AI/Wan2.1-T2V-14B-Diffusers",
    classes=("WanPipeline", "WanTransformer3DModel", "UniPCMultistepScheduler"),
    config={},
    scheduler={"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3.0},
    height=480,
    width=832,
    num_frames=(81, 61, 41, 21),
    guidance_scale=5.0,
    text_length=512,
)
_HUNYUAN = RandomModel(
    name="hunyuan-720p",
    source="hunyuanvideo-community/HunyuanVideo",
    classes=("HunyuanVideoPipeline", "HunyuanVideoTransformer3DModel", "FlowMatchEulerDiscreteScheduler"),
    config={},
    scheduler={"shift": 7.0},
    height=720,
    width=1280,
    num_frames=(129, 97, 65, 33),
    guidance_scale=6.0,
    text_length=256,
)
_COGVIDEOX = RandomModel(
    name="cogvideox-5b",
    source="zai-org/CogVideoX-5b",
    classes=("CogVideoXPipeline", "CogVideoXTransformer3DModel", "CogVideoXDPMScheduler"),
    config={"num_attention_heads": 48, "num_layers": 42, "use_rotary_positional_embeddings": True},
    scheduler={"prediction_type": "v_prediction", "rescale_betas_zero_snr": True}
    | {"snr_shift_scale": 1.0, "timestep_spacing": "trailing"},
    height=480,
    width=720,
    num_frames=(49, 33, 17),
    guidance_scale=6.0,
    text_length=226,
)
_WAN_1_3B = replace(
    _WAN_14B,
    name="wan-1.3b-480p",
    source="Wan-AI/Wan2.1-T2V-1.3B-Diffusers",
    config={"num_attention_heads": 12, "ffn_dim": 8960, "num_layers": 30},
)
MODELS = {model.name: model for model in (_WAN_1_3B, _WAN_14B, _HUNYUAN, _COGVIDEOX)}
_FEW_HEADS = {"num_attention_heads": 2, "attention_head_dim": 12}
TINY: dict[str, dict[str, Any]] = {
    "WanTransformer3DModel": _FEW_HEADS | {"text_dim": 16, "freq_dim": 16, "ffn_dim": 32, "num_layers": 4},
    "HunyuanVideoTransformer3DModel": _FEW_HEADS
    | {"num_layers": 2, "num_single_layers": 3, "num_refiner_layers": 1}
    | {"text_embed_dim": 16, "pooled_projection_dim": 16, "rope_axes_dim": (4, 4, 4)},
    "CogVideoXTransformer3DModel": {"num_attention_heads": 3, "attention_head_dim": 16, "num_layers": 4}
    | {"time_embed_dim": 8, "text_embed_dim": 16, "max_text_seq_length": 8}
    | {"sample_width": 4, "sample_height": 4, "sample_frames": 9},
}
"""By class of transformer: what makes a config so small that a CPU runs it in a second."""


def tiny(model: RandomModel) -> RandomModel:
    """The same row made tiny, to try a study out."""
    config = {**model.config, **TINY[model.classes[1]]}
    size = {"height": 32, "width": 32, "num_frames": (9,), "text_length": 8}
    return replace(model, name=f"tiny-{model.name}", config=config, **size)


def build_transformer(model: RandomModel, device: torch.device, dtype: torch.dtype) -> Any:
    """The transformer with the random weights of its own initialisation, made on the device in `dtype`.

    Where the class keeps some of its parts in float32 whatever it is loaded in, they are float32 here too.
    """
    import diffusers

    before = torch.get_default_dtype()
    torch.manual_seed(0)
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            transformer = getattr(diffusers, model.classes[1])(**model.config)
    finally:
        torch.set_default_dtype(before)
    exact = set(transformer._keep_in_fp32_modules or ())
    for name, parameter in transformer.named_parameters():
        if exact & set(name.split(".")):
            parameter.data = parameter.data.float()
    return transformer.eval().requires_grad_(False)


def build_pipeline(model: RandomModel, device: torch.device, dtype: torch.dtype) -> Any:
    """The pipeline of a row, on the device, progress bar off; components that it cannot do without are None."""
    import diffusers

    kind, _, scheduler = (getattr(diffusers, name) for name in model.classes)
    needed = [p.name for p in inspect.signature(kind).parameters.values() if p.default is p.empty]
    built = {"transformer": build_transformer(model, device, dtype), "scheduler": scheduler(**model.scheduler)}
    pipeline = kind(**dict.fromkeys(needed) | built)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def call_arguments(model: RandomModel, pipeline: Any) -> dict[str, Any]:
    """Arguments of the pipeline's call, with embeddings for a prompt; without the numbers of frames and steps and the
    generator."""
    config, generator = pipeline.transformer.config, torch.Generator().manual_seed(0)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator).to(pipeline._execution_device, pipeline.transformer.dtype)

    embeds = draw(1, model.text_length, config.get("text_dim") or config["text_embed_dim"])
    if "pooled_projection_dim" in config:  # what CLIP makes of the prompt, and that 64 tokens are no padding
        mask = (torch.arange(model.text_length, device=embeds.device) < 64)[None]
        text = {"pooled_prompt_embeds": draw(1, config["pooled_projection_dim"]), "prompt_attention_mask": mask}
    else:
        text = {"negative_prompt_embeds": draw(*embeds.shape)}
    size = {"height": model.height, "width": model.width}
    return {"prompt_embeds": embeds, **text, **size, "guidance_scale": model.guidance_scale, "output_type": "latent"}
