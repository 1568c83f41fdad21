"""Engines that break a rule on purpose, to see what it is worth."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, cast

import torch

from mixcache.core.calls import CallInfo
from mixcache.core.engine import Engine
from mixcache.core.histories import StepRecord
from mixcache.core.run import Run, parts_of
from mixcache.decision import Granularity


class StackedEngine(Engine):
    """In a `cfg` step the cond call leaves its span out too: two granularities in one step, which rule 1 forbids."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._histories.kept |= {Granularity.CFG, Granularity.BLOCK}

    def _computed(self, record: StepRecord, info: CallInfo, run: Run) -> torch.Tensor:
        decision = record.decision
        if decision.granularity is not Granularity.CFG:
            return super()._computed(record, info, run)
        record.decision = replace(decision, granularity=Granularity.BLOCK)
        try:
            output = super()._computed(record, info, run)
        finally:
            record.decision = decision
        record.outputs[info.branch] = output.detach().clone()
        return output


class FedEngine(Engine):
    """Approximated values enter the histories like computed ones, which rule 2 forbids."""

    def call(self, info: CallInfo, run: Run) -> torch.Tensor:
        """The output, which the next step's histories will hold whatever it is, and a predicted residual with it."""
        output = super().call(info, run)
        record = cast(StepRecord, self._record)
        record.outputs |= parts_of(output.detach().clone(), info)
        if record.decision.granularity is Granularity.BLOCK:
            decision = record.decision
            predicted = self._histories.residuals(info.branch, info.sigma, decision.order, decision.trust)
            record.residuals |= {(info.branch, index): residual.clone() for index, residual in enumerate(predicted)}
        return output


ENGINES: dict[str, type[Engine]] = {"": Engine, "stacked": StackedEngine, "fed": FedEngine}
