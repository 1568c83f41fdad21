"""One entry per denoising step, written as JSON lines and read back for replay. Pure Python."""

from __future__ import annotations

import itertools
import json
import math
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any

from mixcache.decision import Granularity
from mixcache.predictors import REUSE, Predictor, predictor_of
from mixcache.store import write_whole

FORMAT = 2
MAX_RUN = 1000
"""Steps of one run that are looked at when it is over."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Call:
    """One run of the denoiser in a step, or what stood in for it."""

    branch: str
    """Name of the cache context: "cond", "uncond"."""
    computed: bool
    """False where the transformer was not entered."""
    num_blocks: int
    """Transformer blocks that ran."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TraceEntry:
    """What happened in one step."""

    generation: int
    """Counts trajectories served by the handle, from 0."""
    step: int
    """Position in the loop, from 0."""
    num_steps: int
    """Position in the loop at which this denoiser is done: the loop's length, but for the first of two experts."""
    sigma: float
    """As the scheduler gives it."""
    granularity: Granularity
    reason: str
    predictor: Predictor = REUSE
    """Of no meaning for `compute`."""
    calls: tuple[Call, ...] = ()
    deviation: float | None = None
    distances: Mapping[Granularity, float] = field(default_factory=dict)
    """These two as in `Measurement`: of computed steps, and by policies that measure."""
    non_finite: int = 0
    """Calls of this step whose output held a NaN or an infinity; such a value is never cached."""
    held_bytes: int = 0
    """Bytes of all histories after the step."""
    num_corrected: int = 0
    """Cached steps before this computed one that were taken again with what it showed."""
    correction_degree: int | None = None
    """Of the polynomial that they were taken again through; None for one over that of each step's predictor."""

    def to_json(self) -> dict[str, Any]:
        """Plain values by the names of the fields; a deviation or distance that is not finite is left out."""
        return asdict(self) | {
            "granularity": self.granularity.value,
            "predictor": str(self.predictor),
            "calls": [asdict(call) for call in self.calls],
            "deviation": self.deviation if self.deviation is not None and math.isfinite(self.deviation) else None,
            "distances": {granularity.value: v for granularity, v in self.distances.items() if math.isfinite(v)},
        }

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> TraceEntry:
        """The entry of one JSON object; raises KeyError, TypeError or ValueError for anything else."""
        fields = dict(row)
        calls = tuple(Call(**call) for call in fields.pop("calls"))
        distances = {Granularity(name): float(value) for name, value in fields.pop("distances").items()}
        granularity = Granularity(fields.pop("granularity"))
        predictor = predictor_of(fields.pop("predictor"))
        return cls(granularity=granularity, predictor=predictor, calls=calls, distances=distances, **fields)


class Trace:
    """The entries of an attachment in the order they happened."""

    def __init__(self, entries: Iterable[TraceEntry] = (), *, num_blocks: int = 0) -> None:
        self._entries = list(entries)
        self.num_blocks = num_blocks
        """Blocks of one full call of the transformer."""
        self._numbers = itertools.count(1 + max((entry.generation for entry in self._entries), default=-1))

    def append(self, entry: TraceEntry) -> None:
        self._entries.append(entry)

    def begin(self) -> int:
        """The number of a generation that begins now; threads get different ones."""
        return next(self._numbers)

    def keep_generations(self, num_generations: int) -> None:
        """Drops all entries before those of the newest `num_generations`, so that a server's trace stays bounded."""
        if self._entries and self._entries[-1].generation - self._entries[0].generation >= num_generations:
            oldest = self._entries[-1].generation - num_generations + 1
            # in place: another thread may append meanwhile
            del self._entries[: next(i for i, entry in enumerate(self._entries) if entry.generation >= oldest)]

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[TraceEntry]:
        return iter(self._entries)

    def __getitem__(self, index: int) -> TraceEntry:
        return self._entries[index]

    @property
    def num_generations(self) -> int:
        return len({entry.generation for entry in self._entries})

    def generation(self, index: int) -> Trace:
        """The entries of one generation; negative indices count from the last."""
        numbers = sorted({entry.generation for entry in self._entries})
        number = numbers[index]
        return Trace((e for e in self._entries if e.generation == number), num_blocks=self.num_blocks)

    def counts(self) -> dict[str, int]:
        """Steps per granularity, every granularity named."""
        counts = {granularity.value: 0 for granularity in Granularity}
        for entry in self._entries:
            counts[entry.granularity.value] += 1
        return counts

    def computed_share(self) -> float:
        """Block work that ran, as a share of the work of the same calls computed in full; 1.0 for an empty trace."""
        num_calls = sum(len(entry.calls) for entry in self._entries)
        if not num_calls or not self.num_blocks:
            return 1.0
        return sum(call.num_blocks for entry in self._entries for call in entry.calls) / (num_calls * self.num_blocks)

    def save(self, path: str | PathLike[str]) -> None:
        """Writes JSON lines: a header, then an entry a line. A deviation or distance not finite is left out."""
        header = {"mixcache_trace": FORMAT, "num_blocks": self.num_blocks}
        rows = [header, *(entry.to_json() for entry in self._entries)]
        write_whole(path, "".join(json.dumps(row) + "\n" for row in rows))

    @classmethod
    def load(cls, path: str | PathLike[str]) -> Trace:
        """Reads what `save` wrote; ValueError names the file and the line that is wrong."""
        trace, number = cls(), 1
        try:
            lines = Path(path).read_text().splitlines()
            header = json.loads(lines[0])
            if header["mixcache_trace"] != FORMAT:
                raise ValueError(f"format {header['mixcache_trace']} is not {FORMAT}")
            trace.num_blocks = int(header["num_blocks"])
            for line in lines[1:]:
                number += 1
                trace.append(TraceEntry.from_json(json.loads(line)))
        except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path}, line {number}: no trace of mixcache ({error})") from error
        return trace


class TraceWriter:
    """Writes the steps of one run after another; runs at the same time have a writer each."""

    def __init__(self, trace: Trace) -> None:
        self.trace = trace
        self.entries: deque[TraceEntry] = deque(maxlen=MAX_RUN)
        """The last ones written since somebody emptied it."""
        self._last: TraceEntry | None = None
        self._num_cached = 0
        """Steps of its generation so far in which something was left out."""

    def number_of(self, offset: int) -> int:
        """The number of a trajectory that begins now, `offset` steps into its loop: that of the last one where this
        goes on from it, as a second expert does, else a new one."""
        last = self._before(offset)
        return self.trace.begin() if last is None else last.generation

    def _before(self, offset: int) -> TraceEntry | None:
        """The last entry, where a trajectory that begins `offset` steps into its loop goes on from it."""
        last = self._last
        return last if last is not None and offset > 0 and last.step + 1 == last.num_steps == offset else None

    def num_computed_before(self, offset: int) -> int:
        """Of the `offset` steps of its loop before a trajectory that begins now, those that were computed: all but the
        ones that were seen to be cached, where it goes on from these."""
        return offset - (0 if self._before(offset) is None else self._num_cached)

    def append(self, entry: TraceEntry) -> None:
        if self._last is None or entry.generation != self._last.generation:
            self._num_cached = 0
        self._num_cached += entry.granularity is not Granularity.COMPUTE
        self._last = entry
        self.entries.append(entry)
        self.trace.append(entry)
