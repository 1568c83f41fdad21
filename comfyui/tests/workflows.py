"""Workflows in the API's form, built of the tests' own nodes and ComfyUI's."""

from __future__ import annotations

from typing import Any

CAPTION = "a large red circle moving left on a plain white background"
Workflow = dict[str, Any]


def node(kind: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": kind, "inputs": inputs}


def tiny(**more: Any) -> dict[str, Any]:
    """The trained model at a quarter of its size, which is quick."""
    given = {"prompt": CAPTION, "negative": "", "side": 48, "frames": 5, "negative_tokens": 0, "batch": 1}
    return node("TinyWan", **given | more)


def sampled(model: str, *, save: str = "latents", source: str = "model", **more: Any) -> Workflow:
    """Nodes that sample with the model that node `model` gives, and save the latents."""
    given = {"seed": 3, "steps": 20, "cfg": 5.0, "sampler_name": "euler", "scheduler": "simple", "denoise": 1.0}
    sampler = node(
        "KSampler",
        model=[model, 0],
        positive=[source, 1],
        negative=[source, 2],
        latent_image=[source, 3],
        **given | more,
    )
    return {f"{save} sampler": sampler, save: node("SaveLatent", samples=[f"{save} sampler", 0], filename_prefix=save)}


def cached(model: str = "model", **settings: Any) -> dict[str, Any]:
    return node("MixCache", model=[model, 0], **{"quality": "balanced"} | settings)


def plain_workflow(**more: Any) -> Workflow:
    return {"model": tiny(), **sampled("model", **more)}


def cached_workflow(settings: dict[str, Any] | None = None, **more: Any) -> Workflow:
    return {"model": tiny(), "cache": cached(**settings or {}), **sampled("cache", **more)}
