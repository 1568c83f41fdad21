"""What a long run has measured, kept line by line, so that a run cut off goes on without measuring it again."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mixcache


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
                path.write_text(f"{text}\n")
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


def write_whole(path: Path, text: str) -> None:
    """Writes a file that is never seen half written."""
    partial = path.with_name(f"{path.name}.writing")
    partial.write_text(text)
    partial.replace(path)


def key_of(identity: Any) -> str:
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:24]


def code_hash() -> str:
    """Of the source that decides, predicts and measures, and of the peers."""
    root = Path(mixcache.__file__).parent
    deciding = ("attachment", "hooks", "host", "models", "calls", "config", "decision", "engine")
    planning = ("planning", "trajectory", "profiles/__init__")
    keeping = ("corrector", "histories", "history", "measuring", "schedulers", "seen", "signals", "trace", "velocity")
    measuring = ("generation", "metrics", "bench/meter")
    files = [root / f"{name}.py" for name in (*deciding, *planning, *keeping, *measuring)]
    files += [*sorted((root / "policies").glob("*.py")), *sorted((root / "bench" / "peers").glob("*.py"))]
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:16]
