from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch

from mixcache.core.engine import num_bytes
from mixcache.core.history import History
from mixcache.core.signals import relative_l1, to_floats, total
from mixcache.predictors import LINE, PARABOLA, REUSE, Predictor, damped

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


def test_reuse_repeats_the_last() -> None:
    assert number(filled(lambda s: 10 * s).predict(0.4, REUSE)) == pytest.approx(7.0)


def test_a_line_is_exact_on_a_line() -> None:
    history = filled(lambda s: 3 - 2 * s)
    assert number(history.predict(0.4, LINE)) == pytest.approx(2.2, abs=1e-6)
    assert number(history.predict(0.0, LINE)) == pytest.approx(3.0, abs=1e-6)


@pytest.mark.parametrize("predictor", [LINE, PARABOLA])
@pytest.mark.parametrize("damping", [0.0, 0.25, 1.0])
def test_an_extrapolation_is_followed_for_a_share_of_the_way(predictor: Predictor, damping: float) -> None:
    history = filled(lambda sigma: 3 * sigma - 1)
    assert number(history.predict(0.4, damped(predictor, damping))) == pytest.approx(
        1.1 + damping * (0.2 - 1.1), abs=1e-5
    )


def test_a_line_looks_at_the_last_two_alone() -> None:
    # 81 at 0.9 and 49 at 0.7 make the line 160 s - 63
    assert number(filled(lambda s: 100 * s**2).predict(0.5, LINE)) == pytest.approx(17.0, abs=1e-4)


def test_a_parabola_is_exact_on_a_parabola() -> None:
    history = filled(lambda s: 100 * s**2 - 30 * s + 1)
    assert number(history.predict(0.5, PARABOLA)) == pytest.approx(25 - 15 + 1, abs=1e-4)
    assert number(history.predict(0.0, PARABOLA)) == pytest.approx(1.0, abs=1e-4)


def test_a_short_history_takes_a_simpler_predictor() -> None:
    one = filled(lambda s: 5 * s, sigmas=[0.8])
    assert [number(one.predict(0.1, predictor)) for predictor in (REUSE, LINE, PARABOLA)] == pytest.approx(
        [4.0, 4.0, 4.0]
    )
    two = filled(lambda s: 5 * s, sigmas=[0.8, 0.6])
    assert [number(two.predict(0.1, predictor)) for predictor in (REUSE, LINE, PARABOLA)] == pytest.approx(
        [3.0, 0.5, 0.5], abs=1e-6
    )


def test_equal_sigmas_repeat_the_last() -> None:
    history = History(3)
    for step, (sigma, value) in enumerate([(0.9, 1.0), (0.5, 2.0), (0.5, 7.0)]):
        history.push(step, sigma, torch.tensor([value]))
    assert [history.predict(0.3, predictor).item() for predictor in (REUSE, LINE, PARABOLA)] == [7.0, 7.0, 7.0]


def test_only_the_last_values_are_kept() -> None:
    history = filled(lambda s: s, length=2)
    assert (len(history), history.age(step=5)) == (2, 3)
    assert num_bytes(history.values()) == 2 * 6 * 4
    assert number(history.last) == pytest.approx(0.7)
    history.clear()
    assert (len(history), num_bytes(history.values()), history.last) == (0, 0, None)


def test_bytes_of_half_precision() -> None:
    history = History(1)
    history.push(0, 1.0, torch.ones(3, 5, dtype=torch.bfloat16))
    assert num_bytes(history.values()) == 30


def test_what_is_repeated_is_not_copied() -> None:
    history = filled(lambda s: 10 * s)
    assert history.predict(0.5, REUSE) is history.last
    history.predict(0.5, LINE).zero_()
    assert number(history.last) == pytest.approx(7.0)


@pytest.mark.parametrize("predictor", [REUSE, LINE, PARABOLA])
def test_predict_keeps_the_dtype_and_sums_in_float32(predictor: Predictor) -> None:
    history = History(3)
    for step, (sigma, value) in enumerate([(1.0, 256.0), (0.75, 258.0), (0.5, 260.0)]):
        history.push(step, sigma, torch.tensor([value], dtype=torch.bfloat16))
    predicted = history.predict(0.25, predictor)
    assert predicted.dtype is torch.bfloat16
    assert predicted.item() == (260.0 if predictor == REUSE else 262.0)


def test_empty_history_is_an_error() -> None:
    with pytest.raises(ValueError, match="an empty history predicts nothing"):
        History(2).predict(0.5, REUSE)
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
