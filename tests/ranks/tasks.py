"""What ranks are told to do together: tiny pipelines, spread over all of them, cached and with faults."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import mixcache

ARGUMENTS = {"height": 32, "width": 32}
"""Eight tokens."""
NUM_STEPS = 12
"""Of the clips that are made alone and together."""


@dataclass
class Clip:
    """What a run gave, and how."""

    latents: Any
    decisions: list[str]
    corrected: list[int]
    entries: list[dict[str, Any]]
    num_bytes: int = 0
    num_measured: int = 0
    num_steps: int = 0
    num_calls_in_full: int = 0
    seconds: float = 0.0


@functools.cache
def tiny() -> Any:
    """tests/conftest.py; several folders of tests have a module of that name."""
    spec = importlib.util.spec_from_file_location("tiny", Path(__file__).parents[1] / "conftest.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["tiny"] = module
    spec.loader.exec_module(module)
    return module


def rank() -> int:
    import torch.distributed as dist

    return dist.get_rank()


def wan(num_heads: int = 4, scheduler: str = "euler") -> Any:
    """A tiny Wan pipeline, the same on every rank."""
    import torch
    from diffusers import WanTransformer3DModel

    pipeline = tiny().build_pipeline(scheduler)
    torch.manual_seed(1)
    config = dict(pipeline.transformer.config) | {"num_attention_heads": num_heads}
    pipeline.transformer = WanTransformer3DModel.from_config(config).eval()
    return pipeline


def spread(transformer: Any, cp_plan: Any = None, **settings: Any) -> None:
    """Tokens over all ranks."""
    import torch.distributed as dist
    from diffusers import ContextParallelConfig

    transformer.set_attention_backend("native")
    degree = {"ulysses_degree": dist.get_world_size()}
    transformer.enable_parallelism(config=ContextParallelConfig(**degree | settings), cp_plan=cp_plan)


@functools.cache
def spread_wan() -> Any:
    """One for all tasks with faults; they leave it as it was."""
    pipeline = wan()
    spread(pipeline.transformer)
    return pipeline


def counted(handle: Any) -> tuple[int, int]:
    """Bytes sent so far, and numbers measured."""
    ranks = handle._ranks
    return (0, 0) if ranks is None else (ranks.num_bytes, ranks.num_measured)


def tiny_run(pipeline: Any, num_steps: int, **arguments: Any) -> Any:
    return tiny().run_pipeline(pipeline, num_steps=num_steps, **ARGUMENTS | arguments)


def run(pipeline: Any, handle: Any, num_steps: int = 16, call: Callable[..., Any] = tiny_run, **arguments: Any) -> Clip:
    before, begun = len(handle.trace), time.perf_counter()
    counts = counted(handle)
    latents = call(pipeline, num_steps, **arguments)
    entries = list(handle.trace)[before:]
    return Clip(
        latents=latents,
        decisions=[f"{entry.granularity} {entry.predictor}" for entry in entries],
        corrected=[entry.num_corrected for entry in entries],
        entries=[entry.to_json() for entry in entries],
        num_bytes=counted(handle)[0] - counts[0],
        num_measured=counted(handle)[1] - counts[1],
        num_steps=len(entries),
        num_calls_in_full=handle.summary().num_calls_in_full,
        seconds=time.perf_counter() - begun,
    )


@dataclass(frozen=True, kw_only=True)
class Model:
    """A pipeline that is made tiny, and how its tokens are spread over ranks."""

    build: Callable[[], Any]
    call: Callable[..., Any] = tiny_run
    """Latents of a clip, from pipeline and number of steps."""
    spread: dict[str, Any] = field(default_factory=dict)
    plan: Callable[[], dict[str, Any]] | None = None
    """For a class to which diffusers gives none."""
    is_compiled: bool = False


def two_experts() -> Any:
    from conformance.wan import build_pipeline

    return build_pipeline("WanPipeline", {"num_attention_heads": 4, "attention_head_dim": 6}, experts=True)


def shapes_wan() -> Any:
    from mixcache import zoo

    pipeline = zoo.load()
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def run_shapes_wan(pipeline: Any, num_steps: int, **_: Any) -> Any:
    import torch

    from mixcache import zoo

    sizes = {"height": 32, "width": 32, "num_frames": 5, "num_inference_steps": num_steps, "output_type": "latent"}
    seed = torch.Generator().manual_seed(0)
    return pipeline("a large red circle", generator=seed, **zoo.call_defaults() | sizes).frames


def variant(family: str, name: str) -> Any:
    """Of the conformance suite."""
    variants = importlib.import_module(f"conformance.{family}").VARIANTS
    return next(one for one in variants if one.name == name)


def run_variant(family: str, name: str, pipeline: Any, num_steps: int, **_: Any) -> Any:
    import torch

    one = variant(family, name)
    arguments = one.arguments() | {"num_inference_steps": num_steps}
    return one.output(pipeline(generator=torch.Generator().manual_seed(0), **arguments))


def hunyuan() -> Any:
    """Its text is as long as it can be: a mask has no place where tokens are in another order on each rank."""
    import torch

    pipeline = variant("hunyuan", "hunyuan-video").build()
    encode = pipeline.encode_prompt

    def encode_fully(*args: Any, **kwargs: Any) -> Any:
        embeds, pooled, mask = encode(*args, **kwargs)
        return embeds, pooled, torch.ones_like(mask)

    pipeline.encode_prompt = encode_fully
    return pipeline


def hunyuan_plan() -> dict[str, Any]:
    """Tokens of the film and of the text are spread before the first block; those of the film come together again."""
    from diffusers.models._modeling_parallel import ContextParallelInput, ContextParallelOutput

    tokens = ContextParallelInput(split_dim=1, expected_dims=3)
    angles = ContextParallelInput(split_dim=0, expected_dims=2, split_output=True)
    return {
        "rope": {0: angles, 1: angles},
        "transformer_blocks.0": {"hidden_states": tokens, "encoder_hidden_states": tokens},
        "proj_out": ContextParallelOutput(gather_dim=1, expected_dims=3),
    }


MODELS = {
    "wan": Model(build=wan),
    "wan, 3 heads": Model(build=functools.partial(wan, 3, "unipc"), spread={"ulysses_anything": True}),
    "wan, two experts": Model(build=two_experts),
    "wan, compiled": Model(build=wan, is_compiled=True),
    "shapes-wan": Model(build=shapes_wan, call=run_shapes_wan, spread={"ulysses_anything": True}),
    "hunyuan": Model(build=hunyuan, call=functools.partial(run_variant, "hunyuan", "hunyuan-video"), plan=hunyuan_plan),
    "cogvideox": Model(
        build=lambda: variant("cogvideox", "cogvideox-t2v-ddim").build(),
        call=functools.partial(run_variant, "cogvideox", "cogvideox-t2v-ddim"),
    ),
    "hunyuan 1.5, three calls": Model(
        build=lambda: variant("hunyuan", "hunyuan15-skip-layer").build(),
        call=functools.partial(run_variant, "hunyuan", "hunyuan15-skip-layer"),
    ),
}


@functools.cache
def made(model: str, is_spread: bool) -> tuple[Any, Any]:
    """The pipeline, on this rank alone or on all, and the clip that it makes without the cache."""
    from mixcache.hosts.diffusers.denoisers import experts_of

    kind = MODELS[model]
    pipeline = kind.build()
    if is_spread:
        for transformer in experts_of(pipeline).values():
            spread(transformer, cp_plan=kind.plan() if kind.plan else None, **kind.spread)
    if kind.is_compiled:
        kind.call(pipeline, 1)  # at its first call diffusers' hook asks for a signature, which is not traced
        pipeline.transformer.compile_repeated_blocks(fullgraph=True, backend="aot_eager")
    return pipeline, kind.call(pipeline, NUM_STEPS)


def cached(pipeline: Any, model: str, policy: str, settings: dict[str, Any], **others: Any) -> Clip:
    with mixcache.enable(pipeline, policy, **settings, **others) as handle:
        return run(pipeline, handle, NUM_STEPS, MODELS[model].call)


def alone_and_spread(policy: str, settings: dict[str, Any], model: str = "wan") -> tuple[Any, Any, Clip, Clip]:
    """The clip plain and cached, on this rank alone and on all."""
    (pipeline, plain), (pipeline_spread, plain_spread) = made(model, False), made(model, True)
    alone = cached(pipeline, model, policy, settings)
    return plain, plain_spread, alone, cached(pipeline_spread, model, policy, settings)


def steps_after(num_steps: int, fault: Any) -> Any:
    """A callback that does something after a step."""

    def callback(pipeline: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        if step == num_steps:
            fault(pipeline)
        return tensors

    return callback


def with_fault(
    fault: str,
    *,
    on: int = 1,
    after: int = 6,
    num_steps: int = 12,
    policy: str = "hindsight",
    settings: dict[str, Any] | None = None,
    differently: dict[str, Any] | None = None,
    arguments: dict[str, Any] | None = None,
    recovers: bool = False,
) -> Any:
    """The clip with a fault on one rank; those settings and arguments differ there. What the run raised is raised here,
    or, if it `recovers`, a clip is made after it by all."""
    pipeline = spread_wan()
    is_here = rank() == on
    mine = (settings or {}) | (differently or {} if is_here else {})
    call = {"num_steps": num_steps} | (arguments or {} if is_here else {})
    with mixcache.enable(pipeline, policy, **mine) as handle:
        faults = {
            "error": _raise(OSError("the disk is full")),
            "interrupt": _raise(KeyboardInterrupt("by the user")),
            "NaN": _give_one_nan,
            "in full": lambda _: _forget_where(handle),
        }
        if is_here and fault in faults:
            call["callback_on_step_end"] = steps_after(after, faults[fault])
        if is_here and fault == "before the first call":
            pipeline.scheduler.set_timesteps = faults["error"]
        try:
            return run(pipeline, handle, **call)
        except (OSError, RuntimeError, KeyboardInterrupt):
            if not recovers:
                raise
            return run(pipeline, handle, num_steps=num_steps)
        finally:
            vars(pipeline.scheduler).pop("set_timesteps", None)
            pipeline.transformer._forward_hooks.clear()  # of a NaN after the last call


def _raise(error: BaseException) -> Any:
    def fault(*_: Any, **__: Any) -> None:
        raise error

    return fault


def _give_one_nan(pipeline: Any) -> None:
    """The next output of the transformer holds a NaN, on this rank alone."""

    def spoil(module: Any, args: Any, output: Any) -> Any:
        handle.remove()
        output[0].view(-1)[0] = float("nan")
        return output

    handle = pipeline.transformer.register_forward_hook(spoil)


def _forget_where(handle: Any) -> None:
    """The next call does not say enough, on this rank alone."""
    from mixcache.hosts.diffusers.clock import UnknownCallError

    reader = handle.denoisers[0].reader

    def read(*_: Any) -> None:
        del reader.read
        raise UnknownCallError("this rank does not know where it is")

    reader.read = read


def with_own_clocks(speedup: float) -> Clip:
    """A wish that follows from the clock: on rank 1 cached steps take as long as computed ones."""
    from mixcache.core.step_times import StepTimes
    from mixcache.decision import Granularity

    pipeline = wan()
    spread(pipeline.transformer)
    shares = {0: 0.02, 1: 0.3}
    before = StepTimes.medians
    StepTimes.medians = lambda self: {Granularity.COMPUTE: 1.0, Granularity.STEP: shares[rank()]}
    try:
        with mixcache.enable(pipeline, "hold", speedup=speedup) as handle:
            run(pipeline, handle)
            return run(pipeline, handle)
    finally:
        StepTimes.medians = before


def replayed() -> tuple[Clip, Clip]:
    """A clip, and the replay of rank 0's trace of it."""
    import torch.distributed as dist

    pipeline = wan()
    handle = mixcache.enable(pipeline, "hindsight")
    spread(pipeline.transformer)  # attached before
    with handle:
        first = run(pipeline, handle)
        traces = [handle.trace if rank() == 0 else None]
    dist.broadcast_object_list(traces)
    with mixcache.enable(pipeline, "replay", trace=traces[0]) as handle:
        return first, run(pipeline, handle)


def branches_apart() -> None:
    """Rank 0 calls cond and rank 1 uncond, with weights and latents of their own."""
    import torch
    import torch.distributed as dist

    pipeline = wan()
    pipeline.scheduler.set_timesteps(8)
    with (
        mixcache.enable(pipeline, "hindsight", group=dist.group.WORLD),
        torch.no_grad(),
        pipeline.transformer.cache_context("cond" if rank() == 0 else "uncond"),
    ):
        pipeline.transformer(
            hidden_states=torch.zeros(1, 4, 2, 4, 4),
            timestep=pipeline.scheduler.timesteps[:1],
            encoder_hidden_states=torch.zeros(1, 24, 16),
        )


def with_spread_weights() -> None:
    from torch.distributed.fsdp import fully_shard

    pipeline = wan()
    fully_shard(pipeline.transformer)
    mixcache.enable(pipeline, "hindsight")


def with_tensor_parallel() -> None:
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor.parallel import ColwiseParallel, parallelize_module

    pipeline = wan()
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    parallelize_module(pipeline.transformer.blocks[0].ffn.net[0].proj, mesh, ColwiseParallel())
    mixcache.enable(pipeline, "hindsight")


def on_a_group(policy: str, settings: dict[str, Any], model: str = "wan") -> tuple[Clip, Clip]:
    """The clip on this rank alone, and where every rank runs all of the transformer, and one decides."""
    import torch.distributed as dist

    pipeline, _ = made(model, False)
    alone = cached(pipeline, model, policy, settings)
    return alone, cached(pipeline, model, policy, settings, group=dist.group.WORLD)


def fails_inside(error: BaseException, on: tuple[int, ...], after: int = 6, recovers: bool = False) -> Any:
    """The clip with an error in the third block of these ranks, at one call of the transformer; if it `recovers`, the
    next clip, made by all."""
    pipeline = wan()
    spread(pipeline.transformer)
    num_calls = 0

    def fail(*_: Any) -> None:
        nonlocal num_calls
        num_calls += 1
        if num_calls == after:
            raise error

    if rank() in on:
        pipeline.transformer.blocks[2].register_forward_pre_hook(fail)
    with mixcache.enable(pipeline, "hindsight") as handle:
        if not recovers:
            return run(pipeline, handle, num_steps=12)
        try:
            run(pipeline, handle, num_steps=12)
        except type(error):
            return run(pipeline, handle, num_steps=12)
        raise AssertionError("the run did not fail")
