"""Nodes for the tests: the project's trained models, on the CPU, in ComfyUI."""

from __future__ import annotations

import functools
from typing import Any

from .weights import patcher

SHIFT = 20.0
"""Of the noise levels, as the model was trained for."""


@functools.cache
def pipeline() -> Any:
    from mixcache import zoo

    return zoo.load("shapes-wan")


@functools.cache
def model() -> Any:
    return patcher(pipeline().transformer, SHIFT)


class TinyWan:
    """`shapes-wan`: model, prompts, empty latents."""

    CATEGORY, FUNCTION = "testing", "load"
    RETURN_TYPES = ("MODEL", "CONDITIONING", "CONDITIONING", "LATENT")
    RETURN_NAMES = ("model", "positive", "negative", "latents")

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802
        return {
            "required": {
                "prompt": ("STRING", {"default": "a large red circle moving left on a plain white background"}),
                "negative": ("STRING", {"default": ""}),
                "side": ("INT", {"default": 96, "min": 16, "max": 512, "step": 16}),
                "frames": ("INT", {"default": 17, "min": 1, "max": 81, "step": 4}),
                "negative_tokens": ("INT", {"default": 0, "min": 0, "max": 64}),
                "batch": ("INT", {"default": 1, "min": 1, "max": 4}),
            }
        }

    def load(
        self, prompt: str, negative: str, side: int, frames: int, negative_tokens: int = 0, batch: int = 1
    ) -> tuple[Any, ...]:
        import torch

        from mixcache.zoo.world import MAX_SEQUENCE_LENGTH

        pipe = pipeline()
        with torch.no_grad():
            positive, other = pipe.encode_prompt(prompt, negative, max_sequence_length=MAX_SEQUENCE_LENGTH)
        if negative_tokens:
            other = other[:, :negative_tokens]
        latents = torch.zeros(
            batch,
            pipe.transformer.config.in_channels,
            1 + (frames - 1) // pipe.vae_scale_factor_temporal,
            side // pipe.vae_scale_factor_spatial,
            side // pipe.vae_scale_factor_spatial,
        )
        return model(), [[positive, {}]], [[other, {}]], {"samples": latents}


class TinyDecode:
    """Latents of `shapes-wan` as frames, one after the other."""

    CATEGORY, FUNCTION, RETURN_TYPES = "testing", "decode", ("IMAGE",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802
        return {"required": {"samples": ("LATENT",)}}

    def decode(self, samples: dict[str, Any]) -> tuple[Any]:
        import torch

        vae, latents = pipeline().vae, samples["samples"].float()
        shape = (1, -1, 1, 1, 1)
        mean, std = (torch.tensor(getattr(vae.config, name)).view(shape) for name in ("latents_mean", "latents_std"))
        with torch.no_grad():
            clip = vae.decode(latents * std + mean).sample
        return ((clip / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 4, 1).flatten(0, 1),)


class TinyUnheard:
    """A model and a sampler that no table has."""

    CATEGORY, FUNCTION, RETURN_TYPES = "testing", "make", ("MODEL", "SAMPLER")

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802
        return {"required": {}}

    def make(self) -> tuple[Any, Any]:
        import comfy.model_patcher
        import comfy.samplers
        import torch

        class Unheard(torch.nn.Module): ...

        def sample_unheard(ask: Any, x: Any, sigmas: Any, **more: Any) -> Any:
            return ask(x, sigmas[:1], **more["extra_args"])

        cpu = torch.device("cpu")
        patcher = comfy.model_patcher.ModelPatcher(Unheard(), load_device=cpu, offload_device=cpu)
        return patcher, comfy.samplers.KSAMPLER(sample_unheard)


class TinyState:
    """What is alive: wrappers on the model, and objects and tensors of the cache in the process."""

    CATEGORY, FUNCTION, RETURN_TYPES, OUTPUT_NODE = "testing", "look", (), True

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802
        return {"required": {"after": ("*",), "when": ("INT", {"default": 0})}}

    @classmethod
    def VALIDATE_INPUTS(cls, input_types: Any) -> bool:  # noqa: N802
        return True

    @classmethod
    def IS_CHANGED(cls, **inputs: Any) -> float:  # noqa: N802
        return float("nan")

    def look(self, after: Any, when: int) -> dict[str, Any]:
        import gc

        gc.collect()
        modules = [(type(thing).__name__, type(thing).__module__) for thing in gc.get_objects()]
        names = [name for name, module in modules if isinstance(module, str) and "mixcache" in module]
        options = model().model_options["transformer_options"]
        state = {
            "engines": names.count("Engine"),
            "samplings": names.count("Sampling"),
            "tensors": sum(issubclass(type(thing), _tensor()) for thing in gc.get_objects()),
            "options": sorted(map(str, options)),
            "wrappers": sorted(model().wrappers),
        }
        return {"ui": {"state": [state]}}


def _tensor() -> type:
    import torch

    return torch.Tensor


NODE_CLASS_MAPPINGS = {kind.__name__: kind for kind in (TinyWan, TinyDecode, TinyUnheard, TinyState)}
NODE_DISPLAY_NAME_MAPPINGS: dict[str, str] = {}
