"""ComfyUI in this process, for tests of single nodes, and its real server, for tests of whole workflows."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from boot import boot

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))
boot()
# the attention that takes masks of every form
sys.argv, argv = ["main.py", "--cpu", "--use-pytorch-cross-attention"], sys.argv
import comfy.options  # noqa: E402

comfy.options.enable_args_parsing()
import comfy.cli_args  # noqa: E402

sys.argv = argv
logging.getLogger().setLevel(logging.WARNING)

from browser import Server  # noqa: E402


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with Server(tmp_path_factory.mktemp("comfyui")) as running:
        yield running
