"""The file of one model: a header, and one entry for every mode that is done, kept after each of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

Entry = dict[str, Any]


class Results:
    """Entries by name ("eager/steps"), in the file `gpu-<model>.json`."""

    def __init__(self, folder: Path, header: dict[str, Any]) -> None:
        """Goes on from a file that is there; ValueError where it was measured otherwise, or is damaged."""
        self.path = folder / f"gpu-{header['model']}.json"
        self.header: dict[str, Any] = json.loads(json.dumps(header))  # as it is read back
        self.found: dict[str, Any] = {}
        """What is known of the model only after a try, such as the number of frames that fit."""
        self.entries: dict[str, Entry] = {}
        if self.path.exists():
            self._resume()

    def _resume(self) -> None:
        try:
            saved = json.loads(self.path.read_text())
            header, self.found, self.entries = saved["header"], dict(saved["found"]), dict(saved["entries"])
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{self.path} is no result to go on from; delete it to begin anew") from error
        other = [name for name, value in self.header.items() if header.get(name) != value]
        if other:
            raise ValueError(
                f"{self.path} was measured with another {' and another '.join(other)}; "
                "delete it, or take another folder for --out"
            )

    def is_done(self, name: str, *, retries_failed: bool = False) -> bool:
        """True where there is an entry, even of a failure unless those are to be tried again."""
        return name in self.entries and not (retries_failed and "failed" in self.entries[name])

    def keep(self, name: str, entry: Entry) -> None:
        """Adds an entry, and writes the file."""
        self.entries[name] = entry
        self.save()

    def save(self) -> None:
        """Writes the whole file, or leaves the old one."""
        result = {"header": self.header, "found": self.found, "entries": self.entries}
        writing = self.path.with_name(f"{self.path.name}.writing")
        writing.write_text(json.dumps(result, indent=1) + "\n")
        writing.replace(self.path)
