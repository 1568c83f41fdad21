"""One run of one transformer, whoever calls it: what a host (a pipeline's hooks, a loop of one's own) needs to cache.

A host makes an `Engine` for each run and transformer, brings each call as a `CallInfo` and a `Run`, the solver's steps
to `solve` and `solved`, and says when the run is over (`end`). It knows no host. docs/own-loop.md shows one.
"""

from __future__ import annotations

from mixcache.core.calls import CallInfo, End, Mix, Span
from mixcache.core.engine import Engine
from mixcache.core.observer import Observer
from mixcache.core.run import Run, Solver

__all__ = ["CallInfo", "End", "Engine", "Mix", "Observer", "Run", "Solver", "Span"]
