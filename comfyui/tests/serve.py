"""The real server: `python serve.py PORT FOLDER`, FOLDER with the `custom_nodes` it is to have."""

from __future__ import annotations

import os
import runpy
import sys

from boot import COMFYUI, boot

if __name__ == "__main__":
    port, folder = sys.argv[1:]
    boot()
    sys.argv = ["main.py", "--cpu", "--listen", "127.0.0.1", "--port", port, "--base-directory", folder]
    sys.argv += ["--database-url", "sqlite:///:memory:", "--disable-api-nodes"]
    os.chdir(COMFYUI)
    runpy.run_path("main.py", run_name="__main__")
