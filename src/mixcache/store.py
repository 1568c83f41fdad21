"""What a long run has measured, kept so that a run cut off goes on from there; and files that are written whole."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from os import PathLike
from pathlib import Path
from typing import Any


class OtherCaseError(ValueError):
    """What is there was measured of another case; the message says in what it differs."""


class Store:
    """What was measured, one JSON line each, by an identity: a list that begins with a word for its kind."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.done: dict[str, Any] = {}
        self._kinds: dict[str, str] = {}
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists():
            text = path.read_text()
            if text and not text.endswith("\n"):
                write_whole(path, f"{text}\n")
            for line in text.splitlines():
                try:
                    entry = json.loads(line)
                except json.JSONDecodeError:
                    continue  # where a run was cut off
                self._remember(entry["identity"], entry["value"])

    def _remember(self, identity: Any, value: Any) -> None:
        key = key_of(identity)
        self.done[key] = value
        self._kinds[key] = str(identity[0])

    def claim(self, case: Mapping[str, Any]) -> None:
        """Notes what all of it is measured of; OtherCaseError where what is there is of another case."""
        now = json.loads(json.dumps(case))
        before = self.get(["case"], lambda: now)
        for name, value in now.items():
            if before.get(name) != value:
                raise OtherCaseError(f"another {name} ({_short(before.get(name))}, not {_short(value)})")

    def all(self, kind: str) -> list[Any]:
        """Values whose identity begins with this word, oldest first."""
        return [self.done[key] for key, found in self._kinds.items() if found == kind]

    def has(self, identity: Any) -> bool:
        return key_of(identity) in self.done

    def keep(self, identity: Any, value: Any) -> None:
        """Keeps what was measured; plain data only."""
        with self.path.open("a") as file:
            file.write(f"{json.dumps({'key': key_of(identity), 'identity': identity, 'value': value})}\n")
        self._remember(identity, json.loads(json.dumps(value)))

    def get(self, identity: Any, measure: Callable[[], Any] | None = None) -> Any:
        """What was measured before, or is now; KeyError where it was not and `measure` is not given."""
        if not self.has(identity):
            if measure is None:
                raise KeyError(identity)
            self.keep(identity, measure())
        return self.done[key_of(identity)]


def key_of(identity: Any) -> str:
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:24]


def write_whole(path: str | PathLike[str], content: str | bytes) -> None:
    """Writes a file that is never seen half written: beside its place first. Text is UTF-8."""
    place = Path(path).resolve()  # a link stays one
    data = content.encode() if isinstance(content, str) else content
    if place.exists() and not place.is_file():
        place.write_bytes(data)  # a device or a pipe, which must not be replaced
        return
    beside = place.with_name(f"{place.name}.writing")
    beside.write_bytes(data)
    beside.replace(place)


def write_json(path: str | PathLike[str], value: Any) -> None:
    """As `write_whole`, of plain data."""
    write_whole(path, json.dumps(value, indent=1) + "\n")


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
