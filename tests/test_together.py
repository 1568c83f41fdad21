"""The cache together with what users switch on beside it: offloading, compilation, LoRA, casting, attention backends,
shared transformers, bfloat16, a run that is interrupted, several videos for a prompt.

Each test asks two things: that the cache still leaves out what it would leave out alone, and that the clip is the one
that it gives alone.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import accelerate
import pytest
import torch
from conformance.test_conformance import VARIANTS
from conformance.test_conformance import generate as generate_variant
from diffusers import FirstBlockCacheConfig, WanVideoToVideoPipeline
from diffusers.models.attention_dispatch import _AttentionBackendRegistry
from torch._dynamo.testing import CompileCounter
from traces import letters

import mixcache
from mixcache.hosts.diffusers import overlay
from mixcache.hosts.diffusers.denoisers import experts_of

PATTERNS = {"step": ".....s.s.s..", "cfg": ".....c.c.c..", "block": ".....b.b.b.."}
NUM_BLOCKS = {"step": 96 - 3 * 8, "cfg": 96 - 3 * 4, "block": 96 - 3 * 4}
"""Blocks that run in a generation of 12 steps, 2 calls and 4 blocks, 2 of them in the span."""
CPU = torch.device("cpu")
SHORT: dict[str, Any] = {"period": 2, "num_warmup_steps": 1, "num_cooldown_steps": 0}
"""For the short loops of the conformance suite."""
Generate = Callable[..., torch.Tensor]
Make = Callable[..., Any]

granularities = pytest.mark.parametrize("granularity", ["step", "cfg", "block"])
orders = pytest.mark.parametrize("order", ["before", "after"])
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def alone(make_pipeline: Make, generate: Generate) -> dict[str, torch.Tensor]:
    """The clips of a pipeline with nothing else switched on: plain, and cached by each granularity."""
    pipeline = make_pipeline()
    clips = {"plain": generate(pipeline)}
    for granularity in PATTERNS:
        with mixcache.enable(pipeline, "every_nth", granularities=granularity, period=2):
            clips[granularity] = generate(pipeline)
    return clips


def enabled(pipeline: Any, switch_on: Callable[[Any], None], order: str, granularity: str) -> mixcache.Handle:
    """Switches the cache on, and something else before or after it."""
    if order == "before":
        switch_on(pipeline)
    handle = mixcache.enable(pipeline, "every_nth", granularities=granularity, period=2)
    if order == "after":
        switch_on(pipeline)
    return handle


@pytest.fixture(autouse=True)
def attention_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    """diffusers keeps the backend that was set last for the whole process; it is put back."""
    monkeypatch.setattr(_AttentionBackendRegistry, "_active_backend", _AttentionBackendRegistry._active_backend)


# ------------------------------------------------------------------------------------- offloading, attention, weights


def offload_model(pipeline: Any) -> None:
    pipeline.enable_model_cpu_offload(device="cpu")


def offload_sequentially(pipeline: Any) -> None:
    """What `enable_sequential_cpu_offload` does to the transformer; itself it calls the device "cpu:0", at which
    accelerate fails. Weights are on the meta device but while their layer runs."""
    accelerate.cpu_offload(pipeline.transformer, CPU, offload_buffers=len(pipeline.transformer._parameters) > 0)
    assert {parameter.device.type for parameter in pipeline.transformer.parameters()} == {"meta"}


def offload_by_hook(pipeline: Any) -> None:
    accelerate.cpu_offload_with_hook(pipeline.transformer, CPU)


def offload_blocks(pipeline: Any) -> None:
    pipeline.transformer.enable_group_offload(onload_device=CPU, offload_type="block_level", num_blocks_per_group=1)


def offload_leaves(pipeline: Any) -> None:
    pipeline.transformer.enable_group_offload(onload_device=CPU, offload_type="leaf_level")


def offload_every_component(pipeline: Any) -> None:
    pipeline.enable_group_offload(onload_device=CPU, offload_type="leaf_level")


def native_attention(pipeline: Any) -> None:
    pipeline.transformer.set_attention_backend("native")


def plain_attention(pipeline: Any) -> None:
    pipeline.transformer.set_attention_backend("_native_math")


def fuse_projections(pipeline: Any) -> None:
    pipeline.transformer.fuse_qkv_projections()
    assert pipeline.transformer.blocks[0].attn1.fused_projections


EXTRAS: dict[str, Callable[[Any], None]] = {
    "model offload": offload_model,
    "model offload by hook": offload_by_hook,
    "sequential offload": offload_sequentially,
    "group offload, blocks": offload_blocks,
    "group offload, leaves": offload_leaves,
    "group offload, pipeline": offload_every_component,
    "native attention": native_attention,
    "plain attention": plain_attention,
    "fused projections": fuse_projections,
}
ROUNDED_ANEW = ("plain attention", "fused projections")
"""Extras that add up in another order."""


@pytest.mark.parametrize("granularity", ["cfg", "block"])
@orders
@pytest.mark.parametrize("extra", EXTRAS)
def test_an_extra_changes_neither_what_is_left_out_nor_the_clip(
    alone: dict[str, torch.Tensor],
    pipeline: Any,
    generate: Generate,
    counted: Callable[..., Any],
    extra: str,
    order: str,
    granularity: str,
) -> None:
    """Two clips, since offloading is set up anew after each; and what is there after `disable` still works."""
    expected = alone[granularity]
    tolerance = 1e-5 if extra in ROUNDED_ANEW else 0.0
    handle = enabled(pipeline, EXTRAS[extra], order, granularity)
    for number in range(2):
        with counted(pipeline.transformer) as work:
            torch.testing.assert_close(generate(pipeline), expected, rtol=0.0, atol=tolerance)
        assert (letters(handle.trace.generation(number)), work.num_blocks) == (
            PATTERNS[granularity],
            NUM_BLOCKS[granularity],
        )
    handle.disable()
    with counted(pipeline.transformer) as work:
        torch.testing.assert_close(generate(pipeline), alone["plain"], rtol=0.0, atol=tolerance)
    assert (work.num_blocks, len(handle.trace)) == (96, 24)


@orders
@pytest.mark.parametrize("extra", ["sequential offload", "group offload, blocks", "group offload, leaves"])
def test_an_extra_on_a_pipeline_that_joins_its_branches(extra: str, order: str) -> None:
    variant = VARIANTS["cogvideox-t2v-ddim"]
    settings = {"granularities": "cfg", **SHORT}
    with mixcache.enable(pipeline := variant.build(), "every_nth", **settings) as handle:
        expected, chosen = generate_variant(variant, pipeline), letters(handle.trace)
    assert chosen.count("c") >= 2
    pipeline = variant.build()
    if order == "before":
        EXTRAS[extra](pipeline)
    with mixcache.enable(pipeline, "every_nth", **settings) as handle:
        if order == "after":
            EXTRAS[extra](pipeline)
        assert torch.equal(generate_variant(variant, pipeline)[0], expected[0])
    assert letters(handle.trace) == chosen


def cast_layers(pipeline: Any) -> None:
    pipeline.transformer.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32)
    assert pipeline.transformer.blocks[0].attn1.to_q.weight.dtype == torch.float8_e4m3fn


@granularities
@orders
def test_weights_stored_in_8_bits(make_pipeline: Make, generate: Generate, order: str, granularity: str) -> None:
    """The weights are others, so the clip is held against that of a pipeline whose weights were rounded before."""

    def round_weights(rounded: Any) -> None:
        stored = make_pipeline()
        cast_layers(stored)
        of = dict(stored.transformer.named_parameters())
        with torch.no_grad():
            for name, parameter in rounded.transformer.named_parameters():
                parameter.copy_(of[name].to(parameter.dtype))

    round_weights(rounded := make_pipeline())
    with mixcache.enable(rounded, "every_nth", granularities=granularity, period=2):
        expected = generate(rounded)
    pipeline = make_pipeline()
    handle = enabled(pipeline, cast_layers, order, granularity)
    assert torch.equal(generate(pipeline), expected)
    assert letters(handle.trace) == PATTERNS[granularity]
    handle.disable()
    assert torch.equal(generate(pipeline), generate(rounded))


@granularities
def test_weights_that_change_between_two_clips_leave_nothing_old(
    make_pipeline: Make, generate: Generate, granularity: str
) -> None:
    """As fusing a LoRA does."""

    def change(pipeline: Any) -> None:
        with torch.no_grad():
            pipeline.transformer.blocks[1].attn1.to_q.weight.add_(0.1)
            pipeline.transformer.proj_out.weight.mul_(1.5)

    settings = {"granularities": granularity, "period": 2}
    mixcache.enable(fresh := make_pipeline(), "every_nth", **settings)
    change(fresh)
    pipeline = make_pipeline()
    handle = mixcache.enable(pipeline, "every_nth", **settings)
    first = generate(pipeline)
    change(pipeline)
    second = generate(pipeline)
    assert torch.equal(second, generate(fresh))
    assert not torch.equal(second, first)
    assert letters(handle.trace) == PATTERNS[granularity] * 2


@granularities
def test_a_lora_that_comes_and_is_switched_leaves_nothing_old(
    make_pipeline: Make, generate: Generate, granularity: str
) -> None:
    """Loaded after `enable`; switched between two clips; needs peft."""
    peft = pytest.importorskip("peft")

    def load(pipeline: Any) -> None:
        for seed, name in enumerate(("one", "two")):
            torch.manual_seed(seed)
            config = peft.LoraConfig(r=2, target_modules=["to_q", "to_v"], init_lora_weights=False)
            pipeline.transformer.add_adapter(config, adapter_name=name)

    def clips(pipeline: Any) -> list[torch.Tensor]:
        made = []
        for name in ("one", "two", "one"):
            pipeline.transformer.set_adapters(name)
            made.append(generate(pipeline))
        return made

    fresh = make_pipeline()
    load(fresh)
    expected = []
    for name in ("one", "two"):
        fresh.transformer.set_adapters(name)
        with mixcache.enable(fresh, "every_nth", granularities=granularity, period=2):
            expected.append(generate(fresh))
    pipeline = make_pipeline()
    handle = mixcache.enable(pipeline, "every_nth", granularities=granularity, period=2)
    generate(pipeline)
    load(pipeline)
    for clip, other in zip(clips(pipeline), (*expected, expected[0]), strict=True):
        assert torch.equal(clip, other)
    assert letters(handle.trace) == PATTERNS[granularity] * 4
    assert not torch.equal(*expected)


# -------------------------------------------------------------------------------------------------------- compilation


@pytest.mark.parametrize(
    ("granularity", "order", "fullgraph"), [("step", "before", True), ("cfg", "after", False), ("step", "after", True)]
)
def test_a_transformer_compiled_in_place_is_cached_as_one_graph(
    alone: dict[str, torch.Tensor], pipeline: Any, generate: Generate, granularity: str, order: str, fullgraph: bool
) -> None:
    """What decides stands outside of the graph."""
    torch._dynamo.reset()
    counter = CompileCounter()
    handle = enabled(
        pipeline, lambda pipe: pipe.transformer.compile(backend=counter, fullgraph=fullgraph), order, granularity
    )
    torch.testing.assert_close(generate(pipeline), alone[granularity], rtol=1e-4, atol=1e-5)
    assert (letters(handle.trace), counter.frame_count) == (PATTERNS[granularity], 1)
    handle.disable()
    assert pipeline.transformer._compiled_call_impl.__name__ == "_call_impl"
    assert not overlay.hooks_on(pipeline.transformer)


def test_blocks_of_a_transformer_compiled_as_a_whole_are_all_computed_and_it_is_said_once(
    alone: dict[str, torch.Tensor], pipeline: Any, generate: Generate, caplog: pytest.LogCaptureFixture
) -> None:
    torch._dynamo.reset()
    counter = CompileCounter()
    handle = enabled(pipeline, lambda pipe: pipe.transformer.compile(backend=counter), "after", "block")
    for _ in range(2):
        torch.testing.assert_close(generate(pipeline), alone["plain"], rtol=1e-4, atol=1e-5)
    assert (letters(handle.trace), counter.frame_count) == ("." * 24, 1)
    messages = [record.getMessage() for record in caplog.records if record.name == "mixcache"]
    assert len(messages) == 1
    assert messages[0].startswith("the transformer is compiled as a whole: no blocks are left out; compile its blocks")
    handle.disable()
    assert not any(overlay.hooks_on(block) for block in pipeline.transformer.blocks)


def test_torch_compile_around_an_enabled_transformer_is_cached_and_it_is_said_that_nothing_is_compiled(
    alone: dict[str, torch.Tensor], pipeline: Any, generate: Generate, caplog: pytest.LogCaptureFixture
) -> None:
    torch._dynamo.reset()
    handle = mixcache.enable(pipeline, "every_nth", granularities="step", period=2)
    pipeline.transformer = torch.compile(pipeline.transformer, backend="eager")
    with caplog.at_level(logging.WARNING, "mixcache"):
        assert torch.equal(generate(pipeline), alone["step"])
        generate(pipeline)
    assert letters(handle.trace) == PATTERNS["step"] * 2
    messages = [record.getMessage() for record in caplog.records if record.name == "mixcache"]
    assert len(messages) == 1
    assert messages[0].startswith("torch.compile(transformer) came after mixcache.enable and compiles nothing")
    with pytest.raises(TypeError, match="cannot attach to"):
        mixcache.enable(pipeline)
    mixcache.disable(pipeline)
    assert not handle.is_enabled


# ------------------------------------------------------------------------------------------- one transformer for two


def from_video(pipeline: Any, **more: Any) -> torch.Tensor:
    """A clip of WanVideoToVideoPipeline from black frames."""
    from PIL import Image

    return pipeline(
        [Image.new("RGB", (16, 16))] * 5,
        "a small red circle",
        height=16,
        width=16,
        num_inference_steps=12,
        strength=1.0,
        guidance_scale=5.0,
        max_sequence_length=24,
        output_type="latent",
        generator=torch.Generator().manual_seed(0),
        **more,
    ).frames


@pytest.mark.parametrize("granularity", ["step", "cfg", "block"])
def test_a_pipeline_that_shares_the_transformer_is_cached_with_it(
    alone: dict[str, torch.Tensor], make_pipeline: Make, generate: Generate, granularity: str
) -> None:
    """`from_pipe` shares the scheduler too, so the clock is that of the run; `disable` on either ends it for both."""
    settings = {"granularities": granularity, "period": 2}
    other = WanVideoToVideoPipeline.from_pipe(make_pipeline())
    other.set_progress_bar_config(disable=True)
    plain = from_video(other)
    mixcache.enable(other, "every_nth", **settings)
    expected_other, expected = from_video(other), alone[granularity]

    pipeline = make_pipeline()
    second = WanVideoToVideoPipeline.from_pipe(pipeline)
    second.set_progress_bar_config(disable=True)
    handle = mixcache.enable(pipeline, "every_nth", **settings)
    assert torch.equal(from_video(second), expected_other)
    assert torch.equal(generate(pipeline), expected)
    assert torch.equal(from_video(second), expected_other)
    assert torch.equal(generate(pipeline), expected)
    assert letters(handle.trace) == PATTERNS[granularity] * 4
    assert not torch.equal(expected_other, plain)
    with pytest.raises(ValueError, match="enabled on this transformer already"):
        mixcache.enable(second)
    mixcache.disable(second)
    assert not handle.is_enabled
    assert torch.equal(from_video(second), plain)


def test_a_pipeline_with_the_transformer_and_a_scheduler_of_its_own_has_a_run_of_its_own(
    make_pipeline: Make, generate: Generate
) -> None:
    """Its calls reach the same transformer, and its steps are those of its own scheduler."""
    pipeline, stranger = make_pipeline(), make_pipeline()
    second = WanVideoToVideoPipeline.from_pipe(pipeline, scheduler=stranger.scheduler)
    second.set_progress_bar_config(disable=True)
    with mixcache.enable(second, "every_nth", granularities="step", period=2):
        expected = from_video(second)
    handle = mixcache.enable(pipeline, "every_nth", granularities="step", period=2)
    clip = generate(pipeline)
    assert torch.equal(from_video(second), expected)
    assert torch.equal(generate(pipeline), clip)
    assert letters(handle.trace) == PATTERNS["step"] * 3
    assert (handle.summary()["num_calls_in_full"], handle.summary()["held_bytes"]) == (0, 0)


def test_a_pipeline_made_of_one_that_is_enabled_takes_its_transformer(
    alone: dict[str, torch.Tensor], pipeline: Any, generate: Generate
) -> None:
    """`from_pipe` takes the components whose class is the one that it expects."""
    with mixcache.enable(pipeline, "every_nth", granularities="block", period=2):
        second = WanVideoToVideoPipeline.from_pipe(pipeline)
        assert second.transformer is pipeline.transformer
        assert torch.equal(generate(pipeline), alone["block"])


@orders
def test_a_cache_of_diffusers_finds_the_blocks(pipeline: Any, generate: Generate, order: str) -> None:
    """Its registry is keyed by their class; a threshold of 0 leaves nothing out."""

    def switch_on(pipeline: Any) -> None:
        pipeline.transformer.enable_cache(FirstBlockCacheConfig(threshold=0.0))

    plain = generate(pipeline)
    with enabled(pipeline, switch_on, order, "block") as handle:
        generate(pipeline)
        assert letters(handle.trace) == PATTERNS["block"]
        pipeline.transformer.disable_cache()
    assert torch.equal(generate(pipeline), plain)


# --------------------------------------------------------------------------------------- on the pipelines of all models

REPRESENTATIVES = (
    "wan-t2v",
    "wan-vace",
    "wan-animate",
    "chronoedit",
    "skyreels-t2v",
    "hunyuan-video",
    "hunyuan-framepack",
    "hunyuan15-cfg",
    "motif-cfg",
    "helios",
    "cogvideox-t2v-ddim",
    "consisid",
    "ltx-t2v",
    "ltx2-t2v",
    "mochi",
    "allegro",
    "latte-ddim",
    "cosmos-text2world",
    "cosmos3-text2video",
    "kandinsky6-t2va",
    "easyanimate",
    "sana-video-dpm",
    "anyflow",
)
"""One variant for each class of transformer, but for those of SanaWM and Kandinsky 5, which do not run in bfloat16 on
the CPU."""
INTERRUPTED = ("wan-t2v", "skyreels-t2v", "hunyuan-video", "cogvideox-t2v-ddim", "ltx-t2v", "mochi", "allegro")
"""One variant for each family whose callback may set `_interrupt`."""
SEVERAL = (
    ("wan-t2v", "cfg"),
    ("wan-t2v", "block"),
    ("skyreels-t2v", "cfg"),
    ("hunyuan-video", "step"),
    ("ltx-t2v", "cfg"),
    ("mochi", "cfg"),
    ("cosmos-text2world", "cfg"),
    ("sana-video-dpm", "cfg"),
)
"""One variant for each family that makes several videos of a prompt; CogVideoX and Allegro take the argument and make
one."""


def tensors(output: tuple[Any, ...]) -> list[torch.Tensor]:
    return [torch.as_tensor(part) for part in output]


@pytest.mark.parametrize("name", REPRESENTATIVES)
def test_bfloat16(name: str) -> None:
    """Everything computed gives the plain bits; cached, what comes out is finite, of the same type, and another."""
    variant = VARIANTS[name]
    pipeline = variant.build().to(torch.bfloat16)
    plain = tensors(generate_variant(variant, pipeline))
    with mixcache.enable(pipeline, "always_compute"):
        for part, same in zip(tensors(generate_variant(variant, pipeline)), plain, strict=True):
            assert torch.equal(part, same)
    outputs: list[torch.Tensor] = []
    with mixcache.enable(pipeline, "every_nth", granularities="step", **SHORT) as handle:
        for expert in experts_of(pipeline).values():
            expert.register_forward_hook(lambda module, args, out: outputs.extend(torch.utils._pytree.tree_leaves(out)))
        cached = tensors(generate_variant(variant, pipeline))
    assert handle.trace.counts()["step"] >= 2
    assert len({o.dtype for o in outputs if isinstance(o, torch.Tensor) and o.is_floating_point()}) == 1
    for part, same in zip(cached, plain, strict=True):
        assert part.dtype == same.dtype
        assert bool(part.isfinite().all())
    assert any(not torch.equal(part, same) for part, same in zip(cached, plain, strict=True))


@pytest.mark.parametrize("name", INTERRUPTED)
def test_a_run_that_is_interrupted_leaves_nothing_for_the_next(name: str) -> None:
    variant = VARIANTS[name]
    pipeline = variant.build()

    def interrupt(pipe: Any, step: int, timestep: Any, values: dict[str, Any]) -> dict[str, Any]:
        pipe._interrupt = step >= variant.num_steps // 2
        return values

    with mixcache.enable(pipeline, "every_nth", granularities="step", **SHORT) as handle:
        fresh = tensors(generate_variant(variant, pipeline))
        arguments = variant.arguments() | {"callback_on_step_end": interrupt}
        pipeline(generator=torch.Generator("cpu").manual_seed(1), **arguments)
        after = tensors(generate_variant(variant, pipeline))
    lengths = [len(handle.trace.generation(number)) for number in range(3)]
    assert lengths == [variant.num_steps, variant.num_steps // 2 + 1, variant.num_steps]
    assert letters(handle.trace.generation(0)) == letters(handle.trace.generation(2))
    assert handle.trace.counts()["step"] >= 2
    for part, same in zip(after, fresh, strict=True):
        assert torch.equal(part, same)


@pytest.mark.parametrize(("name", "granularity"), SEVERAL)
def test_two_videos_for_a_prompt(name: str, granularity: str) -> None:
    """Two clips from a seed each are those of each seed alone."""
    variant = VARIANTS[name]
    pipeline = variant.build()

    def clip(seeds: list[int]) -> torch.Tensor:
        generators = [torch.Generator("cpu").manual_seed(seed) for seed in seeds]
        arguments = variant.arguments() | {"num_videos_per_prompt": len(seeds)}
        return torch.as_tensor(variant.output(pipeline(generator=generators, **arguments)))

    with mixcache.enable(pipeline, "every_nth", granularities=granularity, **SHORT) as handle:
        together = clip([0, 1])
        single = [clip([seed]) for seed in (0, 1)]
    assert len(together) == 2
    # two at once round otherwise than one, and random weights carry that far: Sana's to 4e-4 of the largest value
    torch.testing.assert_close(together, torch.cat(single), rtol=1e-3, atol=1e-3 * float(together.abs().max()))
    assert letters(handle.trace.generation(0)) == letters(handle.trace.generation(1))
    assert handle.trace.counts()[granularity] >= 6
