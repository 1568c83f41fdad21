from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mixcache.core.history import History, lagrange_weights
from mixcache.core.signals import relative_l1, to_floats, total

SIGMAS = [1.0, 0.9, 0.7]


def filled(function: Callable[[float], float], length: int = 3, sigmas: list[float] = SIGMAS) -> History:
    """Values of `function` at `sigmas`, as tensors of shape (2, 3)."""
    history = History(length)
    for step, sigma in enumerate(sigmas):
        history.push(step, sigma, torch.full((2, 3), function(sigma)))
    return history


def number(value: torch.Tensor) -> float:
    """The one number a tensor is full of."""
    assert value.unique().numel() == 1
    return float(value.flatten()[0])


def test_lagrange_weights_by_hand() -> None:
    assert lagrange_weights([1.0], 0.3) == [1.0]
    assert lagrange_weights([1.0, 0.5], 0.0) == [-1.0, 2.0]
    # (0-1)(0-2)/((3-1)(3-2)), (0-3)(0-2)/((1-3)(1-2)), (0-3)(0-1)/((2-3)(2-1))
    assert lagrange_weights([3.0, 1.0, 2.0], 0.0) == [1.0, 3.0, -3.0]
    with pytest.raises(ZeroDivisionError):
        lagrange_weights([1.0, 1.0], 0.5)


@given(
    nodes=st.lists(st.integers(-20, 20), min_size=1, max_size=3, unique=True),
    at=st.integers(-20, 20),
    coefficients=st.lists(st.integers(-5, 5), min_size=1, max_size=3),
)
def test_lagrange_weights_are_exact_on_polynomials(nodes: list[int], at: int, coefficients: list[int]) -> None:
    def polynomial(x: float) -> float:
        return sum(c * x**power for power, c in enumerate(coefficients[: len(nodes)]))

    weights = lagrange_weights([float(n) for n in nodes], float(at))
    assert sum(weights) == pytest.approx(1.0)
    terms = [w * polynomial(n) for w, n in zip(weights, nodes, strict=True)]
    assert sum(terms) == pytest.approx(polynomial(at), abs=1e-9 * (1 + sum(abs(term) for term in terms)))


def test_order_0_repeats_the_last() -> None:
    assert number(filled(lambda s: 10 * s).predict(0.4, 0)) == pytest.approx(7.0)


def test_order_1_is_exact_on_a_line() -> None:
    history = filled(lambda s: 3 - 2 * s)
    assert number(history.predict(0.4, 1)) == pytest.approx(2.2, abs=1e-6)
    assert number(history.predict(0.0, 1)) == pytest.approx(3.0, abs=1e-6)


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("trust", [0.0, 0.25, 1.0])
def test_an_extrapolation_is_followed_for_a_share_of_the_way(order: int, trust: float) -> None:
    history = filled(lambda sigma: 3 * sigma - 1)
    assert number(history.predict(0.4, order, trust)) == pytest.approx(1.1 + trust * (0.2 - 1.1), abs=1e-5)


def test_order_1_looks_at_the_last_two_alone() -> None:
    # 81 at 0.9 and 49 at 0.7 make the line 160 s - 63
    assert number(filled(lambda s: 100 * s**2).predict(0.5, 1)) == pytest.approx(17.0, abs=1e-4)


def test_order_2_is_exact_on_a_parabola() -> None:
    history = filled(lambda s: 100 * s**2 - 30 * s + 1)
    assert number(history.predict(0.5, 2)) == pytest.approx(25 - 15 + 1, abs=1e-4)
    assert number(history.predict(0.0, 2)) == pytest.approx(1.0, abs=1e-4)


def test_short_history_lowers_the_order() -> None:
    one = filled(lambda s: 5 * s, sigmas=[0.8])
    assert [number(one.predict(0.1, order)) for order in (0, 1, 2)] == pytest.approx([4.0, 4.0, 4.0])
    two = filled(lambda s: 5 * s, sigmas=[0.8, 0.6])
    assert [number(two.predict(0.1, order)) for order in (0, 1, 2)] == pytest.approx([3.0, 0.5, 0.5], abs=1e-6)


def test_equal_sigmas_repeat_the_last() -> None:
    history = History(3)
    for step, (sigma, value) in enumerate([(0.9, 1.0), (0.5, 2.0), (0.5, 7.0)]):
        history.push(step, sigma, torch.tensor([value]))
    assert [history.predict(0.3, order).item() for order in (0, 1, 2)] == [7.0, 7.0, 7.0]


def test_only_the_last_values_are_kept() -> None:
    history = filled(lambda s: s, length=2)
    assert (len(history), history.age(step=5)) == (2, 3)
    assert history.num_bytes == 2 * 6 * 4
    assert number(history.last) == pytest.approx(0.7)
    history.clear()
    assert (len(history), history.num_bytes, history.last) == (0, 0, None)


def test_bytes_of_half_precision() -> None:
    history = History(1)
    history.push(0, 1.0, torch.ones(3, 5, dtype=torch.bfloat16))
    assert history.num_bytes == 30


def test_what_is_repeated_is_not_copied() -> None:
    history = filled(lambda s: 10 * s)
    assert history.predict(0.5, 0) is history.last
    history.predict(0.5, 1).zero_()
    assert number(history.last) == pytest.approx(7.0)


@pytest.mark.parametrize("order", [0, 1, 2])
def test_predict_keeps_the_dtype_and_sums_in_float32(order: int) -> None:
    history = History(3)
    for step, (sigma, value) in enumerate([(1.0, 256.0), (0.75, 258.0), (0.5, 260.0)]):
        history.push(step, sigma, torch.tensor([value], dtype=torch.bfloat16))
    predicted = history.predict(0.25, order)
    assert predicted.dtype is torch.bfloat16
    assert predicted.item() == (260.0 if order == 0 else 262.0)


def test_empty_history_is_an_error() -> None:
    with pytest.raises(ValueError, match="an empty history predicts nothing"):
        History(2).predict(0.5, 0)
    with pytest.raises(ValueError, match="an empty history has no age"):
        History(2).age(3)


def test_signals_by_hand() -> None:
    value, reference = torch.tensor([1.0, -2.0, 4.0]), torch.tensor([2.0, -2.0, 1.0])
    assert relative_l1(value, reference).item() == pytest.approx(4 / 5)  # (1 + 0 + 3) / (2 + 2 + 1)
    assert relative_l1(value, torch.zeros(3)).item() > 1e11
    assert relative_l1(value.bfloat16(), reference.bfloat16()).dtype is torch.float32
    totals = to_floats([total(torch.tensor([1.0, x])) for x in (2.0, float("nan"), float("inf"), -float("inf"))])
    assert totals == [3.0, pytest.approx(math.nan, nan_ok=True), math.inf, -math.inf]
    assert total(torch.full((300,), 3e4, dtype=torch.float16)).item() == pytest.approx(9e6)  # beyond float16
    assert to_floats([]) == []
