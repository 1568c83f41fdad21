"""Methods of one object covered, on small classes of our own and on torch modules."""

from __future__ import annotations

import copy
import io
import pickle
from typing import Any

import pytest
import torch

from mixcache.hosts.diffusers.overlay import hooks_on, plain_class, put_on, take_off


class Doubled:
    """A hook that doubles what a call gives."""

    covers = ("__call__",)

    def call(self, instance: Any, inner: Any, *args: Any) -> Any:
        return 2 * inner(*args)


class Kind(type):
    """A metaclass."""


class Plus(metaclass=Kind):
    """Adds."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __call__(self, other: int) -> int:
        return self.number + other


class Made(Plus):
    """Is made again with what `__getnewargs_ex__` tells."""

    def __new__(cls, number: int, *, more: int = 0) -> Made:
        made = super().__new__(cls)
        made.more = more
        return made

    def __init__(self, number: int, *, more: int = 0) -> None:
        super().__init__(number)

    def __getnewargs_ex__(self) -> tuple[tuple[int], dict[str, int]]:
        return (self.number,), {"more": self.more}

    def __getstate__(self) -> None:
        return None


def pickled(value: Any) -> Any:
    return pickle.loads(pickle.dumps(value))


def saved(value: Any) -> Any:
    file = io.BytesIO()
    torch.save(value, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, pickled, saved])
@pytest.mark.parametrize("protocol", [2, 4])
def test_copies_and_pickles_are_plain(copied: Any, protocol: int) -> None:
    for plain, answer in ((Plus(3), 4), (torch.nn.Linear(2, 2), None), (torch.nn.Sequential(torch.nn.ReLU()), None)):
        put_on(plain, Doubled())
        other = copied(plain)
        assert type(other) is plain_class(plain)
        assert hooks_on(other) == []
        assert type(pickle.loads(pickle.dumps(plain, protocol))) is plain_class(plain)
        if answer is not None:
            assert (plain(1), other(1)) == (2 * answer, answer)


def test_what_is_made_again_with_arguments_is_made_with_them() -> None:
    made = Made(3, more=5)
    put_on(made, Doubled())
    for other in (copy.copy(made), copy.deepcopy(made), pickled(made)):
        assert (type(other), other.more) == (Made, 5)


def test_the_class_equals_the_one_it_stands_in_for() -> None:
    plus, other = Plus(3), Made(3)
    put_on(plus, Doubled())
    assert type(plus) is not Plus
    assert {Plus: "found"}[type(plus)] == "found"
    assert type(plus) in (Made, Plus)
    assert type(plus) not in (Made, torch.nn.Linear, None)
    assert type(type(plus)).__name__ == "Kind"
    assert type(other) not in (type(plus),)


def test_a_class_derived_from_a_covered_one_is_another_class_and_has_no_hooks() -> None:
    plus = Plus(3)
    put_on(plus, Doubled())
    derived = type("Derived", (type(plus),), {})
    assert derived != Plus
    assert derived(3)(1) == 4
    mine = derived(3)
    put_on(mine, Doubled())
    assert mine(1) == 8  # doubled once
    take_off(mine, hooks_on(mine)[0])
    assert type(mine) is derived


def test_a_method_that_is_held_does_as_the_object_does_now() -> None:
    plus, hook = Plus(3), Doubled()
    put_on(plus, hook)
    held = plus.__call__
    assert held(1) == 8
    take_off(plus, hook)
    assert held(1) == 4
    put_on(plus, hook)
    assert held(1) == 8
