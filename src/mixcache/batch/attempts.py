"""Who is at work on what: a file for each attempt, made before it begins. Pure Python.

`NAME.attempt-1` is made so that only one can make it: it claims the task, and counts. Its owner touches it while at
work, and takes it away at the end. An attempt whose owner is dead is never taken away by others, for two could do so at
once and one of them take a living one: the next attempt is `NAME.attempt-2`. Where the last of them died the task is
given up.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import json
import os
import secrets
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mixcache.batch.folder import Folder, Standing, read, scratch

MAX_ATTEMPTS = 3
BEAT_SECONDS = 10.0
STALE_SECONDS = 60.0
"""After so long without a touch an owner on another machine is taken for dead."""
NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)
"""What file systems without hard links answer."""


@functools.cache
def this_place() -> str:
    """Where process numbers mean what they mean here: the machine, since it was started, and its container."""
    facts = [socket.gethostname()]
    with contextlib.suppress(OSError):
        facts += [Path("/proc/sys/kernel/random/boot_id").read_text().strip(), os.readlink("/proc/self/ns/pid")]
    return " ".join(facts)


def started(pid: int) -> str | None:
    """When that process began, in ticks since the machine did; None where it is dead, or the system does not tell."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else fields[19]


def this_process() -> dict[str, Any]:
    return {"place": this_place(), "pid": os.getpid(), "started": started(os.getpid())}


@dataclass(frozen=True, kw_only=True, slots=True)
class Attempt:
    """One, by this process."""

    folder: Folder
    name: str
    number: int

    @property
    def path(self) -> Path:
        return _path(self.folder, self.name, self.number)

    @contextlib.contextmanager
    def under_way(self) -> Iterator[None]:
        """Touched meanwhile, and taken away at the end."""
        over = threading.Event()

        def beat() -> None:
            while not over.wait(BEAT_SECONDS):
                with contextlib.suppress(OSError):  # the folder may come back
                    os.utime(self.path)

        threading.Thread(target=beat, daemon=True).start()
        try:
            yield
        finally:
            over.set()
            _forget(self.folder, self.name, self.number)


def begin(folder: Folder, name: str) -> Attempt | Standing:
    """Claims a task for this process, counted on disk; or why it is not begun. OSError where the disk is full."""
    folder.file(name, "").parent.mkdir(parents=True, exist_ok=True)
    for number in range(1, MAX_ATTEMPTS + 1):
        path = _path(folder, name, number)
        if _is_claimed(path):
            standing = folder.standing(name)  # another may have ended it in the meantime
            if standing is None:
                return Attempt(folder=folder, name=name, number=number)
            _forget(folder, name, number)
            return standing
        if _is_alive(folder, path):
            return Standing.BUSY
    return Standing.DONE if folder.has(name) else Standing.GIVEN_UP


def _is_claimed(path: Path) -> bool:
    """Makes the attempt, or says that there is one. It comes whole: one that did not yet name its owner, and never will
    where that was killed, could only be waited for."""
    beside = scratch(path, secrets.token_hex(6))
    try:
        beside.write_text(json.dumps(this_process()))
        try:
            os.link(beside, path)
        except OSError as error:
            if error.errno not in NO_LINKS:
                raise
            path.open("x").close()
            beside.replace(path)
    except FileExistsError:
        return beside.stat().st_nlink == 2  # NFS may also say so of a link that it has just made
    finally:
        beside.unlink(missing_ok=True)
    return True


def forget_all(folder: Folder, name: str, number: int = MAX_ATTEMPTS) -> None:
    """Takes away the attempts on a task that is over, up to that of the number; dead ones too."""
    for each in range(1, number + 1):
        _forget(folder, name, each)


def take_back(folder: Folder, name: str, owner: dict[str, Any], *, counts: bool) -> None:
    """Told by who knows that the owner is dead: its attempt on the task is over at once. It is not held against the
    task where that is not what it died of."""
    for number in range(1, MAX_ATTEMPTS + 1):
        path = _path(folder, name, number)
        if read(path) == owner:
            if counts:
                os.utime(path, (0, 0))
            else:
                _forget(folder, name, number)


def _is_alive(folder: Folder, path: Path) -> bool:
    owner = read(path)
    try:
        touched = path.stat().st_mtime
    except FileNotFoundError:
        return True  # it has just been taken away: its task is looked at again
    if touched and owner and owner["started"] and owner["place"] == this_place():
        return started(owner["pid"]) == owner["started"]
    return folder.now() - touched < STALE_SECONDS


def _path(folder: Folder, name: str, number: int) -> Path:
    return folder.file(name, f".attempt-{number}")


def _forget(folder: Folder, name: str, number: int) -> None:
    """With what it left half written."""
    for ending in (".mp4", ".jpg", ".json", ".failed.json"):
        scratch(folder.file(name, ending), str(number)).unlink(missing_ok=True)
    _path(folder, name, number).unlink(missing_ok=True)
