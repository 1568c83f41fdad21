"""Engines that break a rule on purpose, to see what it is worth."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, cast

import torch

from mixcache.calls import CallInfo, SpanMode
from mixcache.decision import Granularity
from mixcache.engine import Compute, Engine, Streams, parts_of
from mixcache.histories import StepRecord


class StackedEngine(Engine):
    """In a `cfg` step the cond call leaves its span out too: two granularities in one step, which rule 1 forbids."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._histories.kept |= {Granularity.CFG, Granularity.BLOCK}

    def _computed_output(self, record: StepRecord, info: CallInfo, compute: Compute) -> torch.Tensor:
        decision = record.decision
        if decision.granularity is not Granularity.CFG:
            return super()._computed_output(record, info, compute)
        record.decision = replace(decision, granularity=Granularity.BLOCK)
        try:
            output = super()._computed_output(record, info, compute)
        finally:
            record.decision = decision
        record.outputs[info.branch] = output.detach().clone()
        return output


class FedEngine(Engine):
    """Approximated values enter the histories like computed ones, which rule 2 forbids."""

    def call(self, info: CallInfo, compute: Compute, compute_conditional: Compute | None = None) -> torch.Tensor:
        """The output, which the next step's histories will hold whatever it is."""
        output = super().call(info, compute, compute_conditional)
        cast(StepRecord, self._record).outputs |= parts_of(output.detach().clone(), info)
        return output

    def span_ends(self, streams: Streams) -> Streams:
        """What goes on to the next block; a predicted residual is kept too."""
        before, is_skipped = self._span_input, self.span_mode is SpanMode.SKIP
        after = super().span_ends(streams)
        if is_skipped and before and self._record is not None:
            for index, (begin, end) in enumerate(zip(before, after, strict=True)):
                self._record.residuals[self._call, index] = (end - begin).detach()
        return after


ENGINES: dict[str, type[Engine]] = {"": Engine, "stacked": StackedEngine, "fed": FedEngine}
