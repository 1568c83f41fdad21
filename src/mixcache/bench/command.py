"""`mixcache bench`: prepares a benchmark, runs or resumes it, and writes its results."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mixcache import generation, zoo
from mixcache.arguments import call_arguments, told_arguments
from mixcache.bench.families import select
from mixcache.bench.methods import Method
from mixcache.bench.page import write
from mixcache.bench.records import Progress
from mixcache.bench.results import assemble
from mixcache.bench.run import Benchmark
from mixcache.bench.source import code_hash
from mixcache.calibration import built_in_prompts
from mixcache.hosts.diffusers.denoisers import experts_of
from mixcache.hosts.diffusers.rows import row_for
from mixcache.names import unknown_name
from mixcache.profiles import profile_for, weights_hash
from mixcache.store import OtherCaseError, Store, write_json

SEED = 9000
MAX_PROMPTS = 200
NUM_CALIBRATION_PROMPTS = 4
FLOW_SCHEDULERS = {
    "unipc": "UniPCMultistepScheduler",
    "euler": "FlowMatchEulerDiscreteScheduler",
    "dpm++": "DPMSolverMultistepScheduler",
}
RESULTS, WORK, RECORDS = "results.json", "work", "records.jsonl"


@dataclass(frozen=True, kw_only=True)
class BenchConfig:
    """What is run on what. ValueError for an unknown method or scheduler, and for prompts that cannot be."""

    model: str = "shapes-wan"
    """Built-in model, or the folder of a diffusers pipeline."""
    methods: tuple[str, ...] = ("all",)
    """Names of `mixcache.bench.families`."""
    prompts: tuple[str, ...] = ()
    calibration_prompts: tuple[str, ...] = ()
    """For methods that calibrate themselves; training captions for a built-in model."""
    arguments: dict[str, Any]
    """Of the pipeline's call, those that were given."""
    placement: dict[str, str] = field(default_factory=dict)
    """`dtype` and `device` of the model, those that were given."""
    scheduler: str | None = None
    """One of `FLOW_SCHEDULERS`; the pipeline's own unless given."""
    seed: int = SEED
    num_repeats: int = 1
    command: str = ""
    """What makes these results again."""

    def __post_init__(self) -> None:
        select(self.methods, 50)
        if self.scheduler is not None and self.scheduler not in FLOW_SCHEDULERS:
            raise ValueError(unknown_name("scheduler", self.scheduler, FLOW_SCHEDULERS))
        if not self.prompts:
            raise ValueError("there is no prompt to measure on")
        if len(self.prompts) > MAX_PROMPTS:
            raise ValueError(
                f"{len(self.prompts)} prompts are over the {MAX_PROMPTS} of a run; --num-prompts N takes the first N"
            )


class Bench:
    """One benchmark in its folder: `run()` measures what is missing and writes the results."""

    def __init__(self, config: BenchConfig, out: Path, *, resume: bool = False, force: bool = False) -> None:
        self.config, self.out, self.work = config, out, out / WORK
        self._check_folder(resume, force)
        pipeline, defaults = self._load()
        self._loaded = [pipeline]
        self.arguments = call_arguments(pipeline, defaults, config.arguments)
        num_steps = self.arguments.setdefault("num_inference_steps", 50)
        transformer = type(pipeline.transformer).__name__
        self.methods: list[Method] = select(config.methods, num_steps, transformer)
        self.case = self._case(pipeline)
        self.store = self._opened(resume, force)

    def _check_folder(self, resume: bool, force: bool) -> None:
        if force:
            return
        has_run = (self.work / RECORDS).exists()
        if not resume and (has_run or (self.out / RESULTS).exists()):
            raise ValueError(
                f"{self.out} holds a run; --resume goes on with it, --force begins anew, --out names another"
            )
        if resume and not has_run and (self.out / RESULTS).exists():
            raise ValueError(f"{self.out} holds results, but not the work to resume; --force begins anew")

    def _load(self) -> tuple[Any, dict[str, Any]]:
        """The pipeline, and the arguments of its call that the model brings; TypeError where it is not supported."""
        pipeline, defaults = generation.open_model(self.config.model, **self.config.placement)
        row_for(getattr(pipeline, "transformer", None), pipeline)
        if self.config.scheduler is not None:
            pipeline.scheduler = flow_scheduler(self.config.scheduler, pipeline.scheduler)
        return pipeline, defaults

    def _fresh(self) -> Any:
        return self._loaded.pop() if self._loaded else self._load()[0]

    def _case(self, pipeline: Any) -> dict[str, Any]:
        """What must be the same in all records of a run."""
        experts = experts_of(pipeline).values()
        profile = profile_for(*experts)
        return {
            "model": self.config.model,
            "weights": " ".join(weights_hash(expert) for expert in experts),
            "profile": profile.digest if profile else None,
            "source": code_hash(),
            "arguments": told_arguments(self.arguments),
            "scheduler": type(pipeline.scheduler).__name__,
            "seed": self.config.seed,
            "prompts": list(self.config.prompts),
            "calibration_prompts": list(self.config.calibration_prompts),
            "versions": generation.versions(),
            "machine": generation.machine(pipeline._execution_device),
        }

    def _opened(self, resume: bool, force: bool) -> Store:
        """The records to go on with. With `force` those of another case are deleted, and without `resume` all."""
        if force and not resume and (self.work / RECORDS).exists():
            shutil.rmtree(self.work)
        store = Store(self.work / RECORDS)
        try:
            store.claim(self.case)
        except OtherCaseError as error:
            if not force:
                raise ValueError(
                    f"{self.out} holds a run of {error}: "
                    "its records cannot stand in one table with these; --force begins anew, --out names another"
                ) from None
            return self._opened(resume=False, force=True)
        return store

    def run(self, watch: Callable[[str], Progress] | None = None) -> dict[str, Any]:
        """Measures what is missing, writes results.json, results.md, quality.png and report.html, and returns what is
        in the first. `watch` is given a stage's name and gives what is told of its progress."""
        benchmark = Benchmark(
            self._fresh,
            self.arguments,
            self.config.prompts,
            self.config.calibration_prompts,
            seed=self.config.seed,
            store=self.store,
            num_repeats=self.config.num_repeats,
        )
        survey = benchmark.survey(self.methods, watch and watch("survey"))
        sound = [method for method in self.methods if survey[method.name]["failure"] is None]
        records = benchmark.run(sound, watch and watch("clips"))
        survey = benchmark.survey(self.methods)
        floor = benchmark.noise_floor()
        case = {"command": self.config.command, "num_repeats": self.config.num_repeats, **self.case}
        result = assemble(case, self.methods, survey, records, floor, benchmark.pace())
        write_json(self.out / RESULTS, result)
        write(result, self.out, benchmark.frames_path)
        return result


def held_out(model: str, num_prompts: int) -> tuple[str, ...]:
    """Captions for a built-in model that training never saw; ValueError for another model."""
    if model not in zoo.BUILT_IN and not Path(model).is_dir():
        raise ValueError(unknown_name("model or folder", model, zoo.BUILT_IN))
    if model not in zoo.BUILT_IN:
        raise ValueError("--prompts FILE is missing: only the built-in models bring captions of their own")
    from mixcache.zoo import world

    return tuple(world.held_out_captions(num_prompts, seed=1))


def calibration_captions(model: str, given: Sequence[str] | None) -> tuple[str, ...]:
    """Prompts for methods that calibrate themselves; none for a model of the user's without a file of them."""
    if given is not None:
        return tuple(given)
    return tuple(built_in_prompts(NUM_CALIBRATION_PROMPTS)) if model in zoo.BUILT_IN else ()


def flow_scheduler(name: str, own: Any) -> Any:
    """A scheduler for flow matching with the shift of the pipeline's own; ValueError where that is of another kind."""
    import diffusers

    config = own.config
    is_flow = "FlowMatch" in type(own).__name__ or config.get("prediction_type") == "flow_prediction"
    if not is_flow:
        raise ValueError(f"--scheduler is for models of flow matching; this pipeline has {type(own).__name__}")
    shift = config.get("flow_shift", config.get("shift", 1.0))
    chosen = getattr(diffusers, FLOW_SCHEDULERS[name])
    if name == "euler":
        return chosen(num_train_timesteps=config["num_train_timesteps"], shift=shift)
    return chosen(
        num_train_timesteps=config["num_train_timesteps"],
        prediction_type="flow_prediction",
        use_flow_sigmas=True,
        flow_shift=shift,
    )
