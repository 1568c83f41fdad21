"""The real server on a loopback port, and a client that does what a user's browser does."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
PACKS = {"ComfyUI-MixCache": HERE.parent, "tiny": HERE / "tiny"}
"""Folders of `custom_nodes`."""
SECONDS = 300
"""For which anything is waited for."""


class Refused(Exception):  # noqa: N818
    """A workflow that the server would not take: what its window would show."""


class Server:
    """`with Server(folder) as server:`; `folder` is where it writes."""

    def __init__(self, folder: Path, *, packs: dict[str, Path] = PACKS) -> None:
        self.folder = folder
        self.log = folder / "server.log"
        nodes = folder / "custom_nodes"
        nodes.mkdir(parents=True)
        for name, pack in packs.items():
            (nodes / name).symlink_to(pack.resolve(), target_is_directory=True)

    def __enter__(self) -> Server:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.address = f"127.0.0.1:{port}"
        self._output = self.log.open("w")
        command = [sys.executable, HERE / "serve.py", str(port), self.folder.resolve()]
        environment = os.environ | {"HF_HUB_OFFLINE": "1"}
        self._process = subprocess.Popen(command, stdout=self._output, stderr=subprocess.STDOUT, env=environment)
        end = time.monotonic() + SECONDS
        while True:
            try:
                self.get("/system_stats")
                return self
            except OSError:
                if self._process.poll() is not None or time.monotonic() > end:
                    self.__exit__()
                    raise RuntimeError(f"the server did not start:\n{self.log.read_text()[-4000:]}") from None
                time.sleep(0.3)

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
        self._output.close()

    def get(self, path: str) -> Any:
        with urllib.request.urlopen(f"http://{self.address}{path}", timeout=60) as answer:
            return json.load(answer)

    def post(self, path: str, body: Any) -> Any:
        data = json.dumps(body).encode()
        request = urllib.request.Request(
            f"http://{self.address}{path}", data=data, headers={"Content-Type": "application/json"}
        )
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                content = answer.read()
                return json.loads(content) if content else None
        except urllib.error.HTTPError as error:
            raise Refused(error.read().decode()) from None

    def queue(self, workflow: dict[str, Any], **more: Any) -> str:
        """Posts a workflow in the API's form; the prompt's name. Refused where it is not valid."""
        return self.post("/prompt", {"prompt": workflow, **more})["prompt_id"]

    def wait(self, prompt: str) -> dict[str, Any]:
        """The history of a prompt that is done."""
        end = time.monotonic() + SECONDS
        while time.monotonic() < end:
            history = self.get(f"/history/{prompt}")
            if history:
                return history[prompt]
            time.sleep(0.05)
        raise TimeoutError(f"prompt {prompt} is not done after {SECONDS} s:\n{self.log.read_text()[-4000:]}")

    def run(self, workflow: dict[str, Any]) -> dict[str, Any]:
        """Outputs by node of a workflow that succeeds."""
        history = self.wait(self.queue(workflow))
        if history["status"]["status_str"] != "success":
            raise AssertionError(self.error_of(history))
        return history["outputs"]

    def error(self, workflow: dict[str, Any]) -> str:
        """What the error window says of a workflow that fails while it runs."""
        history = self.wait(self.queue(workflow))
        assert history["status"]["status_str"] == "error"
        return self.error_of(history)

    @staticmethod
    def error_of(history: dict[str, Any]) -> str:
        return next(
            data["exception_message"] for kind, data in history["status"]["messages"] if kind == "execution_error"
        )

    def file(self, output: dict[str, Any], kind: str) -> Path:
        """The file that a node has written."""
        entry = output[kind][0]
        return self.folder / "output" / entry["subfolder"] / entry["filename"]
