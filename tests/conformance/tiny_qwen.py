"""Small parts which several families share: a Qwen text encoder, its tokenizer, images drawn from a seed."""

from __future__ import annotations

from typing import Any

CHAT_TEMPLATE = (
    "{% for message in messages %}{{ message.role }} "
    "{% if message.content is string %}{{ message.content }}"
    "{% else %}{% for part in message.content %}{{ part.text }} {% endfor %}{% endif %} {% endfor %}"
)
VISION_START = "<|vision_start|>"


def build_chat_tokenizer() -> Any:
    """The tokenizer of the drawn world with a chat template and the mark that opens the video."""
    from training.tokenizer import build_tokenizer

    tokenizer = build_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": [VISION_START]})
    tokenizer.model_max_length = 512
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def build_qwen(vocabulary_size: int, width: int = 16, num_layers: int = 1) -> Any:
    """A Qwen2.5-VL of `num_layers` blocks for text and one for images."""
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    text = {
        "vocab_size": vocabulary_size,
        "hidden_size": width,
        "intermediate_size": width,
        "num_hidden_layers": num_layers,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "rope_scaling": {"rope_type": "default", "mrope_section": [width // 16, width // 16, width // 8]},
        "rope_theta": 10000.0,
        "pad_token_id": 0,
        "bos_token_id": None,
        "eos_token_id": 1,
    }
    vision = {
        "depth": 1,
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_heads": 2,
        "out_hidden_size": width,
    }
    return Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(text_config=text, vision_config=vision)).eval()


def build_wan_vae(num_channels: int = 4) -> Any:
    """A VAE of the Wan family; 8 times smaller in space and 4 times in time."""
    from diffusers import AutoencoderKLWan

    return AutoencoderKLWan(
        base_dim=3,
        z_dim=num_channels,
        dim_mult=[1, 1, 1, 1],
        num_res_blocks=1,
        temperal_downsample=[False, True, True],
        latents_mean=[0.0] * num_channels,
        latents_std=[1.0] * num_channels,
    ).eval()


def redraw_weights(module: Any, deviation: float = 0.25) -> Any:
    """Draws matrices wider than they begin, and what begins as zeros: in a model this small the text has to show."""
    import torch

    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=deviation)
            elif not parameter.any():
                parameter.normal_(std=0.05)
    return module.eval()


def draw_image(seed: int, size: int = 32) -> Any:
    """A square PIL image of random pixels, the same for the same seed."""
    import numpy as np
    from PIL import Image

    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8))
