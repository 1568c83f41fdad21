"""Builds the pipelines of the rows: real classes and schedulers, random weights, text embeddings drawn at random.

There is no text encoder and no VAE: what is timed is the denoising loop, and without a VAE the pipelines take its usual
factors, 8 in space and 4 in time, which are those of all rows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from studies.full_size.models import FullSizeModel

NUM_WORDS = 64
"""Tokens of a prompt that are no padding, where the model is told."""
Draw = Callable[..., torch.Tensor]
"""Random values of a shape."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Family:
    """Models that are built and called alike."""

    pipeline: str
    """Class names in diffusers."""
    transformer: str
    scheduler: str
    without: tuple[str, ...]
    """Components that are not built."""
    text: Callable[[FullSizeModel, Draw], dict[str, Any]]
    """Arguments of the pipeline's call in place of a prompt."""
    has_two_branches: bool = True
    """False where guidance is a number that the model is given."""


def _two_texts(width: str) -> Callable[[FullSizeModel, Draw], dict[str, Any]]:
    """A prompt and a negative one; `width` is the config's entry for that of a text embedding."""

    def text(model: FullSizeModel, draw: Draw) -> dict[str, Any]:
        shape = (1, model.text_length, model.config[width])
        return {"prompt_embeds": draw(*shape), "negative_prompt_embeds": draw(*shape)}

    return text


def _hunyuan_text(model: FullSizeModel, draw: Draw) -> dict[str, Any]:
    """A prompt, what CLIP makes of it, and which tokens are no padding."""
    embeds = draw(1, model.text_length, model.config["text_embed_dim"])
    mask = (torch.arange(model.text_length, device=embeds.device) < NUM_WORDS)[None]
    pooled = draw(1, model.config["pooled_projection_dim"])
    return {"prompt_embeds": embeds, "pooled_prompt_embeds": pooled, "prompt_attention_mask": mask}


FAMILIES: dict[str, Family] = {
    "wan": Family(
        pipeline="WanPipeline",
        transformer="WanTransformer3DModel",
        scheduler="UniPCMultistepScheduler",
        without=("tokenizer", "text_encoder", "vae"),
        text=_two_texts("text_dim"),
    ),
    "hunyuan": Family(
        pipeline="HunyuanVideoPipeline",
        transformer="HunyuanVideoTransformer3DModel",
        scheduler="FlowMatchEulerDiscreteScheduler",
        without=("tokenizer", "text_encoder", "tokenizer_2", "text_encoder_2", "vae"),
        text=_hunyuan_text,
        has_two_branches=False,
    ),
    "cogvideox": Family(
        pipeline="CogVideoXPipeline",
        transformer="CogVideoXTransformer3DModel",
        scheduler="CogVideoXDPMScheduler",
        without=("tokenizer", "text_encoder", "vae"),
        text=_two_texts("text_embed_dim"),
    ),
}


def build_transformer(model: FullSizeModel, device: torch.device, dtype: torch.dtype) -> Any:
    """The transformer with the random weights of its own initialisation, made on the device in `dtype`.

    Where the class keeps some of its parts in float32 whatever it is loaded in, they are float32 here too.
    """
    import diffusers

    before = torch.get_default_dtype()
    torch.manual_seed(0)
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            transformer = getattr(diffusers, FAMILIES[model.family].transformer)(**model.config)
    finally:
        torch.set_default_dtype(before)
    exact = set(transformer._keep_in_fp32_modules or ())
    for name, parameter in transformer.named_parameters():
        if exact & set(name.split(".")):
            parameter.data = parameter.data.float()
    return transformer.eval().requires_grad_(False)


def build_pipeline(model: FullSizeModel, device: torch.device, dtype: torch.dtype) -> Any:
    """The pipeline of a row, on the device, progress bar off."""
    import diffusers

    family = FAMILIES[model.family]
    pipeline = getattr(diffusers, family.pipeline)(
        transformer=build_transformer(model, device, dtype),
        scheduler=getattr(diffusers, family.scheduler)(**model.scheduler),
        **dict.fromkeys(family.without),
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def call_arguments(model: FullSizeModel, device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    """Arguments of the pipeline's call, without the numbers of frames and steps and the generator."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator).to(device, dtype)

    return {
        "height": model.height,
        "width": model.width,
        "guidance_scale": model.guidance_scale,
        "output_type": "latent",
        **FAMILIES[model.family].text(model, draw),
    }
