"""LTX-Video: packed tokens, joined [uncond, cond] calls, a noise level a token where there is a picture."""

from __future__ import annotations

from functools import partial
from typing import Any

from conformance.variant import LONG, SHORT, Calls, Variant

PROMPT = "a small red circle moving left"
OTHER_PROMPT = "a big blue square moving right"
JOINED: Calls = (("uncond", "cond"),)
ALONE: Calls = (("cond",),)
GUIDED: Calls = (("cond",), ("uncond",))
"""As a guider calls, which the modular pipeline has."""
SKIP_LAYER: dict[str, Any] = {
    "skip_layer_config": {"indices": [1], "fqn": "transformer_blocks"},
    "skip_layer_guidance_start": 0.25,
    "skip_layer_guidance_stop": 0.75,
}


def _parts(scheduler: str, shifts: bool) -> dict[str, Any]:
    """4 blocks of width 24; latents of 8 channels, 8 times smaller than the frames and 4 times shorter."""
    import diffusers
    import torch
    from transformers import T5Config, T5EncoderModel

    from training.tokenizer import build_tokenizer

    torch.set_num_threads(1)
    torch.manual_seed(0)
    tokenizer = build_tokenizer()
    transformer = diffusers.LTXVideoTransformer3DModel(
        in_channels=8,
        out_channels=8,
        num_attention_heads=2,
        attention_head_dim=12,
        cross_attention_dim=24,
        num_layers=4,
        caption_channels=16,
    )
    vae = diffusers.AutoencoderKLLTXVideo(
        latent_channels=8,
        block_out_channels=(8, 8, 8, 8),
        decoder_block_out_channels=(8, 8, 8, 8),
        layers_per_block=(1, 1, 1, 1, 1),
        decoder_layers_per_block=(1, 1, 1, 1, 1),
        spatio_temporal_scaling=(True, True, False, False),
        decoder_spatio_temporal_scaling=(True, True, False, False),
        patch_size=2,
    )
    text_config = T5Config(vocab_size=len(tokenizer), d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    settings = dict(use_dynamic_shifting=True, base_shift=0.95, max_shift=2.05, shift_terminal=0.1) if shifts else {}
    return dict(
        tokenizer=tokenizer,
        text_encoder=T5EncoderModel(text_config).eval(),
        vae=vae.eval(),
        transformer=transformer.eval(),
        scheduler=getattr(diffusers, scheduler)(**settings),
    )


def _build(pipeline_class: str, scheduler: str = "FlowMatchEulerDiscreteScheduler", shifts: bool = False) -> Any:
    import diffusers

    pipeline = getattr(diffusers, pipeline_class)(**_parts(scheduler, shifts))
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def _build_modular(guider: str, **settings: Any) -> Any:
    """LTXModularPipeline with a guider of that class; in a step without guidance diffusers loses the
    negative prompt of the next run."""
    import diffusers

    blocks = diffusers.LTXAutoBlocks()
    for way in blocks.sub_blocks["denoise"].sub_blocks.values():
        way.sub_blocks["denoise"].set_progress_bar_config(disable=True)
    pipeline = blocks.init_pipeline()
    guided = getattr(diffusers, guider)(guidance_scale=3.0, **settings)
    pipeline.update_components(**_parts("FlowMatchEulerDiscreteScheduler", True), guider=guided)
    return pipeline


def _picture(height: int, width: int, seed: int) -> Any:
    """Coarse random colours."""
    import numpy
    from PIL import Image

    colours = numpy.random.default_rng(seed).integers(0, 256, (2, 2, 3), dtype=numpy.uint8)
    return Image.fromarray(colours).resize((width, height))


def _arguments(other: bool, **changes: Any) -> dict[str, Any]:
    arguments = dict(
        prompt=OTHER_PROMPT if other else PROMPT,
        height=32,
        width=64 if other else 32,
        num_frames=9,
        num_inference_steps=SHORT,
        guidance_scale=3.0,
        max_sequence_length=24,
        output_type="latent",
    )
    return arguments | changes


def _image_arguments(other: bool) -> dict[str, Any]:
    return _arguments(other, image=_picture(32, 32, seed=int(other)))


def _condition_arguments(other: bool) -> dict[str, Any]:
    """A picture that is the first frame, and a weaker one for later, whose tokens come on top of the clip's."""
    from diffusers.pipelines.ltx.pipeline_ltx_condition import LTXVideoCondition

    conditions = [
        LTXVideoCondition(image=_picture(32, 32, seed=int(other)), frame_index=0, strength=1.0),
        LTXVideoCondition(image=_picture(32, 32, seed=2), frame_index=4, strength=0.7),
    ]
    return _arguments(other, conditions=conditions)


def _long_arguments(other: bool, **changes: Any) -> dict[str, Any]:
    """Two windows of 5 and 4 latent frames, of another text each, of 8 steps: the loop leaves out the last timestep."""
    prompts = (OTHER_PROMPT, PROMPT) if other else (PROMPT, OTHER_PROMPT)
    window = dict(
        prompt=" | ".join(prompts),
        num_frames=25,
        temporal_tile_size=20,
        temporal_overlap=8,
        num_inference_steps=9,
        cond_image=_picture(32, 32, seed=int(other)),
    )
    return _arguments(other, **window | changes)


def _modular_arguments(other: bool, image: bool = False, **changes: Any) -> dict[str, Any]:
    """Without a guidance scale, which is the guider's; the latents are asked for by name."""
    arguments = _image_arguments(other) if image else _arguments(other)
    del arguments["guidance_scale"]
    return arguments | {"output_type": "pt", "output": "latents"} | changes


def _itself(output: Any) -> Any:
    return output


def _both(arguments: Any, **changes: Any) -> dict[str, Any]:
    """The two argument makers of a variant."""
    return {
        "arguments": partial(arguments, False, **changes),
        "other_arguments": partial(arguments, True, **changes),
    }


_variant = partial(Variant, num_steps=SHORT)

VARIANTS: tuple[Variant, ...] = (
    _variant(name="ltx-t2v", build=partial(_build, "LTXPipeline", shifts=True), calls=JOINED, **_both(_arguments)),
    _variant(
        name="ltx-t2v-rescaled",
        build=partial(_build, "LTXPipeline", shifts=True),
        calls=JOINED,
        **_both(_arguments, guidance_rescale=0.7),
    ),
    _variant(
        name="ltx-t2v-unguided",
        build=partial(_build, "LTXPipeline", shifts=True),
        calls=ALONE,
        **_both(_arguments, guidance_scale=1.0),
    ),
    _variant(
        name="ltx-i2v",
        build=partial(_build, "LTXImageToVideoPipeline", shifts=True),
        calls=JOINED,
        **_both(_image_arguments),
    ),
    _variant(
        name="ltx-condition", build=partial(_build, "LTXConditionPipeline"), calls=JOINED, **_both(_condition_arguments)
    ),
    _variant(
        name="ltx-condition-text",
        build=partial(_build, "LTXConditionPipeline"),
        calls=JOINED,
        **_both(_arguments),
    ),
    _variant(
        name="ltx-long",
        build=partial(_build, "LTXI2VLongMultiPromptPipeline"),
        calls=JOINED,
        num_steps=16,
        **_both(_long_arguments),
    ),
    _variant(
        name="ltx-long-late-start",
        build=partial(_build, "LTXI2VLongMultiPromptPipeline"),
        calls=JOINED,
        num_steps=12,
        **_both(_long_arguments, skip_steps_sigma_threshold=0.8),
    ),
    _variant(
        name="ltx-long-ancestral-unguided",
        build=partial(_build, "LTXI2VLongMultiPromptPipeline", "LTXEulerAncestralRFScheduler"),
        calls=ALONE,
        num_steps=16,
        **_both(_long_arguments, guidance_scale=1.0),
    ),
    _variant(
        name="ltx-modular",
        build=partial(_build_modular, "ClassifierFreeGuidance"),
        calls=GUIDED,
        output=_itself,
        **_both(_modular_arguments),
    ),
    _variant(
        name="ltx-modular-skip-layer",
        build=partial(_build_modular, "SkipLayerGuidance", **SKIP_LAYER),
        expected_steps=(GUIDED,) * 3 + ((*GUIDED, ("cond_skip",)),) * 3 + (GUIDED,) * 2,
        output=_itself,
        **_both(_modular_arguments, num_inference_steps=LONG),
    ),
    _variant(
        name="ltx-modular-i2v",
        build=partial(_build_modular, "ClassifierFreeGuidance"),
        calls=GUIDED,
        output=_itself,
        **_both(_modular_arguments, image=True),
    ),
)
