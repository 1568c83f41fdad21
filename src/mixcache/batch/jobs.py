"""What a clip is made from, as frozen records named by their content; and the files that list them. Pure Python."""

from __future__ import annotations

import hashlib
import json
import reprlib
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from mixcache import zoo
from mixcache.arguments import parse_size
from mixcache.names import unknown_name
from mixcache.store import key_of

MAX_SEED = 2**63 - 1
LIMITS = {
    "seed": (int, 0, MAX_SEED),
    "width": (int, 1, 16384),
    "height": (int, 1, 16384),
    "num_frames": (int, 1, 100_000),
    "num_inference_steps": (int, 1, 10_000),
    "guidance_scale": (float, 0, 1000),
}
KEYS = {
    "prompt": "prompt",
    "seed": "seed",
    "frames": "num_frames",
    "steps": "num_inference_steps",
    "guidance": "guidance_scale",
    "negative_prompt": "negative_prompt",
}
"""Of a line of a job file, and the fields that they set; and `size`, which sets two."""
FILE_SETTINGS = ("profile", "trace")
"""Settings of policies that name a file; what is in it counts, not where it lies."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Batch:
    """What all jobs of an out folder share."""

    model: str
    """Built-in model, or the folder of a pipeline."""
    policy: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    """These two as those of `mixcache.enable`."""
    dtype: str | None = None
    """As that of `open_model`."""
    digests: Mapping[str, str] = field(default_factory=dict)
    """Of the model's files, and of those named in the settings."""

    @classmethod
    def of(cls, model: str, policy: str, settings: Mapping[str, Any], dtype: str | None = None) -> Batch:
        """With the digests taken now, and paths made absolute; ValueError where a file or folder is not there."""
        where = model if model in zoo.BUILT_IN else str(Path(model).resolve())
        paths = {name: str(Path(settings[name]).resolve()) for name in FILE_SETTINGS if name in settings}
        digests = {"model": model_digest(model)} | {name: digest(Path(path)) for name, path in paths.items()}
        return cls(model=where, policy=policy, settings=dict(settings) | paths, dtype=dtype, digests=digests)

    @property
    def case(self) -> dict[str, Any]:
        """What makes it this batch and no other; where its files lie does not."""
        settings = {name: self.digests.get(name, value) for name, value in self.settings.items()}
        return {"model": self.digests["model"], "policy": self.policy, "settings": settings, "dtype": self.dtype}

    @property
    def key(self) -> str:
        return key_of(self.case)


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """One clip to be made; None leaves a value to the model. ValueError for one that is out of range."""

    batch: str
    """Key of the batch: another model or setting gives the job another name."""
    prompt: str = ""
    seed: int = 0
    width: int | None = None
    height: int | None = None
    num_frames: int | None = None
    num_inference_steps: int | None = None
    guidance_scale: float | None = None
    negative_prompt: str | None = None

    def __post_init__(self) -> None:
        for name in ("prompt", "negative_prompt"):
            value = getattr(self, name)
            if not isinstance(value, str) and not (value is None and name != "prompt"):
                raise ValueError(f"{name}={value!r} is no text")
        for name, (kind, low, high) in LIMITS.items():
            value = getattr(self, name)
            if value is None and name != "seed":
                continue
            is_number = isinstance(value, (int, kind)) and not isinstance(value, bool)
            if not is_number or not low <= value <= high:  # NaN is neither
                word = "a whole number" if kind is int else "a number"
                raise ValueError(f"{name}={reprlib.repr(value)} must be {word} from {low} to {high}")

    @property
    def id(self) -> str:
        """24 hexadecimal digits of the hash of all fields: a name that no file can choose."""
        return key_of(asdict(self))

    @property
    def arguments(self) -> dict[str, Any]:
        """Of the pipeline's call, those that are given."""
        names = (f.name for f in fields(self) if f.name not in ("batch", "prompt", "seed"))
        return {name: value for name in names if (value := getattr(self, name)) is not None}


@dataclass(frozen=True, kw_only=True, slots=True)
class BadLine:
    """A line that is no job."""

    number: int
    """From 1; in Parquet, of the row."""
    message: str


def read_jobs(path: Path, defaults: Job) -> Iterator[Job | BadLine]:
    """The jobs of a file, one at a time; what a line leaves open, or null, is as in `defaults`.

    JSON lines (`.jsonl`, `.ndjson`, `.json`), Parquet (`.parquet`), or else a text file with a prompt a line.
    ValueError where the file cannot be read.
    """
    rows = _parquet_rows(path) if path.suffix == ".parquet" else _lines(path)
    for number, row in rows:
        try:
            if isinstance(row, Mapping):
                yield _job(row, defaults)
            elif row.strip():
                is_json = path.suffix in (".jsonl", ".ndjson", ".json")
                yield _job(_object(row) if is_json else {"prompt": row.decode("utf-8-sig").strip()}, defaults)
        except ValueError as error:
            yield BadLine(number=number, message=str(error))


def _lines(path: Path) -> Iterator[tuple[int, Any]]:
    try:
        with path.open("rb") as file:
            yield from enumerate(file, 1)
    except OSError as error:
        raise ValueError(f"the jobs {path} cannot be read: {error.strerror}") from error


def _parquet_rows(path: Path) -> Iterator[tuple[int, Any]]:
    try:
        from pyarrow import ArrowException
        from pyarrow.parquet import ParquetFile
    except ImportError:
        raise ValueError(f"{path} needs pyarrow, which is not installed: pip install pyarrow") from None
    number = 0
    try:
        with ParquetFile(path) as file:
            for group in file.iter_batches(batch_size=256):
                for row in group.to_pylist():
                    yield (number := number + 1), row
    except (OSError, ArrowException) as error:
        raise ValueError(f"the jobs {path} cannot be read: {str(error).splitlines()[0]}") from error


def _object(line: bytes) -> Mapping[str, Any]:
    try:
        row = json.loads(line.strip())
    except json.JSONDecodeError as error:
        raise ValueError(f"is not JSON: {error.msg} at character {error.pos + 1}") from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"is not JSON: {error}") from None
    if not isinstance(row, Mapping):
        raise ValueError('is no JSON object, such as {"prompt": "a cat", "seed": 1}')
    return row


def _job(row: Mapping[str, Any], defaults: Job) -> Job:
    values: dict[str, Any] = {}
    for name, value in row.items():
        if value is None and name in (*KEYS, "size"):
            continue  # Parquet has a null where another row has a value
        if name == "size":
            values["width"], values["height"] = parse_size(value)
        elif name in KEYS:
            values[KEYS[name]] = value
        else:
            raise ValueError(unknown_name("key", name, (*KEYS, "size")))
    job = replace(defaults, **values)
    if not job.prompt.strip():
        raise ValueError("has no prompt")
    return job


def model_digest(model: str) -> str:
    """Of all files of a built-in model, or of a pipeline's folder; ValueError where it is not there."""
    folder = zoo.folder(model) if model in zoo.BUILT_IN else Path(model)
    if not folder.is_dir():
        raise ValueError(unknown_name("model or folder", model, zoo.BUILT_IN))
    names = sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file() and path.suffix != ".md")
    seen = [name for name in names if not any(part.startswith(".") for part in name.parts)]
    return key_of([[name.as_posix(), digest(folder / name)] for name in seen])


def digest(path: Path) -> str:
    """SHA-256 of a file; ValueError where it cannot be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from error
