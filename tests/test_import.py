from __future__ import annotations

import subprocess
import sys

import pytest

SNIPPET = """
import importlib, sys
importlib.import_module({module!r})
print(",".join(name for name in ("torch", "diffusers", "transformers", "numpy") if name in sys.modules))
"""


@pytest.mark.parametrize(
    "module",
    [
        "mixcache",
        "mixcache.policies",
        "mixcache.trace",
        "mixcache.config",
        "mixcache.decision",
        "mixcache.summary",
        "mixcache.cli",
    ],
)
def test_importing_loads_no_torch(module: str) -> None:
    result = subprocess.run(
        [sys.executable, "-c", SNIPPET.format(module=module)], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == ""


def test_the_policies_are_names_of_the_package() -> None:
    import mixcache

    assert {policy.__name__ for policy in (*mixcache.POLICIES.values(), mixcache.Bounded)} <= set(mixcache.__all__)
    assert mixcache.POLICIES["hindsight"] is mixcache.Hindsight


def test_public_names_are_there() -> None:
    import mixcache

    assert [name for name in mixcache.__all__ if not hasattr(mixcache, name)] == []
    with pytest.raises(AttributeError, match="module 'mixcache' has no attribute 'enabel'"):
        mixcache.enabel  # noqa: B018
