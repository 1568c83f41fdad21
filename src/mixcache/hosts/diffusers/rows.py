"""MODELS: one row per way of calling a transformer. Class names are strings, so that nothing is imported.

A row says where the blocks are, which block argument is the hidden state, and which branches the pipelines call.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

COMPILE_BLOCKS = "compile its blocks instead: pipe.transformer.compile_repeated_blocks(fullgraph=True)"
COMPILE = f"{COMPILE_BLOCKS}, or the whole in place, without `block`: pipe.transformer.compile()"
"""How a transformer is compiled together with the cache."""
_MODULE = "give the pipeline the model inside: pipe.transformer = pipe.transformer.module"
WRAPPERS = {
    "PeftModel": (
        "give the pipeline the model inside, which keeps the adapter: pipe.transformer = "
        "pipe.transformer.get_base_model(); or load a LoRA by pipe.load_lora_weights"
    ),
    "DataParallel": _MODULE,
    "DistributedDataParallel": _MODULE,
}
"""Classes that a transformer may be wrapped in, and the way out."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelRow:
    """What the engine must know of a transformer and the pipelines that call it."""

    transformer: str
    """Class name in diffusers."""
    pipelines: tuple[str, ...]
    """Class names of the pipelines that call it so."""
    blocks: tuple[str, ...]
    """Attributes of the lists of transformer blocks, in the order in which they run."""
    interleaved: bool = False
    """True where the lists take turns, block by block."""
    streams: tuple[str, ...] = ("hidden_states",)
    """Arguments of a block that it returns new, in the order in which it returns them."""
    batched_cfg: tuple[str, ...] = ()
    """Branches of the one guided call, in the order in which they are stacked; empty where each branch has its call."""
    batched: tuple[str, ...] = ()
    """Arguments of a batched call that carry the batch of all branches in dimension 0."""
    shared: tuple[str, ...] = ()
    """Arguments of a batched call that do not, even where their dimension 0 is as long."""
    order: tuple[str, ...] = ("cond", "uncond")
    """Branches of the calls of a step, in this order, where no cache context names them."""
    per_frame_noise: bool = False
    """True where frames may be at different noise levels: such calls are computed (a device sync in each call)."""
    latents: str = "hidden_states"
    """The transformer's argument whose shape tells one trajectory from another."""
    text: str = "encoder_hidden_states"
    """The transformer's argument by which branches are told apart where no cache context names them; "" for none."""
    guidance: str | None = "guidance_scale"
    """Attribute of the pipeline with the scale of v_u + g (v_c - v_u)."""
    guidance_offset: float = 0.0
    """Added to it: 1 where the pipeline means v_c + g (v_c - v_u)."""
    granularities: tuple[str, ...] = ("step", "cfg", "block")
    """What can be cached here."""
    span_first: int = 1
    """F: blocks before the span, always run."""
    span_after: int = 1
    """B: blocks after the span, always run."""
    num_tail_blocks: str = ""
    """Entry of the transformer's config: how many of the last blocks work on something else and are never left out."""
    unsafe: str = ""
    """Why no call may be left out; empty where it may."""


def _wan(transformer: str, *pipelines: str, **more: Any) -> ModelRow:
    """Wan and its kin: one list of blocks, one stream, a call for each branch."""
    return ModelRow(transformer=transformer, pipelines=pipelines, blocks=("blocks",), **more)


def _hunyuan(transformer: str, *pipelines: str, **more: Any) -> ModelRow:
    """HunyuanVideo and its kin: blocks of two streams, then blocks in which they are joined."""
    lists = ("transformer_blocks", "single_transformer_blocks")
    # the scale that the pipeline keeps is the embedded one, not that of two calls
    return ModelRow(
        transformer=transformer, pipelines=pipelines, blocks=lists, streams=TWO_STREAMS, guidance=None, **more
    )


def _joined(transformer: str, *pipelines: str, batched: tuple[str, ...] = (), **more: Any) -> ModelRow:
    """One call for both branches, unconditional first."""
    settings: dict[str, Any] = {"blocks": ("transformer_blocks",), "batched_cfg": ("uncond", "cond")}
    always = ("hidden_states", "encoder_hidden_states", "timestep")
    return ModelRow(transformer=transformer, pipelines=pipelines, batched=(*always, *batched), **settings | more)


TWO_STREAMS = ("hidden_states", "encoder_hidden_states")
_COGVIDEOX = {"streams": TWO_STREAMS, "shared": ("image_rotary_emb", "ofs", "attention_kwargs")}
_EASYANIMATE = {"streams": TWO_STREAMS, "batched": ("control_latents", "inpaint_latents")}

MODELS: tuple[ModelRow, ...] = (
    _wan(
        "WanTransformer3DModel",
        "WanPipeline",
        "WanImageToVideoPipeline",
        "WanVideoToVideoPipeline",
        "LucyEditPipeline",
    ),
    _wan(
        "WanTransformer3DModel",
        "WanModularPipeline",
        "Wan22ModularPipeline",
        "WanImage2VideoModularPipeline",
        "Wan22Image2VideoModularPipeline",
        guidance="guider.guidance_scale",
    ),
    _wan("WanVACETransformer3DModel", "WanVACEPipeline"),
    _wan(
        "WanVACETransformer3DModel",
        "Wan22VaceModularPipeline",
        guidance="guider.guidance_scale",
    ),
    _wan("WanAnimateTransformer3DModel", "WanAnimatePipeline"),
    _wan("ChronoEditTransformer3DModel", "ChronoEditPipeline"),
    _wan("SkyReelsV2Transformer3DModel", "SkyReelsV2Pipeline", "SkyReelsV2ImageToVideoPipeline"),
    _wan(
        "SkyReelsV2Transformer3DModel",
        "SkyReelsV2DiffusionForcingPipeline",
        "SkyReelsV2DiffusionForcingImageToVideoPipeline",
        "SkyReelsV2DiffusionForcingVideoToVideoPipeline",
        per_frame_noise=True,
    ),
    _hunyuan(
        "HunyuanVideoTransformer3DModel",
        "HunyuanVideoPipeline",
        "HunyuanVideoImageToVideoPipeline",
        "HunyuanSkyreelsImageToVideoPipeline",
    ),
    _hunyuan("HunyuanVideoFramepackTransformer3DModel", "HunyuanVideoFramepackPipeline"),
    ModelRow(
        transformer="HunyuanVideo15Transformer3DModel",
        pipelines=("HunyuanVideo15Pipeline", "HunyuanVideo15ImageToVideoPipeline", "HunyuanVideo15ModularPipeline"),
        blocks=("transformer_blocks",),
        streams=TWO_STREAMS,
        guidance="guider.guidance_scale",
    ),
    ModelRow(
        transformer="MotifVideoTransformer3DModel",
        pipelines=("MotifVideoPipeline", "MotifVideoImage2VideoPipeline"),
        blocks=("transformer_blocks", "single_transformer_blocks"),
        num_tail_blocks="num_decoder_layers",
        streams=TWO_STREAMS,
        guidance="guider.guidance_scale",
    ),
    _wan("HeliosTransformer3DModel", "HeliosPipeline", "HeliosPyramidPipeline"),
    _joined(
        "CogVideoXTransformer3DModel",
        "CogVideoXPipeline",
        "CogVideoXImageToVideoPipeline",
        "CogVideoXVideoToVideoPipeline",
        "CogVideoXFunControlPipeline",
        **_COGVIDEOX,
    ),
    _joined("ConsisIDTransformer3DModel", "ConsisIDPipeline", **_COGVIDEOX),
    _joined(
        "LTXVideoTransformer3DModel",
        "LTXPipeline",
        "LTXImageToVideoPipeline",
        "LTXConditionPipeline",
        "LTXI2VLongMultiPromptPipeline",
        batched=("encoder_attention_mask", "video_coords"),
    ),
    # its guider makes a call for each branch
    ModelRow(
        transformer="LTXVideoTransformer3DModel",
        pipelines=("LTXModularPipeline",),
        blocks=("transformer_blocks",),
        guidance="guider.guidance_scale",
    ),
    _joined(
        "LTX2VideoTransformer3DModel",
        "LTX2Pipeline",
        "LTX2ImageToVideoPipeline",
        "LTX2ConditionPipeline",
        "LTX2InContextPipeline",
        "LTX2HDRPipeline",
        batched=(
            "audio_hidden_states",
            "audio_encoder_hidden_states",
            "audio_timestep",
            "sigma",
            "audio_sigma",
            "encoder_attention_mask",
            "audio_encoder_attention_mask",
            "video_coords",
            "audio_coords",
            "video_self_attention_mask",
        ),
        streams=("hidden_states", "audio_hidden_states"),
    ),
    _joined("MochiTransformer3DModel", "MochiPipeline", batched=("encoder_attention_mask",), streams=TWO_STREAMS),
    _joined(
        "AllegroTransformer3DModel",
        "AllegroPipeline",
        batched=("encoder_attention_mask",),
        shared=("image_rotary_emb",),
        guidance="_guidance_scale",
    ),
    _joined(
        "LatteTransformer3DModel",
        "LattePipeline",
        blocks=("transformer_blocks", "temporal_transformer_blocks"),
        interleaved=True,
    ),
    _joined(
        "EasyAnimateTransformer3DModel",
        "EasyAnimatePipeline",
        "EasyAnimateControlPipeline",
        "EasyAnimateInpaintPipeline",
        **_EASYANIMATE,
    ),
    _joined(
        "SanaVideoTransformer3DModel",
        "SanaVideoPipeline",
        "SanaImageToVideoPipeline",
        batched=("encoder_attention_mask",),
    ),
    ModelRow(
        transformer="CosmosTransformer3DModel",
        pipelines=(
            "CosmosTextToWorldPipeline",
            "CosmosVideoToWorldPipeline",
            "Cosmos2TextToImagePipeline",
            "Cosmos2VideoToWorldPipeline",
            "Cosmos2_5_PredictBasePipeline",
            "Cosmos2_5_TransferPipeline",
        ),
        blocks=("transformer_blocks",),
        guidance_offset=1.0,
    ),
    ModelRow(
        transformer="Kandinsky5Transformer3DModel",
        pipelines=("Kandinsky5T2VPipeline", "Kandinsky5I2VPipeline"),
        blocks=("visual_transformer_blocks",),
        streams=("visual_embed",),
    ),
    ModelRow(
        transformer="Kandinsky6Transformer3DModel",
        pipelines=("Kandinsky6TI2VAPipeline",),
        blocks=("visual_transformer_blocks",),
        streams=("vis", "aud"),
    ),
    ModelRow(
        transformer="Cosmos3OmniTransformer",
        pipelines=("Cosmos3OmniPipeline",),
        blocks=("layers",),
        streams=("und_seq", "gen_seq"),
        latents="vision_tokens",
        text="input_ids",
    ),
    _joined(
        "SanaWMTransformer3DModel",
        "SanaWMPipeline",
        blocks=("blocks",),
        streams=("x",),
        batched=("mask", "camera_conditions", "chunk_plucker"),
        shared=("data_info",),
    ),
    _joined(
        "AnyFlowTransformer3DModel",
        "AnyFlowPipeline",
        blocks=("blocks",),
        batched=("r_timestep",),
    ),
    _joined(
        "AnyFlowFARTransformer3DModel",
        "AnyFlowFARPipeline",
        blocks=("blocks",),
        unsafe="its calls write a key-value cache that the next chunk reads, so none may be left out",
    ),
    _joined(
        "LTX2VideoTransformer3DModel",
        "LTX2DFRPipeline",
        "LTX2DFRTemporalRefinePipeline",
        unsafe="a step has a call for every tile, and nothing tells one tile from another",
    ),
    ModelRow(
        transformer="Kandinsky6SRTransformer3DModel",
        pipelines=("Kandinsky6SRPipeline",),
        blocks=("visual_transformer_blocks",),
        unsafe="it refines tiles in 4 steps; none of them is redundant",
    ),
)


def row_for(transformer: Any, pipeline: Any) -> ModelRow:
    """The row of a transformer under its pipeline, or of the nearest classes that they derive from; TypeError prints
    the row to write where there is none, or says how to take off what the transformer is wrapped in."""
    name, pipeline_name = type(transformer).__name__, type(pipeline).__name__
    if hasattr(transformer, "_orig_mod"):
        raise TypeError(f"torch.compile(transformer) is another module, which mixcache cannot attach to; {COMPILE}")
    classes = [ancestor.__name__ for ancestor in type(transformer).__mro__]
    for wrapper, way_out in WRAPPERS.items():
        if wrapper in classes:
            raise TypeError(f"the transformer is wrapped in {name}, which mixcache cannot attach to; {way_out}")
    for ancestor in type(pipeline).__mro__:
        for known in classes:
            for row in MODELS:
                if row.transformer == known and ancestor.__name__ in row.pipelines:
                    return row
    supported = f"{sum(len(row.pipelines) for row in MODELS)} pipelines"
    raise TypeError(
        f"{pipeline_name} with {name} is not supported (`mixcache models` lists what is: {supported}). "
        "Add to MODELS in mixcache/hosts/diffusers/rows.py: "
        f'ModelRow(transformer="{name}", pipelines=("{pipeline_name}",), blocks={_blocks_guess(transformer)})'
    )


def _blocks_guess(transformer: Any) -> str:
    """A tuple of the names of the lists of blocks, in the order of definition: those whose modules are called so, or
    else the longest list of modules."""
    children: Mapping[str, Any] = dict(transformer.named_children()) if hasattr(transformer, "named_children") else {}
    lists = {name: child for name, child in children.items() if type(child).__name__ == "ModuleList" and len(child)}
    blocks = [name for name, child in lists.items() if all("Block" in type(block).__name__ for block in child)]
    blocks = blocks or [max(lists, key=lambda name: len(lists[name]))] if lists else ["blocks"]
    names = ", ".join(f'"{name}"' for name in blocks)
    return f"({names},)" if len(blocks) == 1 else f"({names})"


def rows_as_table() -> list[dict[str, str]]:
    """The rows as plain cells, for `mixcache models`."""
    return [
        {
            "pipeline": pipeline,
            "transformer": row.transformer,
            "blocks": ", ".join(row.blocks),
            "guidance": "one batched call" if row.batched_cfg else "a call for each branch",
            "granularities": row.unsafe or ", ".join(row.granularities),
        }
        for row in MODELS
        for pipeline in row.pipelines
    ]
