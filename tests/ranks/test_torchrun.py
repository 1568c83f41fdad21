"""The example of docs/parallel.md, as it stands there, on two ranks of torchrun."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from crew import DEADLINE_SECONDS

pytestmark = pytest.mark.ranks
PAGE = Path(__file__).parents[2] / "docs" / "parallel.md"
LAST_LINE = "print(handle.summary())\n"
MORE = """
import hashlib, sys
counts = handle.summary().granularity_counts
found = hashlib.sha256(clip.numpy().tobytes()).hexdigest()
sys.stdout.write(f"clip {found} {counts['step']} {handle._ranks is not None}\\n")
"""
"""What the test asks of each rank at the end."""


def clips(folder: Path, *launcher: str) -> list[list[str]]:
    """Of each rank: the digest of its clip, how many steps were cached, whether the ranks agreed."""
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert code.endswith(LAST_LINE)
    (folder / "clip.py").write_text(code + MORE)
    command = [sys.executable, *launcher, "clip.py"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=DEADLINE_SECONDS, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    return [line.split()[1:] for line in done.stdout.splitlines() if line.startswith("clip ")]


def test_the_example_runs_on_two_ranks(tmp_path: Path) -> None:
    first, second = clips(tmp_path, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    assert first == second
    _, num_cached, has_agreed = first
    assert int(num_cached) > 0
    assert has_agreed == "True"
