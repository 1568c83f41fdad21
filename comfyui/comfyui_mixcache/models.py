"""MODELS: what each model class of ComfyUI allows. Class names are strings, so that nothing is imported.

What is cached is what a model makes of its latents, so a row needs to know neither blocks nor arguments. It says which
classes are known to be asked once per step and branch, and which keep something from call to call, so that no call of
theirs may be left out.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelRow:
    """A class of `comfy.model_base`, and those that derive from it and have no row of their own."""

    model: str
    name: str
    """As its users call it."""
    granularities: tuple[str, ...] = ("step", "cfg")
    unsafe: str = ""
    """Why no call may be left out; empty where it may."""


MODELS: tuple[ModelRow, ...] = (
    ModelRow(
        model="WAN21_CausalAR",
        name="Wan 2.1, causal, streaming",
        unsafe="its calls write a key-value cache that the next frames read",
    ),
    ModelRow(
        model="WAN21_FlowRVS",
        name="FlowRVS",
        unsafe="its latents are a picture and no noise, so that there are no noise levels to predict along",
    ),
    ModelRow(model="WAN21_Vace", name="Wan 2.1 VACE, Wan 2.2 Fun VACE"),
    ModelRow(model="WAN21", name="Wan 2.1 and 2.2: T2V, I2V, FLF2V, Fun, Camera, HuMo, Animate, S2V, SCAIL, WanDancer"),
    ModelRow(model="WAN22", name="Wan 2.2 TI2V 5B"),
    ModelRow(model="HunyuanVideo", name="HunyuanVideo 1.0: T2V, I2V, SkyReels V1"),
    ModelRow(model="HunyuanVideo15", name="HunyuanVideo 1.5"),
    ModelRow(model="LTXV", name="LTX-Video"),
    ModelRow(model="LTXAV", name="LTX-2"),
    ModelRow(model="CogVideoX", name="CogVideoX (v-prediction)"),
    ModelRow(model="GenmoMochi", name="Mochi 1"),
    ModelRow(model="CosmosVideo", name="Cosmos 1"),
    ModelRow(model="CosmosPredict2", name="Cosmos Predict 2"),
    ModelRow(model="Kandinsky5", name="Kandinsky 5"),
    ModelRow(model="MiniMaxH3", name="MiniMax H3"),
)


def row_for(model: object) -> ModelRow:
    """The row of the nearest class that a model derives from; ValueError says what to do where there is none."""
    rows = {row.model: row for row in MODELS}
    for ancestor in type(model).__mro__:
        if ancestor.__name__ in rows:
            return rows[ancestor.__name__]
    known = ", ".join(row.name for row in MODELS if not row.unsafe)
    raise ValueError(
        f"MixCache does not know the model class {type(model).__name__!r}: bypass the MixCache node, or give it one of "
        f"these: {known}"
    )
