"""Predictors on lists of floats."""

from __future__ import annotations

import math
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mixcache.predictors import (
    LINE,
    PARABOLA,
    PREDICTORS,
    REUSE,
    Damped,
    Lagrange,
    Predictor,
    damped,
    predictor_of,
    predictors_of,
    undamped,
)


def test_weights_by_hand() -> None:
    assert REUSE.weights([0.9], 0.3) == [1.0]
    assert LINE.weights([1.0, 0.5], 0.0) == [-1.0, 2.0]
    # (0-1)(0-2)/((3-1)(3-2)), (0-3)(0-2)/((1-3)(1-2)), (0-3)(0-1)/((2-3)(2-1))
    assert PARABOLA.weights([3.0, 1.0, 2.0], 0.0) == [1.0, 3.0, -3.0]
    assert damped(LINE, 0.25).weights([1.0, 0.5], 0.0) == [-0.25, 1.25]


@given(
    nodes=st.lists(st.integers(-20, 20), min_size=2, max_size=4, unique=True),
    at=st.integers(-20, 20),
    coefficients=st.lists(st.integers(-5, 5), min_size=1, max_size=4),
)
def test_a_polynomial_is_exact_on_polynomials(nodes: list[int], at: int, coefficients: list[int]) -> None:
    def polynomial(x: float) -> float:
        return sum(c * x**power for power, c in enumerate(coefficients[: len(nodes)]))

    weights = Lagrange(degree=len(nodes) - 1).weights([float(n) for n in nodes], float(at))
    assert sum(weights) == pytest.approx(1.0)
    terms = [w * polynomial(n) for w, n in zip(weights, nodes, strict=True)]
    assert sum(terms) == pytest.approx(polynomial(at), abs=1e-9 * (1 + sum(abs(term) for term in terms)))


@pytest.mark.parametrize("predictor", [*PREDICTORS.values(), damped(PARABOLA, 0.3)], ids=str)
def test_what_every_predictor_keeps_to(predictor: Predictor) -> None:
    for length in range(1, 4):
        taken = predictor.for_length(length)
        assert taken.num_values == min(length, predictor.num_values)
        weights = taken.weights([0.9, 0.7, 0.6][-taken.num_values :], 0.5)
        assert len(weights) == taken.num_values
        assert sum(weights) == pytest.approx(1.0)
    assert predictor_of(str(predictor)) == predictor


def test_damping_is_undone() -> None:
    assert damped(LINE, 1.0) is LINE
    assert damped(REUSE, 0.5) is REUSE
    assert undamped(damped(LINE, 0.25)) == (LINE, 0.25)
    assert undamped(PARABOLA) == (PARABOLA, 1.0)
    assert predictor_of("0.25 line") == Damped(predictor=LINE, damping=0.25)


@pytest.mark.parametrize("damping", [-0.1, 1.1, math.nan])
def test_wrong_damping(damping: float) -> None:
    with pytest.raises(ValueError, match=r"damping=.* is not between 0 and 1"):
        Damped(predictor=LINE, damping=damping)


@pytest.mark.parametrize("degree", [0, 4, "1"])
def test_wrong_degree(degree: int) -> None:
    with pytest.raises(ValueError, match=r"degree=.* is not 1, 2 or 3"):
        Lagrange(degree=degree)


@pytest.mark.parametrize("name", ["lime", "1.5 line", "nan line", " line", "line 0.5", "", "0.5 "])
def test_unknown_names(name: str) -> None:
    with pytest.raises(ValueError, match=r"^unknown predictor '.*\(there are: reuse, line, parabola\)$"):
        predictor_of(name)


def test_several_are_sorted_and_named_once() -> None:
    assert predictors_of(["parabola", LINE, "line"], REUSE) == (REUSE, LINE, PARABOLA)
    assert predictors_of("line") == (LINE,)
    with pytest.raises(ValueError, match=r"predictors=\[\] names none"):
        predictors_of([])


def test_they_load_no_torch() -> None:
    code = "import mixcache.predictors, sys; assert not {'torch', 'numpy'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
