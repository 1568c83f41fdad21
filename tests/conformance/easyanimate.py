"""EasyAnimate 5.1: from text, from a control video and from a masked video."""

from __future__ import annotations

from functools import partial
from typing import Any

from conformance.tiny_qwen import build_chat_tokenizer, redraw_weights
from conformance.variant import SHORT, Variant


def build_text_encoder(vocabulary_size: int) -> Any:
    """The pipeline reads the states before the last block, so there are two."""
    from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration

    text = {
        "vocab_size": vocabulary_size,
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "rope_scaling": {"rope_type": "default", "mrope_section": [1, 1, 2]},
        "pad_token_id": 0,
        "bos_token_id": None,
        "eos_token_id": 1,
    }
    vision = {"depth": 1, "embed_dim": 16, "hidden_size": 16, "num_heads": 2}
    return Qwen2VLForConditionalGeneration(Qwen2VLConfig(text_config=text, vision_config=vision)).eval()


def mend_encoding(pipeline: Any) -> None:
    """The released control pipeline calls its own method with an argument which that does not take."""
    encode = pipeline.encode_prompt

    def encode_prompt(*arguments: Any, text_encoder_index: int = 0, **settings: Any) -> Any:
        return encode(*arguments, **settings)

    pipeline.encode_prompt = encode_prompt


def build_scheduler(scheduler: str) -> Any:
    from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler

    if scheduler == "euler":
        return FlowMatchEulerDiscreteScheduler(shift=5.0)
    return DDIMScheduler(prediction_type="v_prediction", clip_sample=False, rescale_betas_zero_snr=True)


def build_pipeline(pipeline_class: str, in_channels: int, scheduler: str = "euler") -> Any:
    """Two blocks with weights of their own for the text, then two which share them with the video."""
    import diffusers
    import torch

    torch.manual_seed(0)
    tokenizer = build_chat_tokenizer()
    transformer = diffusers.EasyAnimateTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=16,
        in_channels=in_channels,
        out_channels=4,
        patch_size=2,
        num_layers=4,
        mmdit_layers=2,
        time_embed_dim=8,
        text_embed_dim=16,
        time_position_encoding_type="3d_rope",
    )
    vae = diffusers.AutoencoderKLMagvit(
        latent_channels=4,
        block_out_channels=(8, 8, 8, 8),
        layers_per_block=1,
        norm_num_groups=2,
    )
    vae.register_to_config(cache_mag_vae=True)  # the inpainting pipeline reads it from the released configs
    pipeline = getattr(diffusers, pipeline_class)(
        tokenizer=tokenizer,
        text_encoder=build_text_encoder(len(tokenizer)),
        transformer=redraw_weights(transformer),
        vae=vae.eval(),
        scheduler=build_scheduler(scheduler),
    )
    if pipeline_class == "EasyAnimateControlPipeline":
        mend_encoding(pipeline)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def make_arguments(seed: int, size: int, **settings: Any) -> dict[str, Any]:
    """With embeddings in place of a prompt: the pipeline pads prompts to 256 tokens, among which few words are lost."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    mask = torch.ones(1, 8, dtype=torch.long)
    arguments = {
        "prompt_embeds": torch.randn(1, 8, 16, generator=generator),
        "negative_prompt_embeds": torch.randn(1, 8, 16, generator=generator),
        "prompt_attention_mask": mask,
        "negative_prompt_attention_mask": mask,
        "height": size,
        "width": size,
        "num_frames": 5,
        "num_inference_steps": SHORT,
        "guidance_scale": 4.0,
        "output_type": "latent",
    }
    return arguments | settings


def draw_video(seed: int, size: int) -> Any:
    """Five frames of random pixels between 0 and 1."""
    import torch

    return torch.rand(1, 3, 5, size, size, generator=torch.Generator().manual_seed(seed))


def with_control(seed: int, size: int) -> dict[str, Any]:
    return make_arguments(seed, size, control_video=draw_video(seed, size))


def with_mask(seed: int, size: int, **settings: Any) -> dict[str, Any]:
    """All frames but the first are to be filled."""
    import torch

    mask = torch.ones(1, 1, 5, size, size)
    mask[:, :, 0] = 0.0
    return make_arguments(seed, size, video=draw_video(seed, size), mask_video=mask, **settings)


def from_the_middle(seed: int, size: int) -> dict[str, Any]:
    """The pipeline draws the latents of the given video from torch's own generator, so that is seeded here."""
    import torch

    torch.manual_seed(seed)
    return with_mask(seed, size, num_inference_steps=2 * SHORT, strength=0.5)


ONE_BRANCH = (("cond",),)
JOINED = (("uncond", "cond"),)

_variant = partial(Variant, num_steps=SHORT)

VARIANTS: tuple[Variant, ...] = (
    _variant(
        name="easyanimate",
        build=partial(build_pipeline, "EasyAnimatePipeline", 4),
        arguments=partial(make_arguments, 0, 32),
        other_arguments=partial(make_arguments, 1, 16),
        calls=JOINED,
    ),
    _variant(
        name="easyanimate-no-guidance",
        build=partial(build_pipeline, "EasyAnimatePipeline", 4),
        arguments=partial(make_arguments, 0, 32, guidance_scale=1.0),
        other_arguments=partial(make_arguments, 1, 16, guidance_scale=1.0),
        calls=ONE_BRANCH,
    ),
    # DDIM keeps no index of its step
    _variant(
        name="easyanimate-ddim",
        build=partial(build_pipeline, "EasyAnimatePipeline", 4, "ddim"),
        arguments=partial(make_arguments, 0, 32),
        other_arguments=partial(make_arguments, 1, 16),
        calls=JOINED,
    ),
    _variant(
        name="easyanimate-control",
        build=partial(build_pipeline, "EasyAnimateControlPipeline", 12),
        arguments=partial(with_control, 0, 32),
        other_arguments=partial(with_control, 1, 16),
        calls=JOINED,
    ),
    _variant(
        name="easyanimate-inpaint",
        build=partial(build_pipeline, "EasyAnimateInpaintPipeline", 9),
        arguments=partial(with_mask, 0, 32),
        other_arguments=partial(with_mask, 1, 16),
        calls=JOINED,
    ),
    # the second half of the steps: the scheduler begins at an index of its own
    _variant(
        name="easyanimate-inpaint-strength",
        build=partial(build_pipeline, "EasyAnimateInpaintPipeline", 9),
        arguments=partial(from_the_middle, 0, 32),
        other_arguments=partial(from_the_middle, 1, 16),
        calls=JOINED,
    ),
)
