"""CogVideoX and ConsisID: joined [uncond, cond] calls, v-prediction, schedulers without a step index."""

from __future__ import annotations

from functools import partial
from typing import Any

from conformance.variant import SHORT, Calls, Variant

PROMPT = "a small red circle moving left"
OTHER_PROMPT = "a big blue square moving right"
JOINED: Calls = (("uncond", "cond"),)
ALONE: Calls = (("cond",),)
ID_DIM = 8
VIT_DIM = 16


def _strengthen(transformer: Any) -> None:
    """Doubles the matrices of the blocks, so that the prompt tells."""
    import torch

    with torch.no_grad():
        for weight in transformer.transformer_blocks.parameters():
            if weight.ndim == 2:
                weight.mul_(2)


def _build(pipeline_class: str, scheduler: str, **changes: Any) -> Any:
    """4 blocks of width 48; latents of 4 channels, 8 times smaller than the frames and 4 times shorter."""
    import diffusers
    import torch
    from diffusers.pipelines.consisid.pipeline_consisid import ConsisIDPipeline
    from transformers import T5Config, T5EncoderModel

    from training.tokenizer import build_tokenizer

    torch.set_num_threads(1)
    torch.manual_seed(0)
    tokenizer = build_tokenizer()
    settings = dict(
        num_attention_heads=3,
        attention_head_dim=16,
        in_channels=4,
        out_channels=4,
        time_embed_dim=8,
        text_embed_dim=16,
        num_layers=4,
        sample_width=4,
        sample_height=4,
        sample_frames=9,
        max_text_seq_length=24,
        use_rotary_positional_embeddings=True,
    )
    if pipeline_class == "ConsisIDPipeline":
        # diffusers shows a stand-in at its top where OpenCV is missing, which only draws key points
        chosen_class = ConsisIDPipeline
        transformer = diffusers.ConsisIDTransformer3DModel(**settings | changes)
    else:
        chosen_class = getattr(diffusers, pipeline_class)
        transformer = diffusers.CogVideoXTransformer3DModel(**settings | changes)
    _strengthen(transformer)
    vae = diffusers.AutoencoderKLCogVideoX(
        block_out_channels=(4, 4, 4, 4), latent_channels=4, layers_per_block=1, norm_num_groups=2
    )
    text_config = T5Config(vocab_size=len(tokenizer), d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    pipeline = chosen_class(
        tokenizer=tokenizer,
        text_encoder=T5EncoderModel(text_config).eval(),
        vae=vae.eval(),
        transformer=transformer.eval(),
        scheduler=getattr(diffusers, scheduler)(
            prediction_type="v_prediction", rescale_betas_zero_snr=True, timestep_spacing="trailing"
        ),
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def _frames(count: int, height: int, width: int, seed: int) -> list[Any]:
    """Pictures of coarse random colours."""
    import numpy
    from PIL import Image

    colours = numpy.random.default_rng(seed).integers(0, 256, (count, 2, 2, 3), dtype=numpy.uint8)
    return [Image.fromarray(one).resize((width, height)) for one in colours]


def _arguments(other: bool, **changes: Any) -> dict[str, Any]:
    arguments = dict(
        prompt=OTHER_PROMPT if other else PROMPT,
        height=32,
        width=48 if other else 32,
        num_frames=9,
        num_inference_steps=SHORT,
        guidance_scale=6.0,
        max_sequence_length=24,
        output_type="latent",
    )
    return arguments | changes


def _image_arguments(other: bool) -> dict[str, Any]:
    return _arguments(other, image=_frames(1, 32, 32, seed=int(other))[0])


def _video_arguments(other: bool, name: str, **changes: Any) -> dict[str, Any]:
    """The clip gives the number of frames."""
    arguments = _arguments(other, **changes)
    del arguments["num_frames"]
    return arguments | {name: _frames(9, 32, 32, seed=int(other))}


def _face_arguments(other: bool) -> dict[str, Any]:
    """What the face models would have given, drawn at random: 2 scales of 5 tokens."""
    import torch

    generator = torch.Generator().manual_seed(int(other))
    id_cond = torch.randn(1, ID_DIM, generator=generator)
    id_vit_hidden = [torch.randn(1, 5, VIT_DIM, generator=generator) for _ in range(2)]
    return _image_arguments(other) | {"id_cond": id_cond, "id_vit_hidden": id_vit_hidden}


def _both(arguments: Any, *names: Any, **changes: Any) -> dict[str, Any]:
    """The two argument makers of a variant."""
    return {
        "arguments": partial(arguments, False, *names, **changes),
        "other_arguments": partial(arguments, True, *names, **changes),
    }


_variant = partial(Variant, num_steps=SHORT)

VARIANTS: tuple[Variant, ...] = (
    _variant(
        name="cogvideox-t2v-ddim",
        build=partial(_build, "CogVideoXPipeline", "CogVideoXDDIMScheduler", use_rotary_positional_embeddings=False),
        calls=JOINED,
        **_both(_arguments),
    ),
    _variant(
        name="cogvideox-t2v-dpm",
        build=partial(_build, "CogVideoXPipeline", "CogVideoXDPMScheduler"),
        calls=JOINED,
        **_both(_arguments),
    ),
    _variant(
        name="cogvideox-t2v-dynamic-guidance",
        build=partial(_build, "CogVideoXPipeline", "CogVideoXDPMScheduler"),
        calls=JOINED,
        **_both(_arguments, use_dynamic_cfg=True),
    ),
    _variant(
        name="cogvideox-t2v-unguided",
        build=partial(_build, "CogVideoXPipeline", "CogVideoXDPMScheduler"),
        calls=ALONE,
        **_both(_arguments, guidance_scale=1.0),
    ),
    _variant(
        name="cogvideox-i2v",
        build=partial(_build, "CogVideoXImageToVideoPipeline", "CogVideoXDPMScheduler", in_channels=8),
        calls=JOINED,
        **_both(_image_arguments),
    ),
    _variant(
        name="cogvideox-1.5-i2v",
        build=partial(
            _build,
            "CogVideoXImageToVideoPipeline",
            "CogVideoXDPMScheduler",
            in_channels=8,
            patch_size_t=2,
            patch_bias=False,
            ofs_embed_dim=8,
            sample_width=6,
        ),
        calls=JOINED,
        **_both(_image_arguments),
    ),
    _variant(
        name="cogvideox-v2v",
        build=partial(_build, "CogVideoXVideoToVideoPipeline", "CogVideoXDDIMScheduler"),
        calls=JOINED,
        **_both(_video_arguments, "video", num_inference_steps=8, strength=0.75),
    ),
    _variant(
        name="cogvideox-fun-control",
        build=partial(_build, "CogVideoXFunControlPipeline", "CogVideoXDDIMScheduler", in_channels=8),
        calls=JOINED,
        **_both(_video_arguments, "control_video"),
    ),
    _variant(
        name="consisid",
        build=partial(
            _build,
            "ConsisIDPipeline",
            "CogVideoXDPMScheduler",
            in_channels=8,
            is_train_face=True,
            cross_attn_dim_head=16,
            cross_attn_num_heads=2,
            LFE_id_dim=ID_DIM,
            LFE_vit_dim=VIT_DIM,
            LFE_depth=2,
            LFE_dim_head=8,
            LFE_num_heads=2,
            LFE_num_id_token=2,
            LFE_num_querie=4,
            LFE_output_dim=32,
            LFE_num_scale=2,
        ),
        calls=JOINED,
        **_both(_face_arguments),
    ),
)
