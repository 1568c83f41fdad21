"""Takes everything away that a peer put on a model, and keeps its messages off the terminal."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator

import torch
from diffusers import HookRegistry

REPLACED = ("forward", "_diffusers_hook", "_cache_config")
"""Attributes of a module that peers set to something else."""


@contextlib.contextmanager
def restored(model: torch.nn.Module) -> Iterator[None]:
    """Afterwards each module of the model has the forward, hooks and private attributes that it had before, and its
    children in the same order, also after an exception."""
    attributes = {module: dict(vars(module)) for module in model.modules()}
    children = {module: list(module._modules) for module in attributes}
    registries = {
        registry: (dict(registry.hooks), list(registry._hook_order), list(registry._fn_refs))
        for module in attributes
        if isinstance(registry := getattr(module, "_diffusers_hook", None), HookRegistry)
    }
    try:
        yield
    finally:
        for module, before in attributes.items():
            added = [name for name in vars(module) if name not in before]
            for name in added:
                if name.startswith("_") or name in REPLACED:
                    del vars(module)[name]
            vars(module).update({name: before[name] for name in REPLACED if name in before})
            for name in children[module]:
                # whatever replaced a child for a while has put it last
                module._modules[name] = module._modules.pop(name)
        for registry, (hooks, order, references) in registries.items():
            registry.hooks, registry._hook_order, registry._fn_refs = hooks, order, references
            registry.invalidate_child_registries_cache()


@contextlib.contextmanager
def quiet(*packages: str) -> Iterator[None]:
    """Only errors of these packages' loggers come through."""
    names = [name for name in logging.root.manager.loggerDict if name.split(".")[0] in packages]
    levels = {logger: logger.level for logger in map(logging.getLogger, [*packages, *names])}
    for logger in levels:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in levels.items():
            logger.setLevel(level)
