"""The nodes, in ComfyUI's own form."""

from __future__ import annotations

import math
from typing import Any

from . import attachment, report
from .settings import DEFAULT_QUALITY, LEFT_OUT, POLICIES, QUALITY, Settings

CATEGORY = "model/acceleration"


class MixCache:
    """A model that computes less while it is sampled."""

    CATEGORY = CATEGORY
    DESCRIPTION = (
        "Makes sampling of video models faster: at steps that change little the model is not asked. What is left out "
        "is predicted and, under euler, corrected at the next computed step. Put it between the model and the sampler."
    )
    RETURN_TYPES = ("MODEL",)
    OUTPUT_TOOLTIPS = ("The model with the cache. The model that went in is left as it was.",)
    FUNCTION = "attach"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802
        percent = {"min": 0.0, "max": 1.0, "step": 0.01}
        return {
            "required": {
                "model": ("MODEL", {"tooltip": "A video model; after LoRAs and other patches."}),
                "quality": (
                    list(QUALITY),
                    {
                        "default": DEFAULT_QUALITY,
                        "tooltip": "How near to the plain clip it must stay. Less near is faster; how much depends on "
                        "model and steps, and MixCache Report shows it.",
                    },
                ),
            },
            "optional": {
                "speedup": (
                    "FLOAT",
                    {
                        "default": 0.0,
                        "min": 0.0,
                        "max": 10.0,
                        "step": 0.1,
                        "tooltip": "How many times faster the sampling is to be, such as 2; 0 leaves it to the "
                        "quality. What so many steps do not allow is an error. Later samplings keep to it better: "
                        "they begin with what earlier ones of the model showed, so that the clip of a seed may change "
                        "a little when it is made again. That of a quality does not.",
                    },
                ),
                "start_percent": (
                    "FLOAT",
                    percent | {"default": 0.0, "tooltip": "Steps before this share of the sampling are computed."},
                ),
                "end_percent": (
                    "FLOAT",
                    percent | {"default": 1.0, "tooltip": "Steps after this share of the sampling are computed."},
                ),
                "policy": (
                    list(POLICIES),
                    {
                        "default": "hold",
                        "advanced": True,
                        "tooltip": "hold repeats outputs in short runs; hindsight extrapolates them; every_nth "
                        "computes one step in so many.",
                    },
                ),
                "setting": (
                    "FLOAT",
                    {
                        "default": 0.0,
                        "min": 0.0,
                        "max": 100.0,
                        "step": 0.001,
                        "round": 0.0001,
                        "advanced": True,
                        "tooltip": "Of the policy. hold: the error up to which it repeats, such as 0.4; hindsight: "
                        "the error it allows, such as 0.01; every_nth: its period, such as 2. 0 leaves it to the "
                        "quality.",
                    },
                ),
                "leave_out": (
                    list(LEFT_OUT),
                    {
                        "default": "whole steps",
                        "advanced": True,
                        "tooltip": "A step without the negative prompt costs half of one; it is nothing to a model "
                        "that is guided without one. Middle blocks are all but the first and the last one; what they "
                        "add is kept in the model's memory, for each prompt.",
                    },
                ),
                "correct": (
                    "BOOLEAN",
                    {
                        "default": True,
                        "advanced": True,
                        "tooltip": "Takes cached steps again when the next computed one is known, under the samplers "
                        "where that was measured to be better.",
                    },
                ),
            },
        }

    @classmethod
    def VALIDATE_INPUTS(cls, start_percent: float = 0.0, end_percent: float = 1.0) -> bool | str:  # noqa: N802
        """Says before anything runs what `Settings` says too; None comes where an input is a link."""
        try:
            Settings(
                start_percent=0.0 if start_percent is None else start_percent,
                end_percent=1.0 if end_percent is None else end_percent,
            )
        except ValueError as error:
            return str(error)
        return True

    def attach(self, model: Any, quality: str, **settings: Any) -> tuple[Any]:
        return (attachment.attach(model, Settings(quality=quality, **settings)),)


class MixCacheReport:
    """What the cache did while latents were sampled."""

    CATEGORY = CATEGORY
    DESCRIPTION = "Shows what MixCache did at each step of a sampling, and why not where it did nothing."
    RETURN_TYPES = ("IMAGE", "STRING")
    RETURN_NAMES = ("picture", "text")
    FUNCTION = "show"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802
        return {
            "required": {
                "model": ("MODEL", {"tooltip": "The model that comes out of MixCache."}),
                "samples": ("LATENT", {"tooltip": "What the sampler made with it."}),
            }
        }

    def show(self, model: Any, samples: dict[str, Any]) -> dict[str, Any]:
        found = attachment.attachment_of(model)
        run = None if found is None else found.run_of(samples["samples"])
        if run is None:
            raise ValueError(
                "MixCache Report: nothing was sampled with this model; connect the model that comes out of MixCache, "
                "and the latents that a sampler made with it"
            )
        words = report.text(run)
        return {"ui": {"text": [words]}, "result": (report.picture(run), words)}


class MixCacheCompare:
    """How far a cached clip is from the plain one."""

    CATEGORY = CATEGORY
    DESCRIPTION = "Two clips of the same seed, plain and cached: side by side with their difference, and the PSNR."
    RETURN_TYPES = ("IMAGE", "FLOAT", "STRING")
    RETURN_NAMES = ("pictures", "psnr", "text")
    FUNCTION = "compare"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802
        return {
            "required": {
                "plain": ("IMAGE", {"tooltip": "The clip without MixCache."}),
                "cached": ("IMAGE", {"tooltip": "The clip of the same seed with it."}),
            },
            "optional": {
                "gain": (
                    "FLOAT",
                    {"default": 8.0, "min": 1.0, "max": 100.0, "tooltip": "By which the difference is multiplied."},
                )
            },
        }

    def compare(self, plain: Any, cached: Any, gain: float = 8.0) -> dict[str, Any]:
        import torch

        if plain.shape != cached.shape:
            raise ValueError(
                f"MixCache Compare: the clips differ in shape, {tuple(plain.shape)} and {tuple(cached.shape)}; sample "
                "both with the same size and number of frames"
            )
        cached = cached.to(plain.device)
        difference = plain.double() - cached.double()
        error = float(difference.square().mean())
        psnr = -10 * math.log10(error) if error else math.inf
        words = f"{psnr:.2f} dB" if error else "the same to the bit"
        pictures = torch.cat([plain, cached, (gain * difference.abs()).clamp(max=1).to(plain.dtype)], dim=2)
        return {"ui": {"text": [words]}, "result": (pictures, psnr, words)}


NODE_CLASS_MAPPINGS = {"MixCache": MixCache, "MixCacheReport": MixCacheReport, "MixCacheCompare": MixCacheCompare}
NODE_DISPLAY_NAME_MAPPINGS = {
    "MixCache": "MixCache",
    "MixCacheReport": "MixCache Report",
    "MixCacheCompare": "MixCache Compare",
}
