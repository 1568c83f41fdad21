"""Writes the example workflows beside this file, in the form that ComfyUI's page saves and loads.

    build/comfyui/venv/bin/python comfyui/workflows/make.py

What a node has for inputs, and in which order, is asked of the real server.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "tests"))
from browser import Server  # noqa: E402
from forms import Sheet, saved  # noqa: E402

PROMPT = "A cat walks on the grass, realistic"
NEGATIVE = "blurry, overexposed, static, worst quality"


def _decoded(sheet: Sheet, samples: list[Any], vae: list[Any], fps: float, column: int) -> None:
    sheet.add("frames", "VAEDecode", column, samples=samples, vae=vae)
    sheet.add("video", "CreateVideo", column, images=["frames", 0], fps=fps)
    sheet.add("saved", "SaveVideo", column + 1, video=["video", 0], filename_prefix="video/mixcache")


def _reported(sheet: Sheet, name: str, model: list[Any], samples: list[Any], column: int) -> None:
    sheet.add(f"{name} report", "MixCacheReport", column, model=model, samples=samples)
    sheet.add(f"{name} picture", "PreviewImage", column, images=[f"{name} report", 0])


def wan21() -> Sheet:
    sheet = Sheet()
    sheet.add("unet", "UNETLoader", 0, unet_name="wan2.1_t2v_1.3B_fp16.safetensors", weight_dtype="default")
    sheet.add("clip", "CLIPLoader", 0, clip_name="umt5_xxl_fp8_e4m3fn_scaled.safetensors", type="wan")
    sheet.add("vae", "VAELoader", 0, vae_name="wan_2.1_vae.safetensors")
    sheet.add("shift", "ModelSamplingSD3", 1, model=["unet", 0], shift=8.0)
    sheet.add("positive", "CLIPTextEncode", 1, clip=["clip", 0], text=PROMPT)
    sheet.add("negative", "CLIPTextEncode", 1, clip=["clip", 0], text=NEGATIVE)
    sheet.add("latents", "EmptyHunyuanLatentVideo", 1, width=832, height=480, length=33, batch_size=1)
    sheet.add("cache", "MixCache", 2, model=["shift", 0], quality="balanced")
    sheet.add("sampler", "KSampler", 3, model=["cache", 0], **_conditions(), steps=30, cfg=6.0, seed=0)
    _reported(sheet, "cache", ["cache", 0], ["sampler", 0], 4)
    _decoded(sheet, ["sampler", 0], ["vae", 0], 16.0, 4)
    return sheet


def _conditions() -> dict[str, Any]:
    return {
        "positive": ["positive", 0],
        "negative": ["negative", 0],
        "latent_image": ["latents", 0],
        "sampler_name": "euler",
        "scheduler": "simple",
    }


def wan22() -> Sheet:
    """Two experts, each with a node of its own: the steps of each are its own."""
    sheet = Sheet()
    for name in ("high", "low"):
        file = f"wan2.2_t2v_{name}_noise_14B_fp8_scaled.safetensors"
        sheet.add(f"{name} unet", "UNETLoader", 0, unet_name=file, weight_dtype="default")
        sheet.add(f"{name} shift", "ModelSamplingSD3", 1, model=[f"{name} unet", 0], shift=8.0)
        sheet.add(f"{name} cache", "MixCache", 2, model=[f"{name} shift", 0], quality="balanced")
    sheet.add("clip", "CLIPLoader", 0, clip_name="umt5_xxl_fp8_e4m3fn_scaled.safetensors", type="wan")
    sheet.add("vae", "VAELoader", 0, vae_name="wan_2.1_vae.safetensors")
    sheet.add("positive", "CLIPTextEncode", 1, clip=["clip", 0], text=PROMPT)
    sheet.add("negative", "CLIPTextEncode", 1, clip=["clip", 0], text=NEGATIVE)
    sheet.add("latents", "EmptyHunyuanLatentVideo", 2, width=832, height=480, length=81, batch_size=1)
    more = {"noise_seed": 0, "steps": 30, "cfg": 3.5}
    first = {"add_noise": "enable", "start_at_step": 0, "end_at_step": 15, "return_with_leftover_noise": "enable"}
    last = {"add_noise": "disable", "start_at_step": 15, "end_at_step": 10000, "return_with_leftover_noise": "disable"}
    sheet.add("high sampler", "KSamplerAdvanced", 3, model=["high cache", 0], **_conditions(), **more, **first)
    conditions = _conditions() | {"latent_image": ["high sampler", 0]}
    sheet.add("low sampler", "KSamplerAdvanced", 3, model=["low cache", 0], **conditions, **more, **last)
    _reported(sheet, "high", ["high cache", 0], ["high sampler", 0], 4)
    _reported(sheet, "low", ["low cache", 0], ["low sampler", 0], 4)
    _decoded(sheet, ["low sampler", 0], ["vae", 0], 16.0, 5)
    return sheet


def hunyuan() -> Sheet:
    sheet = Sheet()
    file = "hunyuan_video_t2v_720p_bf16.safetensors"
    sheet.add("unet", "UNETLoader", 0, unet_name=file, weight_dtype="default")
    sheet.add(
        "clip",
        "DualCLIPLoader",
        0,
        clip_name1="clip_l.safetensors",
        clip_name2="llava_llama3_fp8_scaled.safetensors",
        type="hunyuan_video",
    )
    sheet.add("vae", "VAELoader", 0, vae_name="hunyuan_video_vae_bf16.safetensors")
    sheet.add("shift", "ModelSamplingSD3", 1, model=["unet", 0], shift=7.0)
    sheet.add("positive", "CLIPTextEncode", 1, clip=["clip", 0], text=PROMPT)
    sheet.add("guidance", "FluxGuidance", 1, conditioning=["positive", 0], guidance=6.0)
    sheet.add("latents", "EmptyHunyuanLatentVideo", 1, width=848, height=480, length=73, batch_size=1)
    sheet.add("cache", "MixCache", 2, model=["shift", 0], quality="balanced")
    sheet.add("guider", "BasicGuider", 2, model=["cache", 0], conditioning=["guidance", 0])
    sheet.add("noise", "RandomNoise", 2, noise_seed=0)
    sheet.add("select", "KSamplerSelect", 2, sampler_name="euler")
    sheet.add("sigmas", "BasicScheduler", 2, model=["shift", 0], scheduler="simple", steps=30, denoise=1.0)
    sheet.add(
        "sampler",
        "SamplerCustomAdvanced",
        3,
        noise=["noise", 0],
        guider=["guider", 0],
        sampler=["select", 0],
        sigmas=["sigmas", 0],
        latent_image=["latents", 0],
    )
    _reported(sheet, "cache", ["cache", 0], ["sampler", 0], 4)
    _decoded(sheet, ["sampler", 0], ["vae", 0], 24.0, 4)
    return sheet


def ltx() -> Sheet:
    sheet = Sheet()
    sheet.add("checkpoint", "CheckpointLoaderSimple", 0, ckpt_name="ltx-video-2b-v0.9.5.safetensors")
    sheet.add("clip", "CLIPLoader", 0, clip_name="t5xxl_fp16.safetensors", type="ltxv")
    sheet.add("positive", "CLIPTextEncode", 1, clip=["clip", 0], text=PROMPT)
    sheet.add("negative", "CLIPTextEncode", 1, clip=["clip", 0], text=NEGATIVE)
    sheet.add("latents", "EmptyLTXVLatentVideo", 1, width=768, height=512, length=97, batch_size=1)
    sheet.add(
        "conditions",
        "LTXVConditioning",
        2,
        positive=["positive", 0],
        negative=["negative", 0],
        frame_rate=25.0,
    )
    sheet.add("cache", "MixCache", 2, model=["checkpoint", 0], quality="balanced")
    sheet.add("select", "KSamplerSelect", 2, sampler_name="euler")
    shifts = {"max_shift": 2.05, "base_shift": 0.95, "stretch": True, "terminal": 0.1}
    sheet.add("sigmas", "LTXVScheduler", 2, steps=30, **shifts, latent=["latents", 0])
    sheet.add(
        "sampler",
        "SamplerCustom",
        3,
        model=["cache", 0],
        add_noise=True,
        noise_seed=0,
        cfg=3.0,
        positive=["conditions", 0],
        negative=["conditions", 1],
        sampler=["select", 0],
        sigmas=["sigmas", 0],
        latent_image=["latents", 0],
    )
    _reported(sheet, "cache", ["cache", 0], ["sampler", 0], 4)
    _decoded(sheet, ["sampler", 0], ["checkpoint", 2], 25.0, 4)
    return sheet


def tiny() -> Sheet:
    """The tests' own model: plain and cached, with report and comparison."""
    sheet = Sheet()
    caption = "a large red circle moving left on a plain white background"
    given = {"prompt": caption, "negative": "", "side": 96, "frames": 17, "negative_tokens": 0, "batch": 1}
    sheet.add("model", "TinyWan", 0, **given)
    sheet.add("cache", "MixCache", 1, model=["model", 0], quality="balanced")
    for name, model in (("plain", "model"), ("cached", "cache")):
        conditions = {
            "positive": ["model", 1],
            "negative": ["model", 2],
            "latent_image": ["model", 3],
            "sampler_name": "euler",
            "scheduler": "simple",
        }
        sheet.add(f"{name} sampler", "KSampler", 2, model=[model, 0], **conditions, seed=3, steps=20, cfg=5.0)
        sheet.add(f"{name} frames", "TinyDecode", 3, samples=[f"{name} sampler", 0])
    _reported(sheet, "cache", ["cache", 0], ["cached sampler", 0], 3)
    sheet.add("compare", "MixCacheCompare", 4, plain=["plain frames", 0], cached=["cached frames", 0], gain=8.0)
    sheet.add("pictures", "PreviewImage", 4, images=["compare", 0])
    return sheet


SHEETS = {"wan21": wan21, "wan22-two-experts": wan22, "hunyuan-video": hunyuan, "ltx-video": ltx, "tiny": tiny}


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder, Server(Path(folder) / "comfyui") as server:
        kinds = server.get("/object_info")
    for name, sheet in SHEETS.items():
        path = HERE / f"{name}.json"
        path.write_text(json.dumps(saved(sheet(), kinds), indent=1) + "\n")
        print("wrote", path)
