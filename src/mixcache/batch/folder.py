"""The out folder: what lies where, and what is done. Pure Python.

DIR/batch.json              the case: model, policy and settings that all clips share
DIR/jobs/3f/ID.mp4          a clip, in one of 256 folders by the first two digits of its name
DIR/jobs/3f/ID.json         what is known of it; written last: what has it is done
DIR/jobs/3f/ID.failed.json  why there is none
DIR/jobs/3f/ID.attempt-1    somebody is at work, or died of it (attempts.py)
DIR/index.html, wall.js     the wall of clips
"""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from mixcache.batch.jobs import Batch, Job

CLIP, VERIFY = "clip", "verify"
SCRATCH = "writing"


class Standing(Enum):
    """Why a task is not begun."""

    DONE = "done"
    FAILED = "failed"
    GIVEN_UP = "given_up"
    BUSY = "busy"


@dataclass(frozen=True, kw_only=True, slots=True)
class Task:
    """One piece of work: a job's clip, or that clip held against the plain one."""

    job: Job
    kind: str = CLIP

    @property
    def name(self) -> str:
        """Under which its files lie."""
        return self.job.id if self.kind == CLIP else f"{self.job.id}.{self.kind}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Folder:
    """An out folder as one run of a driver sees it; goes to the workers."""

    path: Path
    """Absolute."""
    batch: Batch
    run: str
    """Name of the file by which workers see that this is the driver's folder."""
    began: float
    """When the run began, by the clock of the file system."""

    @classmethod
    def open(cls, path: Path, batch: Batch, shared: Mapping[str, Any]) -> Folder:
        """Makes the folder, or enters it; ValueError where it is of another batch, or cannot be written. `shared` is
        what jobs have where their line leaves it open."""
        case = {"mixcache_batch": 1, **batch.case, **shared, "model_name": batch.model}
        marker = path.resolve() / f".run-{secrets.token_hex(6)}"
        note = marker.with_name("batch.json")
        try:
            path.mkdir(parents=True, exist_ok=True)
            marker.touch()
            folder = cls(path=marker.parent, batch=batch, run=marker.name, began=marker.stat().st_mtime)
            strangers = [found.name for found in folder.path.iterdir() if not found.name.startswith(".")]
            if not note.exists():  # asked last: another driver may just have begun
                if strangers:
                    raise ValueError(f"{path} is no batch's folder: {strangers[0]} is in it; --out names another")
                folder.write(note, [_text(case)], marker.name)
            found = json.loads(note.read_text())
            different = [name for name in case if name != "model_name" and found.get(name) != case[name]]
            if different:
                name = different[0]
                by_name = name == "model" and found.get("model_name") != batch.model  # it says more than a hash
                a, b = (json.dumps(of.get("model_name" if by_name else name)) for of in (found, case))
                raise ValueError(f"{path} is of a batch with another {name} ({a}, not {b}); --out names another folder")
        except OSError as error:
            raise ValueError(f"the folder {path} cannot be written: {error.strerror}") from error
        except json.JSONDecodeError:
            raise ValueError(f"{note} is no note of a batch; --out names another folder") from None
        except ValueError:
            marker.unlink()
            raise
        return folder

    def close(self) -> None:
        """The run is over."""
        (self.path / self.run).unlink(missing_ok=True)

    def now(self) -> float:
        """By the clock of the file system, which may not be ours."""
        marker = self.path / self.run
        marker.touch()
        return marker.stat().st_mtime

    @property
    def is_shared(self) -> bool:
        """Whether this is the folder that the driver sees, and not one of the same name on another machine."""
        return (self.path / self.run).exists()

    def file(self, name: str, ending: str) -> Path:
        """A file of the task of that name."""
        return self.path / "jobs" / name[:2] / f"{name}{ending}"

    def has(self, name: str) -> bool:
        """Whether it is done."""
        return self.file(name, ".json").exists()

    def failure(self, name: str) -> dict[str, Any] | None:
        """The record of a failure that stands: from this run or one beside it, or of a task that was given up. Others
        are tried again."""
        path = self.file(name, ".failed.json")
        if (record := read(path)) is None or record["given_up"]:
            return record
        return record if path.stat().st_mtime >= self.began else None

    def standing(self, name: str) -> Standing | None:
        """How it ended; None where it is still to be done."""
        if self.has(name):
            return Standing.DONE
        if (failure := self.failure(name)) is None:
            return None
        return Standing.GIVEN_UP if failure["given_up"] else Standing.FAILED

    def keep(self, name: str, record: Mapping[str, Any], mark: str, ending: str = ".json") -> None:
        """Writes a record, whole."""
        self.write(self.file(name, ending), [_text(record)], mark)
        if ending == ".json":
            self.file(name, ".failed.json").unlink(missing_ok=True)

    def write(self, path: Path, parts: Iterable[str], mark: str) -> None:
        """Beside its place, onto the disk, and renamed; `mark` is of the writer alone."""
        beside = scratch(path, mark)
        try:
            with beside.open("w", encoding="utf-8") as file:
                file.writelines(parts)
            settle(beside, path)
        finally:
            beside.unlink(missing_ok=True)

    def records(self) -> Iterator[dict[str, Any]]:
        """Of all clips and failed jobs, one at a time."""
        for shard in sorted((self.path / "jobs").glob("??")):
            for path in sorted(shard.glob("*.json")):
                if ".verify." in path.name or SCRATCH in path.name:
                    continue
                record = read(path)
                if record is not None and not (path.name.endswith(".failed.json") and self.has(record["id"])):
                    yield record

    def verified(self, name: str) -> dict[str, Any] | None:
        """What was found where the clip of that name was held against the plain one."""
        return read(self.file(f"{name}.{VERIFY}", ".json"))


def read(path: Path) -> dict[str, Any] | None:
    """A record; None where there is none, or none that is whole."""
    try:
        return dict(json.loads(path.read_text()))
    except (OSError, ValueError):
        return None


def scratch(path: Path, mark: str) -> Path:
    """Where a file is written before it is whole; `mark` is of the writer alone."""
    return path.with_name(f"{mark}.{SCRATCH}.{path.name}")  # the ending stays: it names the format of a film


def settle(beside: Path, path: Path) -> None:
    """Renames a file once its content is on the disk: where that is full, some file systems say so only then."""
    with beside.open("rb") as file:
        os.fsync(file.fileno())
    beside.replace(path)


def _text(record: Mapping[str, Any]) -> str:
    return json.dumps(record, separators=(",", ":"), default=str) + "\n"
