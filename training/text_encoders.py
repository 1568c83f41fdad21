"""The text encoders of every model, and what its pipeline hands on from them to the denoiser."""

from __future__ import annotations

import torch
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    LlamaConfig,
    LlamaModel,
    PreTrainedModel,
    T5Config,
    T5EncoderModel,
    UMT5Config,
    UMT5EncoderModel,
)

from tokenizer import build_tokenizer

T5 = dict(d_model=128, d_kv=32, d_ff=256, num_layers=2, num_heads=4, dropout_rate=0.0, pad_token_id=0, eos_token_id=1)
LLAMA = dict(
    hidden_size=64,
    intermediate_size=128,
    num_hidden_layers=4,
    num_attention_heads=4,
    num_key_value_heads=4,
    pad_token_id=0,
    bos_token_id=None,
    eos_token_id=1,
)
CLIP = dict(
    hidden_size=48,
    intermediate_size=96,
    num_hidden_layers=2,
    num_attention_heads=4,
    max_position_embeddings=77,
    pad_token_id=0,
    bos_token_id=None,
    eos_token_id=1,
)
LAYERS_TO_SKIP = 2
"""Of Llama's layers, at its end: HunyuanVideoPipeline takes what comes before them, and its call cannot change that."""


def build_text_encoders(model: str) -> dict[str, PreTrainedModel]:
    """Untrained text encoders of a model, by their folder in the pipeline."""
    vocabulary = {"vocab_size": len(build_tokenizer())}
    if model == "shapes-wan":
        return {"text_encoder": UMT5EncoderModel(UMT5Config(**T5, **vocabulary))}
    if model == "shapes-hunyuan":
        return {
            "text_encoder": LlamaModel(LlamaConfig(**LLAMA, **vocabulary)),
            "text_encoder_2": CLIPTextModel(CLIPTextConfig(**CLIP, **vocabulary)),
        }
    if model == "shapes-cogvideox":
        return {"text_encoder": T5EncoderModel(T5Config(**T5, **vocabulary))}
    raise ValueError(f"unknown model {model!r}")


def embeddings(encoder: PreTrainedModel, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """What the pipeline takes from the encoder: [captions, tokens, width], of CLIP the one pooled token."""
    if isinstance(encoder, CLIPTextModel):
        return encoder(ids).pooler_output[:, None]
    if isinstance(encoder, T5EncoderModel):  # CogVideoXPipeline gives no mask, and keeps the padding
        return encoder(ids).last_hidden_state
    if isinstance(encoder, LlamaModel):
        return encoder(ids, mask, output_hidden_states=True).hidden_states[-LAYERS_TO_SKIP - 1]
    return encoder(ids, mask).last_hidden_state * mask[..., None]
