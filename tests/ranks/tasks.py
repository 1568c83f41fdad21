"""What ranks are told to do together: tiny pipelines, spread over all of them, cached and with faults."""

from __future__ import annotations

import functools
import importlib.util
import sys
import time
from dataclasses import dataclass, field
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
    num_steps: int = 0
    num_calls_in_full: int = 0
    seconds: float = 0.0
    more: dict[str, Any] = field(default_factory=dict)


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


def run(pipeline: Any, handle: Any, num_steps: int = 16, **arguments: Any) -> Clip:
    before, begun = len(handle.trace), time.perf_counter()
    ranks = handle._ranks
    bytes_before = 0 if ranks is None else ranks.num_bytes
    latents = tiny().run_pipeline(pipeline, num_steps=num_steps, **ARGUMENTS | arguments)
    entries = list(handle.trace)[before:]
    return Clip(
        latents=latents,
        decisions=[f"{entry.granularity} {entry.predictor}" for entry in entries],
        corrected=[entry.num_corrected for entry in entries],
        entries=[entry.to_json() for entry in entries],
        num_bytes=0 if handle._ranks is None else handle._ranks.num_bytes - bytes_before,
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
