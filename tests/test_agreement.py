"""What several ranks say to each other, on one: decisions as numbers, and distances from sums of shards."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import mixcache
from mixcache.core.agreement import decoded, encoded
from mixcache.core.calls import CallInfo
from mixcache.core.histories import Histories, StepRecord
from mixcache.core.measuring import distances, is_of_shards, measurement_of, products
from mixcache.decision import Decision, Granularity
from mixcache.hosts.diffusers.parallel import check_span, group_of, spread_weights
from mixcache.predictors import LINE, REUSE, damped

COMPUTE = Decision(granularity=Granularity.COMPUTE)
NEEDED = (REUSE, LINE)


@pytest.mark.parametrize("granularity", Granularity)
@pytest.mark.parametrize("predictor", [REUSE, LINE, damped(LINE, 0.3)], ids=str)
def test_a_decision_is_read_back_to_the_bit(granularity: Granularity, predictor: Any) -> None:
    code = encoded(Decision(granularity=granularity, predictor=predictor, reason="cost 0.1"), NEEDED)
    again = decoded(code, NEEDED)
    assert (again.granularity, again.predictor) == (granularity, predictor)
    assert again.reason == "as rank 0 decided"


def test_a_predictor_that_nobody_knows_is_an_error() -> None:
    from mixcache.predictors import Lagrange

    decision = Decision(granularity=Granularity.STEP, predictor=Lagrange(degree=3))
    with pytest.raises(ValueError, match=r"predictor cubic is not one of the policy's: name it in Needs"):
        encoded(decision, NEEDED)


def record(residual: torch.Tensor, step: int, sigma: float) -> StepRecord:
    info = CallInfo(branch="cond", step=step, num_steps=9, sigma=sigma, signature=())
    output = torch.full((4,), sigma)
    return StepRecord(info=info, decision=COMPUTE, outputs={"cond": output}, residuals={("cond", 0): residual})


def measured(before: torch.Tensor, residual: torch.Tensor, *, trials: bool, of_shards: bool) -> Any:
    """The signals at the second of two computed steps."""
    histories = Histories(2, {Granularity.STEP, Granularity.BLOCK})
    histories.refresh(record(before, 0, 1.0), keeps_outputs=True)
    now = record(residual, 1, 0.5)
    signals = products(now, histories, NEEDED) if trials else distances(now, histories, LINE, of_shards=of_shards)
    return now, {name: float(value) for name, value in signals.items()}


BEFORE, NOW = torch.tensor([1.0, 2.0, 3.0, -4.0]), torch.tensor([1.5, 2.0, -1.0, 4.0])
KEPT = {Granularity.STEP, Granularity.BLOCK}


@pytest.mark.parametrize("trials", [False, True])
@pytest.mark.parametrize("cut", [1, 2])
def test_sums_over_shards_measure_what_the_whole_does(trials: bool, cut: int) -> None:
    now, whole = measured(BEFORE, NOW, trials=trials, of_shards=False)
    _, first = measured(BEFORE[:cut], NOW[:cut], trials=trials, of_shards=True)
    _, second = measured(BEFORE[cut:], NOW[cut:], trials=trials, of_shards=True)
    summed = {name: first[name] + second[name] * is_of_shards(name) for name in first}
    together, alone = measurement_of(now, summed, KEPT), measurement_of(now, whole, KEPT)
    if trials:
        choice = Granularity.BLOCK, REUSE
        # changes 0.5, 0, -4 and 8 over values 1.5, 2, -1 and 4: 80.25 / 23.25
        assert together.trials[choice].missed == pytest.approx(80.25 / 23.25)
        assert together.trials[choice].missed == pytest.approx(alone.trials[choice].missed)
    else:
        assert together.distances[Granularity.BLOCK] == pytest.approx(12.5 / 8.5)
        assert together.distances[Granularity.BLOCK] == pytest.approx(alone.distances[Granularity.BLOCK])
    assert together.deviation == alone.deviation


def test_one_process_has_no_group() -> None:
    assert group_of([torch.nn.Linear(2, 2)]) is None
    with pytest.raises(ValueError, match=r"group= is given and torch.distributed is not initialised"):
        group_of([torch.nn.Linear(2, 2)], object())


def test_one_process_imports_nothing_of_ranks(pipeline: Any, generate: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "mixcache.hosts.ranks", raising=False)
    with mixcache.enable(pipeline, "hindsight") as handle:
        generate(pipeline)
        assert len(handle.trace) == 12
    assert "mixcache.hosts.ranks" not in sys.modules


def test_tensor_parallel_is_refused_in_words() -> None:
    transformer = torch.nn.Linear(2, 2)
    assert spread_weights(transformer) == ""
    transformer._parallel_config = SimpleNamespace(tensor_parallel_config=object(), context_parallel_config=None)
    assert spread_weights(transformer).startswith("it is tensor parallel, which was never tried with the cache; spread")


def test_a_span_that_begins_before_tokens_are_spread() -> None:
    from mixcache.core.calls import Span

    transformer = torch.nn.Linear(2, 2)
    check_span(transformer, Span(0, 3, 4))
    transformer._parallel_config = object()
    check_span(transformer, Span(1, 3, 4))
    with pytest.raises(ValueError, match="span_first=0 leaves out the block before which"):
        check_span(transformer, Span(0, 3, 4))
