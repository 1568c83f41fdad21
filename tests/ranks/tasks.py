"""What ranks are told to do together: tiny pipelines, spread over all of them, cached and with faults."""

from __future__ import annotations

import functools
import importlib.util
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mixcache

ARGUMENTS = {"height": 32, "width": 32}
"""Eight tokens."""


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


def spread(transformer: Any, **settings: Any) -> None:
    """Tokens over all ranks."""
    import torch.distributed as dist
    from diffusers import ContextParallelConfig

    transformer.set_attention_backend("native")
    degree = {"ulysses_degree": dist.get_world_size()}
    transformer.enable_parallelism(config=ContextParallelConfig(**degree | settings))


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


def run(pipeline: Any, handle: Any, num_steps: int = 16, **arguments: Any) -> Clip:
    before, begun = len(handle.trace), time.perf_counter()
    counts = counted(handle)
    latents = tiny().run_pipeline(pipeline, num_steps=num_steps, **ARGUMENTS | arguments)
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


def alone_and_spread(
    policy: Any, settings: dict[str, Any], *, num_heads: int = 4, anything: bool = False, scheduler: str = "euler"
) -> tuple[Any, Any, Clip, Clip]:
    """The clip plain and cached, on this rank alone and on all."""
    pipeline = wan(num_heads, scheduler)
    plain = tiny().run_pipeline(pipeline, num_steps=16, **ARGUMENTS)
    with mixcache.enable(pipeline, policy, **settings) as handle:
        alone = run(pipeline, handle)
    spread(pipeline.transformer, **({"ulysses_anything": True} if anything else {}))
    plain_spread = tiny().run_pipeline(pipeline, num_steps=16, **ARGUMENTS)
    with mixcache.enable(pipeline, policy, **settings) as handle:
        together = run(pipeline, handle)
    return plain, plain_spread, alone, together


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


def on_a_group(policy: str, settings: dict[str, Any]) -> Clip:
    """Every rank runs all of the transformer, and one decides."""
    import torch.distributed as dist

    pipeline = wan()
    with mixcache.enable(pipeline, policy, group=dist.group.WORLD, **settings) as handle:
        return run(pipeline, handle)
