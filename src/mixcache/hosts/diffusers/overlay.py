"""Methods of one object covered for a while: its class becomes a subclass of what it was, and is put back.

    put_on(scheduler, hook)      # hook.covers = ("step",); scheduler.step(...) is now hook.step(scheduler, inner, ...)
    take_off(scheduler, hook)    # the object is of its own class again, with nothing left on it

A method on the class, and no attribute of the object, is covered: so a wrapper that somebody else puts on the object
and deletes again takes nothing of ours along, wrappers and compiled calls of others lie within, and whatever is made
from the object by `copy`, `deepcopy` or `pickle` is of its own class, plain and without hooks. No other object of the
class is touched; `isinstance`, names, signatures and a comparison of classes by `==`, as in a registry keyed by them,
say what they said.
"""

from __future__ import annotations

import copyreg
import functools
from collections.abc import Callable
from typing import Any, Protocol

KEY = "_mixcache_hooks"
"""Attribute of a covered object that holds its hooks, the outermost last."""
PLAIN = "_mixcache_plain"
"""Attribute of the class of a covered object: the class that it had."""


class Hook(Protocol):
    """Covers methods of an object: for each name, a method of its own of that name (`call` for `__call__`) that gets
    the object, what it covers, and the arguments."""

    @property
    def covers(self) -> tuple[str, ...]: ...


def put_on(instance: Any, hook: Hook) -> None:
    """Covers the object's methods, outside of the hooks that are on it. TypeError where its class cannot be changed."""
    hooks = instance.__dict__.get(KEY, [])
    covers = tuple(sorted({name for other in (*hooks, hook) for name in other.covers}))
    instance.__class__ = _covered(plain_class(instance), covers)
    instance.__dict__[KEY] = [*hooks, hook]


def take_off(instance: Any, hook: Hook) -> None:
    """Takes a hook off, if it is on; with the last one the object is as it was."""
    left = [other for other in hooks_on(instance) if other is not hook]
    if left:
        instance.__dict__[KEY] = left
    elif instance.__dict__.pop(KEY, None) is not None:
        instance.__class__ = plain_class(instance)


def hooks_on(instance: Any) -> list[Any]:
    """The hooks on an object, the outermost last."""
    return list(getattr(instance, "__dict__", {}).get(KEY, ()))


def plain_class(instance: Any) -> type:
    """The object's own class."""
    cls = type(instance)
    return cls.__dict__.get(PLAIN, cls)


@functools.cache
def _covered(plain: type, covers: tuple[str, ...]) -> type:
    """The subclass that stands in for `plain` on covered objects."""
    cls: Any = None

    def reduced(self: Any, protocol: Any) -> Any:
        # copies and pickles are of the plain class, and take no hooks along
        made_by, arguments, *rest = super(cls, self).__reduce_ex__(protocol)
        # in place of what pickle holds against the class of the object
        if made_by is copyreg.__newobj__:  # type: ignore[attr-defined]
            made_by = plain.__new__
        elif made_by is copyreg.__newobj_ex__:  # type: ignore[attr-defined]
            _, given, named = arguments
            made_by, arguments = functools.partial(plain.__new__, **named), (cls, *given)
        arguments = tuple(plain if argument is cls else argument for argument in arguments)
        if rest and isinstance(rest[0], dict):
            rest[0] = {name: value for name, value in rest[0].items() if name != KEY}
        return made_by, arguments, *rest

    def cover(name: str) -> Callable[..., Any]:
        own_name = "call" if name == "__call__" else name

        @functools.wraps(getattr(plain, name))
        def covered(self: Any, *args: Any, **kwargs: Any) -> Any:
            if type(self) is not cls:  # a method held longer than the object was covered, or a class derived from ours
                return getattr(plain, name)(self, *args, **kwargs)
            inner = getattr(super(cls, self), name)
            for hook in self.__dict__.get(KEY, ()):
                if name in hook.covers:
                    inner = functools.partial(getattr(hook, own_name), self, inner)
            return inner(*args, **kwargs)

        return covered

    about = {"__module__": plain.__module__, "__qualname__": plain.__qualname__, "__doc__": plain.__doc__}
    methods = {"__reduce_ex__": reduced, PLAIN: plain} | {name: cover(name) for name in covers}
    cls = _equal_to_plain(type(plain))(plain.__name__, (plain,), about | methods)
    return cls


@functools.cache
def _equal_to_plain(metaclass: type) -> type:
    """A metaclass whose classes equal the class that they stand in for: diffusers looks up what it knows of a block by
    its class, and `from_pipe` takes components of the classes it expects."""

    def plain_of(cls: Any) -> Any:
        return cls.__dict__.get(PLAIN, cls)

    def equal(cls: Any, other: Any) -> Any:
        return plain_of(cls) is plain_of(other) if isinstance(other, type) else NotImplemented

    def hashed(cls: Any) -> int:
        plain = plain_of(cls)
        return type.__hash__(plain) if plain is cls else hash(plain)

    return type(metaclass)(metaclass.__name__, (metaclass,), {"__eq__": equal, "__hash__": hashed})
