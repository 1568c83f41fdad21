"""The wall: a page of all clips with search and sort, which works from the file system with ten thousand of them.

The page is `index.html`; what it shows lies beside it in `wall.js`, a line for each clip, which is written as the
records are read: neither this process nor the browser holds more than a line of text for a clip.
"""

from __future__ import annotations

import itertools
import json
from typing import Any

from mixcache.batch.folder import Folder
from mixcache.report import figures
from mixcache.report.template import rendered

TEMPLATE = "wall.html.j2"
COLUMNS = ("id", "prompt", "seed", "saving", "speedup", "wished", "seconds", "timeline", "psnr", "error")


def write_wall(folder: Folder) -> None:
    """Writes the page and its data from what is on the disk now; OSError where that is full."""
    rows = (json.dumps(_row(folder, record), separators=(",", ":")) + ",\n" for record in folder.records())
    head = f"const COLUMNS = {json.dumps(COLUMNS)};\nconst ROWS = [\n"
    folder.write(folder.path / "wall.js", itertools.chain([head], rows, ["];\n"]), folder.run)
    batch = folder.batch
    settings = ", ".join(f"{name} {figures.setting(value)}" for name, value in batch.settings.items())
    page = rendered(TEMPLATE, title=folder.path.name, model=batch.model, policy=batch.policy, settings=settings)
    folder.write(folder.path / "index.html", [page], folder.run)


def _row(folder: Folder, record: dict[str, Any]) -> list[Any]:
    row = {"id": record["id"], **record["job"], "error": record.get("error"), "timeline": ""}
    if row["error"] is None:
        row |= {name: record[name] for name in ("saving", "speedup", "timeline")}
        row |= {"wished": record["wished_speedup"], "seconds": record["seconds"]["denoising"]}
    if (verified := folder.verified(record["id"])) is not None:
        row["psnr"] = "identical" if verified["psnr_db"] is None else verified["psnr_db"]
    values = (row.get(name) for name in COLUMNS)
    return [round(value, 4) if isinstance(value, float) else value for value in values]
