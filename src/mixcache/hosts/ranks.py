"""The ranks of torch.distributed that run one clip together: an `Agreement` over a gloo group of their own.

Everything is said in rounds of one number, which all ranks take part in at the same place, whatever they have to say
there: that a call begins, what rank 0 decided, that a rank failed. So a rank that fails between two rounds joins the
next one and is heard, and ranks that are not where the others are find out instead of waiting. Texts are exchanged only
once something is wrong. The rounds are held on the host, so that an accelerator is not waited for.

The text of an error lies in the group's store before its rank joins a round: ranks that wait for it inside of the model
come to no round, and read it when their wait is cut off.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from enum import IntEnum
from hashlib import blake2b
from importlib.metadata import version
from typing import Any, NoReturn

import torch
import torch.distributed as dist

from mixcache.core.agreement import AloneError, Name

logger = logging.getLogger("mixcache")
MAX_SHOWN = 200
"""Characters of a value in an error."""
DIGEST_BYTES = 7
"""Of what a rank says in a round; the eighth is the kind."""
PATIENCE_SECONDS = 3.0
"""That a rank which failed gives the others to hear of it in a round, before it raises; those inside of the model do
not, and hear when its process is over."""
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
        self._given, self._own = group, _gloo_group(group)
        self._group = self._own.group
        self._settings = settings
        self._rank, self._num_ranks = dist.get_rank(self._group), dist.get_world_size(self._group)
        self._is_open = False
        """True from the beginning of a run to its end, or to the first error."""
        self.num_bytes = self.num_measured = 0
        """Sent by this rank so far; numbers of measurements among it, of 8 bytes each."""

    def is_of(self, group: dist.ProcessGroup) -> bool:
        """True for the group that it was made for, in the same world."""
        return group is self._given and self._own in _groups_of_this_world()

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
        number, damping = code
        first = self._exchanged(Kind.DECISION, 2 * number + (damping != 1.0), {"a decision": ""})[0][1]
        number, is_damped = divmod(first, 2)
        if not is_damped:
            return number, 1.0
        return number, float(self._gathered(torch.tensor([damping], dtype=torch.float64))[0])

    def end(self) -> None:
        if self._is_open:
            self._round(Kind.END, {"the end of the run": ""})
            self._is_open = False

    def fail(self, error: BaseException) -> None:
        if not self._is_open:
            return
        self._is_open = False
        others = self._others_failure() if _is_of_communication(error) else None
        if others is None:
            self._tell(f"{type(error).__name__}: {error}")
        try:
            round_ = dist.all_gather(*self._rows(_said(Kind.FAILED, 0)), group=self._group, async_op=True)
            end = time.monotonic() + PATIENCE_SECONDS
            while others is None and not round_.is_completed() and time.monotonic() < end:
                time.sleep(0.01)
        except RuntimeError as left_alone:  # the caller raises its own error
            logger.debug("the other ranks do not hear of the failure: %s", left_alone)
        self._own.num_rounds += 1
        if others is not None:
            raise RuntimeError(others) from error

    # --------------------------------------------------------------------------------------------------- rounds

    def _round(self, kind: Kind, alike: Mapping[str, Any]) -> list[Kind]:
        """What each rank says at this place; raises where one failed, or `alike` is not alike."""
        digest = blake2b(_text(alike).encode(), digest_size=DIGEST_BYTES).digest()
        rows = self._exchanged(kind, int.from_bytes(digest, "big"), alike)
        kinds = [kind for kind, _ in rows]
        if Kind.IN_FULL in kinds and set(kinds) <= {Kind.CALL, Kind.IN_FULL}:
            return kinds
        if len(set(rows)) > 1:
            self._raise_difference(self._texts(_text(alike)))
        return kinds

    def _exchanged(self, kind: Kind, value: int, alike: Mapping[str, Any]) -> list[tuple[Kind, int]]:
        """Kind and value of each rank; raises where one failed, or they are at different places."""
        numbers = [int(row) for row in self._gathered(_said(kind, value))]
        rows = [(Kind(number >> 8 * DIGEST_BYTES), number % (1 << 8 * DIGEST_BYTES)) for number in numbers]
        kinds = [kind for kind, _ in rows]
        failure = ""
        if Kind.FAILED in kinds:
            failure = self._others_failure() or f"rank {kinds.index(Kind.FAILED)} failed"
        self._own.num_rounds += 1
        if failure:
            self._is_open = False
            raise RuntimeError(failure)
        if len(set(kinds)) > 1 and not set(kinds) <= {Kind.CALL, Kind.IN_FULL}:
            self._is_open = False
            places = [_short(text.replace(BETWEEN, ", ").replace(IS, " ")) for text in self._texts(_text(alike))]
            said = "; ".join(f"rank {rank}: {place}" for rank, place in enumerate(places))
            raise RuntimeError(f"the ranks are at different places, and cannot be cached together ({said})")
        return rows

    def _tell(self, text: str) -> None:
        """Puts an error of this rank where the others find it."""
        try:
            self._group.get_group_store().set(self._place_of_failure(self._rank), text)
        except RuntimeError as error:  # whoever keeps the store is gone
            logger.debug("the other ranks do not hear of the failure: %s", error)

    def _others_failure(self) -> str | None:
        """What the first of the other ranks that failed since the last round told; None where none did."""
        try:
            store = self._group.get_group_store()
            for rank in range(self._num_ranks):
                if rank != self._rank and store.check([place := self._place_of_failure(rank)]):
                    return f"rank {rank} failed: {store.get(place).decode()}"
        except RuntimeError as error:
            logger.debug("what the other ranks told cannot be read: %s", error)
        return None

    def _place_of_failure(self, rank: int) -> str:
        return f"mixcache/failed/{self._own.num_rounds}/{rank}"

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
        rows, _ = gathered = self._rows(mine)
        try:
            dist.all_gather(*gathered, group=self._group)
        except RuntimeError as error:
            self._is_open = False
            raise RuntimeError(
                self._others_failure()
                or f"rank {self._rank} of {self._num_ranks} was left alone by the others, which have ended, hang, or "
                f"run without mixcache: {error}"
            ) from error
        return rows

    def _rows(self, mine: torch.Tensor) -> tuple[list[torch.Tensor], torch.Tensor]:
        """Where what each rank says goes, and what this one does."""
        self.num_bytes += mine.nbytes
        return [torch.empty_like(mine) for _ in range(self._num_ranks)], mine


def versions() -> dict[str, str]:
    """Of what must be alike on all ranks."""
    return {f"version of {name}": version(name) for name in ("mixcache", "torch", "diffusers")}


def _text(alike: Mapping[str, Any]) -> str:
    return BETWEEN.join(f"{name}{IS}{value}" for name, value in alike.items())


def _values(text: str) -> dict[str, str]:
    return {name: value for name, _, value in (line.partition(IS) for line in text.split(BETWEEN))}


def _short(value: str) -> str:
    return value if len(value) <= MAX_SHOWN else f"{value[:MAX_SHOWN]}..."


def _said(kind: Kind, value: int) -> torch.Tensor:
    """Both in one number."""
    return torch.tensor([(kind << 8 * DIGEST_BYTES) + value], dtype=torch.int64)


def _is_of_communication(error: BaseException) -> bool:
    """True for what torch.distributed raises where a rank waits for another one; gloo has no class of its own."""
    return isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error))


@dataclass(eq=False, slots=True)
class _Group:
    """A group that was made here, for all handles."""

    world: Any
    members: tuple[int, ...]
    group: dist.ProcessGroup
    num_rounds: int = 0
    """That were held on it, the same on all ranks."""


_groups: list[_Group] = []


def _groups_of_this_world() -> list[_Group]:
    _groups[:] = [made for made in _groups if made.world is dist.group.WORLD]
    return _groups


def _gloo_group(group: dist.ProcessGroup) -> _Group:
    """A gloo group of the same ranks, with the same time-out, made once; all of them ask for it."""
    members = tuple(dist.get_process_group_ranks(group))
    for made in _groups_of_this_world():
        if made.members == members:
            return made
    new = dist.new_group(
        list(members), backend="gloo", timeout=_timeout_of(group), use_local_synchronization=True, sort_ranks=False
    )
    _groups.append(_Group(dist.group.WORLD, members, new))
    return _groups[-1]


def _timeout_of(group: dist.ProcessGroup) -> timedelta | None:
    """Of the group's first backend; None, for torch's own, where it does not say."""
    backends = [group._get_backend(device) for device in group._device_types]
    return next((getattr(backend.options, "_timeout", None) for backend in backends), None)
