"""Loads the example workflows into ComfyUI's own page in a real browser, and draws the pictures of docs/comfyui.md.

    build/comfyui/venv/bin/python comfyui/workflows/pictures.py --browser chromium --out docs/comfyui

What the page would post of each is held against what the tests post; the tiny one is run, and drawn with its results.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "tests"))
from browser import Server  # noqa: E402
from forms import posted  # noqa: E402

SIZE = (1900, 900)
DRAWN = ("wan21", "wan22-two-experts", "tiny")
SETTINGS = {"Comfy.TutorialCompleted": True, "Comfy.Minimap.Visible": False, "Comfy.Graph.CanvasInfo": False}
"""Of the page: nothing lies over the graph."""
FOLDERS = {
    "UNETLoader": "diffusion_models",
    "CLIPLoader": "text_encoders",
    "DualCLIPLoader": "text_encoders",
    "VAELoader": "vae",
    "CheckpointLoaderSimple": "checkpoints",
}
FIT = """(() => {
  const nodes = app.graph._nodes, canvas = app.canvas, ds = canvas.ds;
  const left = Math.min(...nodes.map(n => n.pos[0])), top = Math.min(...nodes.map(n => n.pos[1] - 40));
  const right = Math.max(...nodes.map(n => n.pos[0] + n.size[0]));
  const low = Math.max(...nodes.map(n => n.pos[1] + n.size[1]));
  const [wide, high] = [canvas.canvas.clientWidth - 120, canvas.canvas.clientHeight - 160];
  ds.scale = Math.min(wide / (right - left), high / (low - top), 1);
  ds.offset = [80 / ds.scale - left + 20, 90 / ds.scale - top + 20];
  canvas.setDirty(true, true);
})()"""


class Page:
    """One page of a browser, by its debugging port."""

    def __init__(self, socket: Any) -> None:
        self._socket, self._number = socket, 0

    async def send(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._number += 1
        await self._socket.send_json({"id": self._number, "method": method, "params": parameters})
        while True:
            answer = await self._socket.receive_json()
            if answer.get("id") == self._number:
                return answer.get("result", answer)

    async def run(self, script: str) -> Any:
        answer = await self.send("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in answer:
            raise RuntimeError(json.dumps(answer["exceptionDetails"])[:2000])
        return answer["result"].get("value")

    async def until(self, script: str, seconds: float = 300) -> None:
        for _ in range(int(seconds * 2)):
            if await self.run(script):
                return
            await asyncio.sleep(0.5)
        raise TimeoutError(script)

    async def picture(self, path: Path) -> None:
        answer = await self.send("Page.captureScreenshot", format="png")
        path.write_bytes(base64.b64decode(answer["data"]))


async def draw(server: Server, browser: str, out: Path, folder: Path) -> None:
    import aiohttp

    for name, value in SETTINGS.items():
        server.post(f"/settings/{name}", value)
    for path in HERE.glob("*.json"):  # names that the page would else call missing
        for entry in json.loads(path.read_text())["nodes"]:
            for value in entry["widgets_values"] if entry["type"] in FOLDERS else ():
                if str(value).endswith(".safetensors"):
                    weights = server.folder / "models" / FOLDERS[entry["type"]] / value
                    weights.parent.mkdir(parents=True, exist_ok=True)
                    weights.touch()
    kinds = server.get("/object_info")
    command = [browser, "--headless=new", "--no-sandbox", "--disable-gpu", "--remote-debugging-port=0"]
    command += [f"--user-data-dir={folder}", f"--window-size={SIZE[0]},{SIZE[1]}", f"http://{server.address}"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        port_file = folder / "DevToolsActivePort"
        while not port_file.is_file() or not port_file.read_text().strip():
            await asyncio.sleep(0.3)
        port = port_file.read_text().split()[0]
        async with aiohttp.ClientSession() as session:
            async with session.get(f"http://127.0.0.1:{port}/json") as answer:
                target = next(entry for entry in await answer.json() if entry["type"] == "page")
            async with session.ws_connect(target["webSocketDebuggerUrl"], max_msg_size=2**27) as socket:
                await visit(Page(socket), kinds, out)
    finally:
        process.terminate()
        process.wait()


async def visit(page: Page, kinds: dict[str, Any], out: Path) -> None:
    await page.until("!!(window.app && app.graph && app.canvas && document.readyState === 'complete')")
    await asyncio.sleep(5)
    for path in sorted(HERE.glob("*.json")):
        workflow = path.read_text()
        await page.run(f"app.loadGraphData({workflow})")
        await asyncio.sleep(2)
        prompt = json.loads(await page.run("app.graphToPrompt().then(found => JSON.stringify(found.output))"))
        for key, entry in posted(json.loads(workflow), kinds).items():
            for name, value in entry["inputs"].items():
                assert prompt[key]["inputs"][name] == value, (path.stem, entry["class_type"], name, value, prompt[key])
        print(path.stem, "loads, and posts what the tests post")
        await page.run(
            "document.querySelectorAll('.p-dialog-close-button, .p-toast-close-button').forEach(b => b.click())"
        )
        await asyncio.sleep(1)
        if path.stem == "tiny":
            await page.run("app.queuePrompt(0)")
            await page.until(
                "app.graph._nodes.filter(n => n.type === 'PreviewImage').every(n => n.imgs && n.imgs.length)"
            )
        await page.run(FIT)
        await asyncio.sleep(2)
        if path.stem in DRAWN:
            await page.picture(out / f"{path.stem}.png")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--browser", default="chromium")
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as made, Server(Path(made) / "comfyui") as running:
        asyncio.run(draw(running, given.browser, given.out, Path(made) / "browser"))
