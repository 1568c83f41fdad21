"""The project's trained `shapes-wan` in ComfyUI's own class of Wan."""

from __future__ import annotations

import re
from typing import Any

RENAMED = (
    (r"^condition_embedder\.time_embedder\.linear_1", "time_embedding.0"),
    (r"^condition_embedder\.time_embedder\.linear_2", "time_embedding.2"),
    (r"^condition_embedder\.time_proj", "time_projection.1"),
    (r"^condition_embedder\.text_embedder\.linear_1", "text_embedding.0"),
    (r"^condition_embedder\.text_embedder\.linear_2", "text_embedding.2"),
    (r"^scale_shift_table", "head.modulation"),
    (r"^proj_out", "head.head"),
    (r"\.scale_shift_table", ".modulation"),
    (r"\.attn1\.to_out\.0", ".self_attn.o"),
    (r"\.attn2\.to_out\.0", ".cross_attn.o"),
    (r"\.attn1\.to_", ".self_attn."),
    (r"\.attn2\.to_", ".cross_attn."),
    (r"\.attn1\.", ".self_attn."),
    (r"\.attn2\.", ".cross_attn."),
    (r"\.norm2\.", ".norm3."),
    (r"\.ffn\.net\.0\.proj", ".ffn.0"),
    (r"\.ffn\.net\.2", ".ffn.2"),
)
"""Names in diffusers, and what they are in ComfyUI; in this order."""


def renamed(name: str) -> str:
    for pattern, replacement in RENAMED:
        name = re.sub(pattern, replacement, name)
    return name


def patcher(transformer: Any, shift: float) -> Any:
    """A model patcher, on the CPU, of a diffusers Wan transformer's weights."""
    import comfy.latent_formats
    import comfy.model_base
    import comfy.model_patcher
    import comfy.supported_models
    import torch

    class Latents(comfy.latent_formats.LatentFormat):
        latent_channels, latent_dimensions = transformer.config.in_channels, 3
        latent_rgb_factors = [[0.1, 0.1, 0.1]] * transformer.config.in_channels  # previews, of no likeness

    of = transformer.config
    settings = comfy.supported_models.WAN21_T2V(
        {
            "image_model": "wan2.1",
            "model_type": "t2v",
            "dim": of.num_attention_heads * of.attention_head_dim,
            "ffn_dim": of.ffn_dim,
            "freq_dim": of.freq_dim,
            "text_dim": of.text_dim,
            "in_dim": of.in_channels,
            "out_dim": of.out_channels,
            "num_heads": of.num_attention_heads,
            "num_layers": of.num_layers,
            "dtype": torch.float32,
        }
    )
    settings.latent_format, settings.sampling_settings = Latents(), {"shift": shift}
    settings.set_inference_dtype(torch.float32, None)
    model = comfy.model_base.WAN21(settings, device="cpu")
    weights = {renamed(name): value for name, value in transformer.state_dict().items()}
    model.diffusion_model.load_state_dict(weights)
    cpu = torch.device("cpu")
    return comfy.model_patcher.ModelPatcher(model.eval(), load_device=cpu, offload_device=cpu)
