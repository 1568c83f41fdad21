"""The wall: a page of all clips with search and sort, which works from the file system with ten thousand of them.

The page is `index.html`; what it shows lies beside it in `wall.js`, a line for each clip, which is written as the
records are read: neither this process nor the browser holds more than a line of text for a clip.
"""

from __future__ import annotations

import json
import os
from typing import Any

from mixcache.batch.folder import Folder, scratch
from mixcache.report import figures
from mixcache.report.template import rendered

TEMPLATE = "wall.html.j2"
COLUMNS = ("id", "prompt", "seed", "saving", "speedup", "wished", "seconds", "timeline", "psnr", "error")


def write_wall(folder: Folder) -> None:
    """Writes the page and its data from what is on the disk now; OSError where that is full."""
    mark = f"{os.getpid()}{folder.run}"
    data = folder.path / "wall.js"
    beside = scratch(data, mark)
    try:
        with beside.open("w", encoding="utf-8") as file:
            file.write(f"const COLUMNS = {json.dumps(COLUMNS)};\nconst ROWS = [\n")
            for record in folder.records():
                file.write(json.dumps(_row(folder, record), separators=(",", ":")) + ",\n")
            file.write("];\n")
        beside.replace(data)
    finally:
        beside.unlink(missing_ok=True)
    batch = folder.batch
    settings = ", ".join(f"{name} {figures.setting(value)}" for name, value in batch.settings.items())
    page = rendered(TEMPLATE, title=folder.path.name, model=batch.model, policy=batch.policy, settings=settings)
    folder.write(folder.path / "index.html", page, mark)


def _row(folder: Folder, record: dict[str, Any]) -> list[Any]:
    job, error = record["job"], record.get("error")
    if error is not None:
        return [record["id"], job["prompt"], job["seed"], None, None, None, None, "", None, error]
    verified = folder.verified(record["id"])
    psnr = None if verified is None else ("identical" if verified["psnr_db"] is None else verified["psnr_db"])
    speedup = record["speedup"]
    seconds = round(record["seconds"]["denoising"], 3)
    return [
        record["id"],
        job["prompt"],
        job["seed"],
        round(record["saving"], 4),
        None if speedup is None else round(speedup, 2),
        record["wished_speedup"],
        seconds,
        record["timeline"],
        round(psnr, 2) if isinstance(psnr, float) else psnr,
        None,
    ]
