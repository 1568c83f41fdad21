"""Cosmos 1, 2, 2.5 and 3."""

from __future__ import annotations

from functools import partial
from types import SimpleNamespace
from typing import Any

from conformance.tiny_qwen import build_chat_tokenizer, build_qwen, build_wan_vae, draw_image, redraw_weights
from conformance.variant import SHORT, Variant

PROMPT = "a small red circle moving left"
OTHER_PROMPT = "a big blue square moving right"
NEGATIVE_PROMPT = "a green triangle"
TEXT_WIDTH = 16


class PassingSafetyChecker:
    """Stands in for the guardrail of Cosmos, which is a package of its own: it lets everything pass."""

    def to(self, device: Any) -> PassingSafetyChecker:
        return self

    def check_text_safety(self, prompt: str) -> bool:
        return True

    def check_video_safety(self, frames: Any) -> Any:
        return frames


def provide_resize(module: Any) -> None:
    """Cosmos resizes its padding mask, to the nearest pixel, by torchvision: torch does it where that is missing."""
    from torch.nn import functional

    if not hasattr(module, "transforms"):
        resize = SimpleNamespace(resize=lambda mask, size, interpolation: functional.interpolate(mask, size))
        module.transforms = SimpleNamespace(functional=resize, InterpolationMode=SimpleNamespace(NEAREST="nearest"))


def build_transformer(in_channels: int, **settings: Any) -> Any:
    from diffusers import CosmosTransformer3DModel
    from diffusers.models.transformers import transformer_cosmos

    provide_resize(transformer_cosmos)
    return redraw_weights(
        CosmosTransformer3DModel(
            in_channels=in_channels,
            out_channels=4,
            num_attention_heads=2,
            attention_head_dim=12,
            num_layers=4,
            mlp_ratio=2,
            text_embed_dim=TEXT_WIDTH,
            adaln_lora_dim=4,
            max_size=(4, 32, 32),
            **settings,
        )
    )


def build_t5_parts() -> dict[str, Any]:
    from transformers import T5Config, T5EncoderModel

    from training.tokenizer import build_tokenizer

    tokenizer = build_tokenizer()
    config = T5Config(vocab_size=len(tokenizer), d_model=TEXT_WIDTH, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    return {"tokenizer": tokenizer, "text_encoder": T5EncoderModel(config).eval()}


def build_cosmos1(pipeline_class: str, in_channels: int) -> Any:
    import diffusers
    import torch

    torch.manual_seed(0)
    vae = diffusers.AutoencoderKLCosmos(
        latent_channels=4,
        encoder_block_out_channels=(8, 8, 8, 8),
        decode_block_out_channels=(8, 8, 8, 8),
        attention_resolutions=(8,),
        resolution=64,
        num_layers=1,
        scaling_factor=1.0,
        spatial_compression_ratio=4,
        temporal_compression_ratio=4,
    )
    pipeline = getattr(diffusers, pipeline_class)(
        **build_t5_parts(),
        transformer=build_transformer(in_channels),
        vae=vae.eval(),
        scheduler=diffusers.EDMEulerScheduler(
            sigma_max=80.0, sigma_data=0.5, prediction_type="epsilon", final_sigmas_type="sigma_min"
        ),
        safety_checker=PassingSafetyChecker(),
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def build_cosmos2(pipeline_class: str, in_channels: int) -> Any:
    import diffusers
    import torch

    torch.manual_seed(0)
    pipeline = getattr(diffusers, pipeline_class)(
        **build_t5_parts(),
        transformer=build_transformer(in_channels),
        vae=build_wan_vae(),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(use_karras_sigmas=True),
        safety_checker=PassingSafetyChecker(),
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def build_cosmos25_parts() -> dict[str, Any]:
    """Components which Predict and Transfer have in common; the encoder's two layers are joined channel-wise."""
    from diffusers import UniPCMultistepScheduler

    tokenizer = build_chat_tokenizer()
    return {
        "tokenizer": tokenizer,
        "text_encoder": build_qwen(len(tokenizer), num_layers=2),
        "vae": build_wan_vae(),
        "scheduler": UniPCMultistepScheduler(
            prediction_type="flow_prediction",
            use_karras_sigmas=True,
            use_flow_sigmas=True,
            sigma_max=200.0,
            sigma_min=0.01,
        ),
        "safety_checker": PassingSafetyChecker(),
    }


PROJECTION = {
    "use_crossattn_projection": True,
    "crossattn_proj_in_channels": 32,
    "encoder_hidden_states_channels": TEXT_WIDTH,
}


def build_predict() -> Any:
    import torch
    from diffusers import Cosmos2_5_PredictBasePipeline

    torch.manual_seed(0)
    transformer = build_transformer(5, extra_pos_embed_type=None, **PROJECTION)
    pipeline = Cosmos2_5_PredictBasePipeline(**build_cosmos25_parts(), transformer=transformer)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def build_transfer() -> Any:
    """Residuals of the control network enter blocks 0 and 2 of the four; the image context is empty, as released."""
    import torch
    from diffusers import Cosmos2_5_TransferPipeline, CosmosControlNetModel
    from diffusers.models.controlnets import controlnet_cosmos

    provide_resize(controlnet_cosmos)
    torch.manual_seed(0)
    context = {"img_context_dim_in": 8, "img_context_dim_out": 24}
    transformer = build_transformer(
        5, extra_pos_embed_type=None, controlnet_block_every_n=2, img_context_num_tokens=4, **context, **PROJECTION
    )
    controlnet = CosmosControlNetModel(
        n_controlnet_blocks=2,
        in_channels=6,
        latent_channels=6,
        model_channels=24,
        num_attention_heads=2,
        attention_head_dim=12,
        mlp_ratio=2,
        text_embed_dim=TEXT_WIDTH,
        adaln_lora_dim=4,
        max_size=(4, 32, 32),
        **context,
        **PROJECTION,
    )
    pipeline = Cosmos2_5_TransferPipeline(
        **build_cosmos25_parts(), transformer=transformer, controlnet=redraw_weights(controlnet)
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def build_omni(sound: bool = False, action: bool = False) -> Any:
    import torch
    from diffusers import (
        Cosmos3AVAEAudioTokenizer,
        Cosmos3OmniPipeline,
        Cosmos3OmniTransformer,
        UniPCMultistepScheduler,
    )

    torch.manual_seed(0)
    tokenizer = build_chat_tokenizer()
    transformer = Cosmos3OmniTransformer(
        head_dim=12,
        hidden_size=24,
        intermediate_size=32,
        latent_channel=4,
        latent_patch_size=2,
        patch_latent_dim=16,
        num_attention_heads=2,
        num_key_value_heads=1,
        num_hidden_layers=4,
        rope_axes_dim=[2, 2, 2],
        vocab_size=len(tokenizer),
        action_gen=action,
        action_dim=4 if action else None,
        sound_gen=sound,
        sound_dim=4 if sound else None,
    )
    sound_tokenizer = None
    if sound:
        sound_tokenizer = Cosmos3AVAEAudioTokenizer(
            sampling_rate=64,
            vocoder_input_dim=4,
            dec_dim=4,
            dec_c_mults=(1, 2),
            dec_strides=(2, 2),
            encoder_enabled=False,
        ).eval()
    pipeline = Cosmos3OmniPipeline(
        transformer=redraw_weights(transformer),
        text_tokenizer=tokenizer,
        vae=build_wan_vae(),
        scheduler=UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0),
        sound_tokenizer=sound_tokenizer,
        enable_safety_checker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def make_arguments(prompt: str, size: int, **settings: Any) -> dict[str, Any]:
    """What every pipeline of the family takes."""
    arguments = {
        "prompt": prompt,
        "negative_prompt": NEGATIVE_PROMPT,
        "height": size,
        "width": size,
        "num_inference_steps": SHORT,
        "guidance_scale": 4.0,
        "output_type": "latent",
    }
    return arguments | settings


def with_text(prompt: str, size: int, **settings: Any) -> dict[str, Any]:
    return make_arguments(prompt, size, max_sequence_length=32, **settings)


def with_image(prompt: str, size: int, **settings: Any) -> dict[str, Any]:
    return with_text(prompt, size, image=draw_image(size, size), **settings)


def with_video(prompt: str, size: int, **settings: Any) -> dict[str, Any]:
    return with_text(prompt, size, video=[draw_image(size + index, size) for index in range(5)], **settings)


def with_controls(prompt: str, size: int, num_control_frames: int, **settings: Any) -> dict[str, Any]:
    controls = [draw_image(seed, size) for seed in range(num_control_frames)]
    return with_text(prompt, size, controls=controls, **settings)


def with_frames(prompt: str, size: int, **settings: Any) -> dict[str, Any]:
    """Cosmos 3 from text, or from the frames named by `settings`."""
    return make_arguments(prompt, size, num_frames=5, enable_safety_check=False, **settings)


def with_action(prompt: str, seed: int, mode: str, **settings: Any) -> dict[str, Any]:
    """Cosmos 3 with a chunk of actions: the canvas follows from the image."""
    import torch
    from diffusers.pipelines.cosmos.pipeline_cosmos3_omni import CosmosActionCondition

    condition: dict[str, Any] = {"mode": mode, "chunk_size": 4, "domain_name": "pusht", "resolution_tier": 256}
    if mode == "forward_dynamics":
        condition["raw_actions"] = torch.randn(4, 2, generator=torch.Generator().manual_seed(seed))
    if mode == "inverse_dynamics":
        condition["video"] = [draw_image(seed + index) for index in range(5)]
    else:
        condition["image"] = draw_image(seed)
    arguments = with_frames(prompt, 32, action=CosmosActionCondition(**condition), **settings)
    for name in ("height", "width", "num_frames"):
        del arguments[name]
    return arguments


def images(output: Any) -> Any:
    return output.images


def video(output: Any) -> Any:
    return output.video


def video_and_sound(output: Any) -> Any:
    return output.video, output.sound


def video_and_action(output: Any) -> Any:
    return output.video, output.action[0]


TEXT2WORLD = partial(build_cosmos1, "CosmosTextToWorldPipeline", 4)
VIDEO2WORLD = partial(build_cosmos1, "CosmosVideoToWorldPipeline", 5)
ONE_BRANCH = (("cond",),)

_variant = partial(Variant, num_steps=SHORT)

VARIANTS: tuple[Variant, ...] = (
    _variant(
        name="cosmos-text2world",
        build=TEXT2WORLD,
        arguments=partial(with_text, PROMPT, 32, num_frames=9),
        other_arguments=partial(with_text, OTHER_PROMPT, 16, num_frames=5),
    ),
    _variant(
        name="cosmos-text2world-no-guidance",
        build=TEXT2WORLD,
        arguments=partial(with_text, PROMPT, 32, num_frames=9, guidance_scale=1.0),
        other_arguments=partial(with_text, OTHER_PROMPT, 16, num_frames=5, guidance_scale=1.0),
        calls=ONE_BRANCH,
    ),
    # the two branches get different latents: each has noise of its own on the given frame
    _variant(
        name="cosmos-video2world",
        build=VIDEO2WORLD,
        arguments=partial(with_image, PROMPT, 32, num_frames=9),
        other_arguments=partial(with_image, OTHER_PROMPT, 16, num_frames=5),
    ),
    # here the unconditional branch is given the frame too; without this setting only the conditional one is
    _variant(
        name="cosmos-video2world-frames-guidance",
        build=VIDEO2WORLD,
        arguments=partial(with_image, PROMPT, 32, num_frames=9, input_frames_guidance=True),
        other_arguments=partial(with_image, OTHER_PROMPT, 16, num_frames=5, input_frames_guidance=True),
    ),
    _variant(
        name="cosmos2-video2world",
        build=partial(build_cosmos2, "Cosmos2VideoToWorldPipeline", 5),
        arguments=partial(with_image, PROMPT, 32, num_frames=9),
        other_arguments=partial(with_image, OTHER_PROMPT, 16, num_frames=5),
    ),
    _variant(
        name="cosmos2-text2image",
        build=partial(build_cosmos2, "Cosmos2TextToImagePipeline", 4),
        arguments=partial(with_text, PROMPT, 32),
        other_arguments=partial(with_text, OTHER_PROMPT, 16),
        output=images,
    ),
    _variant(
        name="cosmos25-text2world",
        build=build_predict,
        arguments=partial(with_text, PROMPT, 32, num_frames=9),
        other_arguments=partial(with_text, OTHER_PROMPT, 16, num_frames=5),
    ),
    _variant(
        name="cosmos25-text2world-no-guidance",
        build=build_predict,
        arguments=partial(with_text, PROMPT, 32, num_frames=9, guidance_scale=1.0),
        other_arguments=partial(with_text, OTHER_PROMPT, 16, num_frames=5, guidance_scale=1.0),
        calls=ONE_BRANCH,
    ),
    _variant(
        name="cosmos25-video2world",
        build=build_predict,
        arguments=partial(with_video, PROMPT, 32, num_frames=13),
        other_arguments=partial(with_video, OTHER_PROMPT, 16, num_frames=5, num_latent_conditional_frames=1),
    ),
    # one timestep for the batch instead of one a frame
    _variant(
        name="cosmos25-video2world-scalar-timestep",
        build=build_predict,
        arguments=partial(with_video, PROMPT, 32, num_frames=13, conditional_frame_timestep=-1.0),
        other_arguments=partial(
            with_video, OTHER_PROMPT, 16, num_frames=5, num_latent_conditional_frames=1, conditional_frame_timestep=-1.0
        ),
    ),
    _variant(
        name="cosmos25-transfer",
        build=build_transfer,
        arguments=partial(with_controls, PROMPT, 32, 9, num_frames_per_chunk=9),
        other_arguments=partial(with_controls, OTHER_PROMPT, 16, 5, num_frames_per_chunk=5),
    ),
    # two chunks, each a loop of its own; the second begins with the last frame of the first
    _variant(
        name="cosmos25-transfer-two-chunks",
        build=build_transfer,
        arguments=partial(with_controls, PROMPT, 32, 9, num_frames_per_chunk=5),
        other_arguments=partial(with_controls, OTHER_PROMPT, 16, 9, num_frames_per_chunk=5),
        num_steps=2 * SHORT,
    ),
    _variant(
        name="cosmos3-text2video",
        build=build_omni,
        arguments=partial(with_frames, PROMPT, 32),
        other_arguments=partial(with_frames, OTHER_PROMPT, 16),
        output=video,
    ),
    _variant(
        name="cosmos3-text2video-no-guidance",
        build=build_omni,
        arguments=partial(with_frames, PROMPT, 32, guidance_scale=1.0),
        other_arguments=partial(with_frames, OTHER_PROMPT, 16, guidance_scale=1.0),
        calls=ONE_BRANCH,
        output=video,
    ),
    _variant(
        name="cosmos3-image2video",
        build=build_omni,
        arguments=lambda: with_frames(PROMPT, 32, image=draw_image(0)),
        other_arguments=lambda: with_frames(OTHER_PROMPT, 16, image=draw_image(1)),
        output=video,
    ),
    _variant(
        name="cosmos3-sound",
        build=partial(build_omni, sound=True),
        arguments=partial(with_frames, PROMPT, 32, enable_sound=True),
        other_arguments=partial(with_frames, OTHER_PROMPT, 16, enable_sound=True),
        output=video_and_sound,
    ),
    # actions and video are denoised together
    _variant(
        name="cosmos3-policy",
        build=partial(build_omni, action=True),
        arguments=partial(with_action, PROMPT, 0, "policy"),
        other_arguments=partial(with_action, OTHER_PROMPT, 1, "policy"),
        output=video_and_action,
    ),
    # actions are given and all their tokens are clean
    _variant(
        name="cosmos3-forward-dynamics",
        build=partial(build_omni, action=True),
        arguments=partial(with_action, PROMPT, 0, "forward_dynamics"),
        other_arguments=partial(with_action, OTHER_PROMPT, 1, "forward_dynamics"),
        output=video,
    ),
    # the whole video is given: what the transformer returns for it is zero and only the actions are denoised
    _variant(
        name="cosmos3-inverse-dynamics",
        build=partial(build_omni, action=True),
        arguments=partial(with_action, PROMPT, 0, "inverse_dynamics"),
        other_arguments=partial(with_action, OTHER_PROMPT, 10, "inverse_dynamics"),
        output=video_and_action,
    ),
)
