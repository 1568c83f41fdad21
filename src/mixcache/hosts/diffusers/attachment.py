"""enable() and disable(): puts the engine behind a pipeline's transformers and takes it away again, leaving nothing."""

from __future__ import annotations

from typing import Any

import torch

from mixcache.config import DEFAULT_POLICY, MixCacheConfig
from mixcache.core.engine import Engine
from mixcache.core.observer import Observer
from mixcache.hosts.diffusers.completing import completed
from mixcache.hosts.diffusers.denoisers import experts_of, unloaded_of
from mixcache.hosts.diffusers.handle import Handle
from mixcache.hosts.diffusers.hooks import PipelineHook, TransformerHook
from mixcache.hosts.diffusers.overlay import hooks_on
from mixcache.hosts.diffusers.parallel import group_of
from mixcache.hosts.diffusers.rows import row_for
from mixcache.policies import Policy


def enable(
    pipeline: Any, policy: str | Policy | MixCacheConfig | None = None, *, group: Any = None, **settings: Any
) -> Handle:
    """Makes a diffusers pipeline cache, until `disable`.

    `policy` is a name of `mixcache.POLICIES`, a policy object such as `mixcache.Hold(speedup=2.0)`, or a whole
    `MixCacheConfig`; `settings` are those of the policy, of the bounds around it and of the block span (see
    `MixCacheConfig`). An object has its own settings in it: beside it only bounds and span are given. Without a policy
    it is "hold", which takes `speedup=`, `quality=` or neither. Returns the handle: `.summary()`, `.trace`,
    `.profile`, `.disable()`; it is also a context manager. What a policy takes from a profile and is not given comes
    from the one that mixcache ships for this model, if there is one. `group` is a torch.distributed group of ranks that
    run one clip together; under diffusers' context parallelism it is found (docs/parallel.md).

    Raises ValueError for an unknown or wrong setting and for a pipeline that is enabled already, TypeError for one
    that is not supported and for what is no policy. Nothing is attached then.
    """
    if policy is None:
        policy = DEFAULT_POLICY
    config = policy if isinstance(policy, MixCacheConfig) else MixCacheConfig(policy=policy, settings=settings)
    if isinstance(policy, MixCacheConfig) and settings:
        raise ValueError(f"settings {', '.join(settings)} beside a MixCacheConfig; put them in its settings")
    return attach(pipeline, config, group=group)


def attach(
    pipeline: Any, config: MixCacheConfig, engine_class: type[Observer] = Engine, *, group: Any = None
) -> Handle:
    """What `enable` does, with engines of another class: they decide about, measure and answer the calls.

    Raises what `enable` does.
    """
    experts = list(experts_of(pipeline).values())
    if not experts or unloaded_of(pipeline):
        raise TypeError(_nothing_to_attach_to(pipeline))
    group_of(experts, group)
    rows = [row_for(expert, pipeline) for expert in experts]
    row = rows[0]
    if row.unsafe:
        raise TypeError(f"{type(pipeline).__name__} cannot be cached: {row.unsafe}")
    if any(handle_of(expert) for expert in experts):
        raise ValueError(
            "mixcache is enabled on this transformer already; call handle.disable() or mixcache.disable(pipe) first"
        )
    return Handle(pipeline, completed(config, experts), row, engine_class, group)


def disable(pipeline: Any) -> None:
    """Detaches what `enable` attached to this pipeline's transformer; ValueError if nothing is."""
    handles = [handle for expert in experts_of(pipeline).values() if (handle := handle_of(expert)) is not None]
    owners = [hook.owner for hook in hooks_on(pipeline) if isinstance(hook, PipelineHook)]
    handles += [owner for owner in owners if isinstance(owner, Handle)]
    if not handles:
        raise ValueError("mixcache is not enabled on this pipeline")
    for handle in handles:
        handle.disable()


def handle_of(transformer: torch.nn.Module) -> Handle | None:
    """The handle on a transformer, or on the one inside of `torch.compile(transformer)`."""
    hooks = hooks_on(getattr(transformer, "_orig_mod", transformer))
    owners = [hook.owner for hook in hooks if isinstance(hook, TransformerHook)]
    return next((owner for owner in owners if isinstance(owner, Handle)), None)


def _nothing_to_attach_to(pipeline: Any) -> str:
    """One sentence on what was given for a pipeline."""
    name = type(pipeline).__name__
    if isinstance(pipeline, Handle):
        return "this is the handle of a pipeline that was enabled, not a pipeline; enable takes the pipeline"
    if isinstance(pipeline, torch.nn.Module):
        return f"{name} is a model, not a pipeline; give the pipeline that calls it: mixcache.enable(pipe)"
    if unloaded := unloaded_of(pipeline):
        return (
            f"{name} has no {' and no '.join(unloaded)} yet: its components are not loaded; call pipe.load_components()"
        )
    return f"{name} has no transformer to attach to; mixcache takes a diffusers video pipeline"
