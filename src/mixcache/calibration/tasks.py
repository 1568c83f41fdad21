"""The tasks of a calibration, in their order: each has a name, and a run that was cut off goes on from those done."""

from __future__ import annotations

import hashlib
import io
import json
import logging
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from mixcache.arguments import check_call, told_arguments
from mixcache.calibration.assemble import Assembly, for_each_expert
from mixcache.calibration.config import CalibrationConfig
from mixcache.calibration.measured import Measured
from mixcache.calibration.plans import DAMPINGS, PLANNED_SPEEDUPS, Plans, best_damping, task_name
from mixcache.calibration.runs import Runs
from mixcache.decision import CACHED, Granularity
from mixcache.hosts.diffusers.attachment import enable
from mixcache.hosts.diffusers.denoisers import experts_of
from mixcache.hosts.diffusers.scheduler import is_repeatable
from mixcache.planning.profiles import FORMAT, Profile, fingerprint, weights_hash
from mixcache.planning.search import KEPT_PER_LEVEL
from mixcache.planning.trajectory import DOUBT
from mixcache.store import write_whole

logger = logging.getLogger("mixcache")
LAYOUT = 3
"""Of what the tasks leave in the unfinished file."""


class Calibration:
    """The measurements of one profile, each a task with a name; what is done is kept in the file `unfinished`."""

    def __init__(self, pipeline: Any, config: CalibrationConfig, unfinished: Path | None = None) -> None:
        self.pipeline, self.config, self.unfinished = pipeline, config, unfinished
        with enable(pipeline, "always_compute") as handle:  # ValueError or TypeError where it cannot be cached
            allowed = [granularity for granularity in CACHED if granularity.value in handle.row.granularities]
        check_call(pipeline, config.arguments)
        self._header = self._identity()
        self.measured = Measured(config, allowed)
        self.runs = Runs(pipeline, self.measured)
        self.assembly = Assembly(pipeline, self.measured)
        self.plans = Plans(self.assembly.profile, corrects=is_repeatable(pipeline.scheduler))
        if unfinished is not None and unfinished.exists():
            self.done.update(self._resumed(unfinished))

    @property
    def done(self) -> dict[str, Any]:
        """What each finished task gave, by its name."""
        return self.measured.done

    def _identity(self) -> str:
        """A hash of all that the results hang on."""
        experts, scheduler = experts_of(self.pipeline).values(), self.pipeline.scheduler
        model = [value for e in experts for value in (fingerprint(e), weights_hash(e), str(e.dtype))]
        own = str(replace(self.config, arguments=told_arguments(self.config.arguments)))
        # diffusers' notes about itself come in another order in each process
        settings = {name: value for name, value in scheduler.config.items() if not name.startswith("_")}
        facts = [FORMAT, LAYOUT, DOUBT, KEPT_PER_LEVEL, own, *model, [type(scheduler).__name__, settings]]
        return hashlib.sha256(json.dumps(facts, default=str).encode()).hexdigest()

    def _resumed(self, unfinished: Path) -> dict[str, Any]:
        try:
            saved = torch.load(unfinished, weights_only=True)
            header, done = saved["header"], dict(saved["done"])
        except Exception as error:  # a damaged file fails in many ways
            raise ValueError(f"{unfinished} is no calibration to go on from; delete it to begin anew") from error
        if header != self._header:
            raise ValueError(
                f"{unfinished} is of another calibration (model, prompts or settings); delete it to begin anew"
            )
        return done

    def tasks(self) -> Iterator[tuple[str, Callable[[], Any]]]:
        """All measurements by name, in order; later ones need the first."""
        for index in range(len(self.config.prompts)):
            yield f"{index} plain", partial(self.runs.plain, index)
            granularities = self.measured.granularities
            for granularity in granularities:
                if granularity is Granularity.CFG:
                    continue
                for first in self.measured.windows:
                    name = f"{index} sensitivity {granularity} {first}"
                    yield name, partial(self.runs.sensitivity, index, granularity, first)
            for granularity in granularities:
                for step in self.measured.impact_steps:
                    name = f"{index} impact {granularity} {step}"
                    yield name, partial(self.runs.impact, index, granularity, step)
            yield f"{index} times", partial(self.runs.times, index)
        for index in range(len(self.config.prompts)):
            for damping in DAMPINGS:
                for speedup in PLANNED_SPEEDUPS:
                    yield task_name(index, damping, speedup), partial(self._planned, index, damping, speedup)

    def _planned(self, index: int, damping: float, speedup: float) -> dict[str, float]:
        return self.runs.planned(index, self.plans.plan(damping, speedup), speedup)

    def run(self, on_task: Callable[[int, int], None] | None = None) -> Profile:
        """Does what is left, and puts the profile together; `on_task` is told (done, in all)."""
        names: list[str] = []
        for number, (name, task) in enumerate(self.tasks()):
            if not names:
                self.runs.warm_up()
            names.append(name)
            if name not in self.done:
                self.done[name] = task()
                logger.debug("%s", name)
                self._keep()
            if on_task:
                on_task(number + 1, self._num_tasks)
        damping, psnr_at_one = best_damping(self.done, len(self.config.prompts))
        return for_each_expert(self.plans.profile, damping=damping, psnr_at_one=round(psnr_at_one, 3))

    @property
    def _num_tasks(self) -> int:
        """Known once the first plain trajectory is there."""
        return sum(1 for _ in self.tasks())

    def _keep(self) -> None:
        if self.unfinished is not None:
            content = io.BytesIO()
            torch.save({"header": self._header, "done": self.done}, content)
            write_whole(self.unfinished, content.getvalue())
