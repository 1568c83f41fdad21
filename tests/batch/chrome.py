"""A headless Chromium, told what to do over its pipe; no package is needed."""

from __future__ import annotations

import base64
import itertools
import json
import os
import shutil
import subprocess
import time
from pathlib import Path
from types import TracebackType
from typing import Any

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
MISSING = "no Chromium here (on Debian: apt-get install chromium)"


class Chrome:
    """One page in a browser of its own; a context manager."""

    def __init__(self, profile: Path) -> None:
        read_theirs, self._write = os.pipe()
        self._read, write_theirs = os.pipe()
        options = "--headless=new --no-sandbox --disable-gpu --disable-dev-shm-usage"
        command = (
            f"exec {CHROMIUM} {options} --remote-debugging-pipe --window-size=1400,1000 --user-data-dir={profile} "
            f"about:blank 3<&{read_theirs} 4>&{write_theirs}"
        )
        self._process = subprocess.Popen(
            ["bash", "-c", command],
            pass_fds=(read_theirs, write_theirs),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(read_theirs)
        os.close(write_theirs)
        self._numbers, self._buffer = itertools.count(1), b""
        self.session: str | None = None
        self.errors: list[str] = []
        """What went wrong on the page."""
        pages = [t for t in self.tell("Target.getTargets")["targetInfos"] if t["type"] == "page"]
        self.session = self.tell("Target.attachToTarget", targetId=pages[0]["targetId"], flatten=True)["sessionId"]
        self.tell("Page.enable")
        self.tell("Runtime.enable")

    def __enter__(self) -> Chrome:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        os.close(self._write)
        os.close(self._read)
        self._process.terminate()
        self._process.wait()

    def tell(self, method: str, **parameters: Any) -> dict[str, Any]:
        number = next(self._numbers)
        message: dict[str, Any] = {"id": number, "method": method, "params": parameters}
        if self.session is not None:
            message["sessionId"] = self.session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("method") == "Runtime.exceptionThrown":
                self.errors.append(json.dumps(answer["params"]["exceptionDetails"])[:500])
            if answer.get("id") == number:
                if "error" in answer:
                    raise RuntimeError(answer["error"]["message"])
                return dict(answer["result"])

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            data = os.read(self._read, 1 << 20)
            if not data:
                raise RuntimeError("Chromium has ended")
            self._buffer += data
        message, _, self._buffer = self._buffer.partition(b"\0")
        return dict(json.loads(message))

    def open(self, address: str) -> float:
        """Seconds until the page is loaded."""
        start = time.monotonic()
        self.tell("Page.navigate", url=address)
        self.wait_for(f"document.readyState === 'complete' && location.href.startsWith({address[:20]!r})")
        return time.monotonic() - start

    def ask(self, expression: str) -> Any:
        """The value of an expression on the page; promises are waited for."""
        answer = self.tell("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in answer:
            raise RuntimeError(json.dumps(answer["exceptionDetails"])[:500])
        return answer["result"].get("value")

    def wait_for(self, expression: str, seconds: float = 60.0) -> None:
        end = time.monotonic() + seconds
        while not self.ask(expression):
            assert time.monotonic() < end, (
                f"{expression} did not come true; on the page: {self.ask('document.body.innerText')[:500]}"
            )
            time.sleep(0.02)

    def screenshot(self, path: Path) -> None:
        path.write_bytes(base64.b64decode(self.tell("Page.captureScreenshot")["data"]))
