"""The ranks of torch.distributed that run one clip together: an `Agreement` over a gloo group of their own.

Everything is said in rounds of two numbers, which all ranks take part in at the same place, whatever they have to say
there: that a call begins, what rank 0 decided, that a rank failed. So a rank that fails between two rounds joins the
next one and is heard, and ranks that are not where the others are find out instead of waiting. Texts are exchanged only
once something is wrong. The rounds are held on the host, so that an accelerator is not waited for.
"""

from __future__ import annotations

import logging
import struct
from collections.abc import Collection, Mapping, Sequence
from datetime import timedelta
from enum import IntEnum
from hashlib import blake2b
from importlib.metadata import version
from typing import Any, NoReturn

import torch
import torch.distributed as dist

from mixcache.core.agreement import AloneError, Name

logger = logging.getLogger("mixcache")
ERROR = "error"
MAX_SHOWN = 200
"""Characters of a value in an error."""
WAYS_OUT = {
    "call": "branches on different ranks (cfg parallel) are not supported, since a decision and a correction need the "
    "outputs of both: let every rank call both",
    "steps taken again": "their latents differ: give every rank the same seed, and let callbacks do the same on all",
}
"""By what differs."""
BETWEEN, IS = "\x1e", "\x1f"


class Kind(IntEnum):
    """What a rank says in a round."""

    FAILED = 0
    CALL = 1
    IN_FULL = 2
    MEASURED = 3
    DECISION = 4
    END = 5


class Ranks:
    """An `Agreement` among the members of a group of torch.distributed, one run at a time."""

    def __init__(self, group: dist.ProcessGroup, settings: Mapping[str, Any]) -> None:
        """`settings` are what all must have alike, whatever the trajectory."""
        self._given, self._group = group, _gloo_group(group)
        self._settings = settings
        self._rank, self._num_ranks = dist.get_rank(self._group), dist.get_world_size(self._group)
        self._is_open = False
        """True from the beginning of a run to its end, or to the first error."""
        self.num_bytes = self.num_measured = 0
        """Sent by this rank so far; numbers of measurements among it, of 8 bytes each."""

    def is_of(self, group: dist.ProcessGroup) -> bool:
        """True for the group that it was made for, in the same world."""
        return group is self._given and any(made is self._group for *_, made in _groups_of_this_world())

    @property
    def leads(self) -> bool:
        return self._rank == 0

    def begin(self) -> None:
        self._is_open = True

    def meet(self, place: Mapping[str, Any], trajectory: Mapping[str, Any] | None) -> None:
        self._is_open = True  # again, where calls that nobody announced go on after an end
        kinds = self._round(Kind.CALL, place if trajectory is None else {**self._settings, **trajectory, **place})
        if Kind.IN_FULL in kinds:
            raise AloneError(f"rank {kinds.index(Kind.IN_FULL)} computes this call in full")

    def in_full(self, reason: str) -> None:
        self._is_open = True
        self._round(Kind.IN_FULL, {"a call in full": reason})

    def total(self, values: Mapping[Name, float], shards: Collection[Name]) -> dict[Name, float]:
        self._round(Kind.MEASURED, {"what was measured": list(map(str, values))})
        self.num_measured += len(values)
        # 0 x NaN is NaN, and so is 0 x infinity: nobody takes for sound what is not sound everywhere
        mine = [value if self.leads or name in shards else 0.0 * value for name, value in values.items()]
        rows = [row.tolist() for row in self._gathered(torch.tensor(mine, dtype=torch.float64))]
        return {name: sum(column) for name, column in zip(values, zip(*rows, strict=True), strict=True)}

    def decide(self, code: tuple[int, float]) -> tuple[int, float]:
        (damping,) = struct.unpack("<q", struct.pack("<d", code[1]))
        rows = self._exchanged(Kind.DECISION + (code[0] << 8), damping, {"a decision": ""})
        first, bits = rows[0]
        return first >> 8, struct.unpack("<d", struct.pack("<q", bits))[0]

    def end(self) -> None:
        if self._is_open:
            self._round(Kind.END, {"the end of the run": ""})
            self._is_open = False

    def fail(self, error: BaseException) -> None:
        if not self._is_open:
            return
        try:
            self._exchanged(Kind.FAILED, 0, {ERROR: f"{type(error).__name__}: {error}"})
        except Exception as others:  # the caller raises its own error
            logger.debug("told the other ranks of the failure: %s", others)
        self._is_open = False

    # --------------------------------------------------------------------------------------------------- rounds

    def _round(self, kind: Kind, alike: Mapping[str, Any]) -> list[Kind]:
        """What each rank says at this place; raises where one failed, or `alike` is not alike."""
        digest = blake2b(_text(alike).encode(), digest_size=7).digest()
        rows = self._exchanged(kind, int.from_bytes(digest, "big"), alike)
        kinds = [Kind(first & 0xFF) for first, _ in rows]
        if Kind.IN_FULL in kinds and set(kinds) <= {Kind.CALL, Kind.IN_FULL}:
            return kinds
        if len(set(rows)) > 1:
            self._raise_difference(self._texts(_text(alike)))
        return kinds

    def _exchanged(self, first: int, second: int, alike: Mapping[str, Any]) -> list[tuple[int, int]]:
        """The two numbers of each rank; raises where one failed, or they are at different places."""
        numbers = torch.tensor([first, second], dtype=torch.int64)
        rows = [(int(row[0]), int(row[1])) for row in self._gathered(numbers)]
        kinds = [Kind(number & 0xFF) for number, _ in rows]
        if Kind.FAILED in kinds:
            rank = kinds.index(Kind.FAILED)
            self._is_open = False
            raise RuntimeError(f"rank {rank} failed: {_values(self._texts(_text(alike))[rank])[ERROR]}")
        if len(set(kinds)) > 1 and not set(kinds) <= {Kind.CALL, Kind.IN_FULL}:
            self._is_open = False
            places = [_short(text.replace(BETWEEN, ", ").replace(IS, " ")) for text in self._texts(_text(alike))]
            said = "; ".join(f"rank {rank}: {place}" for rank, place in enumerate(places))
            raise RuntimeError(f"the ranks are at different places, and cannot be cached together ({said})")
        return rows

    def _raise_difference(self, texts: Sequence[str]) -> NoReturn:
        """The first thing that is not alike, in the same words on every rank."""
        self._is_open = False
        first, *others = map(_values, texts)
        rank, name = next(
            (r, n) for r, other in enumerate(others, 1) for n in first | other if first.get(n) != other.get(n)
        )
        mine, theirs = (_short(said.get(name, "nothing")) for said in (first, others[rank - 1]))
        raise ValueError(
            f"{name} differs between ranks: {mine} on rank 0, {theirs} on rank {rank}; "
            f"{WAYS_OUT.get(name, 'give every rank the same')}"
        )

    def _texts(self, text: str) -> list[str]:
        """A text of each rank's own."""
        mine = torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8)
        lengths = [int(row) for row in self._gathered(torch.tensor([len(mine)], dtype=torch.int64))]
        padded = torch.zeros(max(lengths), dtype=torch.uint8)
        padded[: len(mine)] = mine
        rows = self._gathered(padded)
        return [bytes(row[:length].tolist()).decode() for row, length in zip(rows, lengths, strict=True)]

    def _gathered(self, mine: torch.Tensor) -> list[torch.Tensor]:
        self.num_bytes += mine.nbytes
        rows = [torch.empty_like(mine) for _ in range(self._num_ranks)]
        try:
            dist.all_gather(rows, mine, group=self._group)
        except RuntimeError as error:
            self._is_open = False
            raise RuntimeError(
                f"rank {self._rank} of {self._num_ranks} was left alone by the others, which have ended, hang, or run "
                f"without mixcache: {error}"
            ) from error
        return rows


def versions() -> dict[str, str]:
    """Of what must be alike on all ranks."""
    return {f"version of {name}": version(name) for name in ("mixcache", "torch", "diffusers")}


def _text(alike: Mapping[str, Any]) -> str:
    return BETWEEN.join(f"{name}{IS}{value}" for name, value in alike.items())


def _values(text: str) -> dict[str, str]:
    return {name: value for name, _, value in (line.partition(IS) for line in text.split(BETWEEN))}


def _short(value: str) -> str:
    return value if len(value) <= MAX_SHOWN else f"{value[:MAX_SHOWN]}..."


_groups: list[tuple[Any, tuple[int, ...], dist.ProcessGroup]] = []
"""Groups that were made, with the world that they are of and their ranks in it."""


def _groups_of_this_world() -> list[tuple[Any, tuple[int, ...], dist.ProcessGroup]]:
    _groups[:] = [row for row in _groups if row[0] is dist.group.WORLD]
    return _groups


def _gloo_group(group: dist.ProcessGroup) -> dist.ProcessGroup:
    """A gloo group of the same ranks, with the same time-out, made once; all of them ask for it."""
    ranks = tuple(dist.get_process_group_ranks(group))
    for _, members, made in _groups_of_this_world():
        if members == ranks:
            return made
    made = dist.new_group(
        list(ranks), backend="gloo", timeout=_timeout_of(group), use_local_synchronization=True, sort_ranks=False
    )
    _groups.append((dist.group.WORLD, ranks, made))
    return made


def _timeout_of(group: dist.ProcessGroup) -> timedelta | None:
    """Of the group's first backend; None, for torch's own, where it does not say."""
    backends = [group._get_backend(device) for device in group._device_types]
    return next((getattr(backend.options, "_timeout", None) for backend in backends), None)
