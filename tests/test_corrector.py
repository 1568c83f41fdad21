"""Cached steps that are taken again: real schedulers under a velocity that is a polynomial in the noise level.

Where that polynomial is of one degree more than the predictor, interpolation is exact, so a corrected run has to arrive
where the plain one does, to rounding.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch
from diffusers import (
    CogVideoXDDIMScheduler,
    CogVideoXDPMScheduler,
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    UniPCMultistepScheduler,
)
from traces import letters

import mixcache
from mixcache.core.calls import CallInfo, End, Span
from mixcache.core.corrector import Corrector
from mixcache.core.engine import Engine, num_bytes
from mixcache.core.histories import StepRecord
from mixcache.core.velocity import v_from_velocity
from mixcache.decision import Decision, Granularity, Step
from mixcache.hosts.diffusers.levels import mixes_of
from mixcache.hosts.diffusers.scheduler import REPEATABLE, SchedulerHook, is_repeatable
from mixcache.policies import Bounded, Policy
from mixcache.policies.base import Needs
from mixcache.predictors import LINE, PARABOLA, REUSE
from mixcache.trace import Call, Trace, TraceWriter

NUM_STEPS = 10
POLYNOMIALS = (REUSE, LINE, PARABOLA)
SHAPE = (1, 2, 3, 3)
V = {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
SCHEDULERS: dict[str, Callable[[], Any]] = {
    "FlowMatchEulerDiscreteScheduler": lambda: FlowMatchEulerDiscreteScheduler(shift=3.0),
    "UniPCMultistepScheduler": lambda: UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
    ),
    "DPMSolverMultistepScheduler": lambda: DPMSolverMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
    ),
    "DDIMScheduler": lambda: DDIMScheduler(**V),
    "CogVideoXDDIMScheduler": lambda: CogVideoXDDIMScheduler(**V),
}
Generate = Callable[..., torch.Tensor]


@dataclass(frozen=True, kw_only=True)
class Scripted(Policy):
    """Caches `step` where the script says s."""

    script: str
    order: int
    corrector: bool = True
    correction: int | None = None
    told: list[bool] = field(default_factory=list)
    """`Step.corrects` of each step."""

    @property
    def needs(self) -> Needs:
        kept = (Granularity.STEP,)
        predictors = POLYNOMIALS[: self.order + 1]
        return Needs(
            granularities=kept, predictors=predictors, correction=self.corrector, correction_degree=self.correction
        )

    def decide(self, step: Step, state: Any) -> Decision:
        self.told.append(step.corrects)
        is_cached = self.script[step.index] == "s"
        if not is_cached:
            return Decision(granularity=Granularity.COMPUTE)
        predictor = POLYNOMIALS[self.order].for_length(step.history_lengths[Granularity.STEP])
        return Decision(granularity=Granularity.STEP, predictor=predictor)


@dataclass
class ModelRun:
    """A call of a model without blocks."""

    latents: torch.Tensor
    output: torch.Tensor

    def full(self, *, records: bool) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
        return self.output, ()


def denoised(
    scheduler: Any,
    script: str,
    *,
    degree: int,
    order: int,
    corrector: bool = True,
    policy: Policy | None = None,
    change: Callable[[int, torch.Tensor], torch.Tensor] = lambda index, latents: latents,
    **arguments: Any,
) -> tuple[torch.Tensor, Trace]:
    """Where the loop of a pipeline arrives, and its trace. `change` is done to the latents after a step."""
    scheduler.set_timesteps(NUM_STEPS)
    generator = torch.Generator().manual_seed(0)
    latents, *terms = torch.randn(degree + 2, *SHAPE, generator=generator, dtype=torch.float64)
    mixes = mixes_of(scheduler, scheduler.timesteps.tolist())
    levels = [mix.level for mix in mixes] or scheduler.sigmas.tolist()
    trace = Trace(num_blocks=4)
    policy = policy or Scripted(script=script, order=order, corrector=corrector)
    engine = Engine(policy, Span(1, 3, 4), lambda: None, TraceWriter(trace))
    hook = SchedulerHook(scheduler)
    hook.put_on()
    hook.engine = engine
    try:
        for index, timestep in enumerate(scheduler.timesteps):
            level, mix = levels[index], mixes[index] if mixes else None
            info = CallInfo(branch="cond", step=index, num_steps=NUM_STEPS, sigma=level, signature=(), mix=mix)
            velocity = sum(level**n * term for n, term in enumerate(terms))
            output = engine.call(info, ModelRun(latents, v_from_velocity(velocity, latents, mix)))
            latents = scheduler.step(output, timestep, latents, return_dict=False, **arguments)[0]
            latents = change(index, latents)
        engine.end(End.DONE)
    finally:
        hook.take_off()
    assert engine.held_bytes == 0
    return latents, trace


def distance(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).abs().max() / b.abs().max())


def test_every_repeatable_scheduler_is_tested() -> None:
    assert set(SCHEDULERS) == set(REPEATABLE)
    assert all(is_repeatable(make()) for make in SCHEDULERS.values())


@pytest.mark.parametrize("order", [0, 1])
@pytest.mark.parametrize("name", SCHEDULERS)
def test_a_corrected_run_arrives_where_the_plain_one_does(name: str, order: int) -> None:
    plain, _ = denoised(SCHEDULERS[name](), "." * NUM_STEPS, degree=order + 1, order=order)
    script = "..s.ss.ss."
    corrected, trace = denoised(SCHEDULERS[name](), script, degree=order + 1, order=order)
    uncorrected, _ = denoised(SCHEDULERS[name](), script, degree=order + 1, order=order, corrector=False)
    assert letters(trace) == script
    assert [entry.num_corrected for entry in trace] == [0, 0, 0, 1, 0, 0, 2, 0, 0, 2]
    assert distance(corrected, plain) < 1e-5  # schedulers keep some constants in float32
    assert distance(uncorrected, plain) > 1e-3


def test_a_higher_order_is_corrected_less_far_where_little_is_known() -> None:
    """One computed step before the first run: a line is all that can go through two values."""
    scheduler = SCHEDULERS["FlowMatchEulerDiscreteScheduler"]
    plain, _ = denoised(scheduler(), "." * NUM_STEPS, degree=1, order=1)
    corrected, _ = denoised(scheduler(), ".s.ss.ss..", degree=1, order=1)
    assert distance(corrected, plain) < 1e-5


@pytest.mark.parametrize("name", SCHEDULERS)
def test_nothing_is_changed_where_nothing_was_cached(name: str) -> None:
    hooked, trace = denoised(SCHEDULERS[name](), "." * NUM_STEPS, degree=2, order=1)
    plain, _ = denoised(SCHEDULERS[name](), "." * NUM_STEPS, degree=2, order=1, corrector=False)
    assert torch.equal(hooked, plain)
    assert not any(entry.num_corrected for entry in trace)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("in_place", [False, True])
def test_latents_that_somebody_changed_are_left_alone(in_place: bool, mode: Callable[[], Any]) -> None:
    """A callback's changes would be lost if the steps before them were taken again."""

    def change(index: int, latents: torch.Tensor) -> torch.Tensor:
        if index != 4:
            return latents
        return latents.add_(0.5) if in_place else latents + 0.5

    make = SCHEDULERS["FlowMatchEulerDiscreteScheduler"]
    with mode():
        run, trace = denoised(make(), "....s.....", degree=2, order=1, change=change)
        assert torch.equal(run, denoised(make(), "....s.....", degree=2, order=1, corrector=False, change=change)[0])
        assert not any(entry.num_corrected for entry in trace)
        run, trace = denoised(make(), "...sss..s.", degree=2, order=1, change=change)
        # of the three cached steps the last alone is after the change
        assert [entry.num_corrected for entry in trace] == [0] * 6 + [1, 0, 0, 1]


@pytest.mark.parametrize("dtypes", [(torch.bfloat16,), (torch.bfloat16, torch.float32), (torch.float16, torch.float32)])
def test_latents_that_the_pipeline_rounds_are_corrected_all_the_same(dtypes: tuple[torch.dtype, ...]) -> None:
    """Mochi keeps bfloat16 between steps of float32, and CogVideoX goes on with the rounded ones."""

    def rounded(index: int, latents: torch.Tensor) -> torch.Tensor:
        for dtype in dtypes:
            latents = latents.to(dtype)
        return latents

    make = SCHEDULERS["FlowMatchEulerDiscreteScheduler"]
    run, trace = denoised(make(), "..s.ss.ss.", degree=2, order=1, change=rounded)
    assert sum(entry.num_corrected for entry in trace) == 5
    assert run.dtype is dtypes[-1]
    assert distance(run, denoised(make(), "." * NUM_STEPS, degree=2, order=1)[0]) < 0.05


def test_policies_are_told_whether_steps_are_corrected() -> None:
    """Not before the solver was seen, and not where the latents were changed before the last step."""
    make = SCHEDULERS["FlowMatchEulerDiscreteScheduler"]
    policy = Scripted(script="..ss.ss.s.", order=1)
    denoised(make(), policy.script, degree=2, order=1, policy=policy)
    assert policy.told == [False] + [True] * 9
    policy = Scripted(script="..ss.ss.s.", order=1)
    denoised(
        make(), policy.script, degree=2, order=1, policy=policy, change=lambda index, x: x + 0.5 if index == 2 else x
    )
    # the change shows at step 3
    assert policy.told == [False, True, True, True, False, True, True, True, True, True]
    policy = Scripted(script="..s.ss.s..", order=1)
    denoised(make(), policy.script, degree=2, order=1, policy=policy, change=lambda index, x: x + 0.5)
    assert policy.told == [False, True] + [False] * 8
    policy = Scripted(script="." * NUM_STEPS, order=1, corrector=False)
    denoised(make(), policy.script, degree=2, order=1, policy=policy)
    assert not any(policy.told)


def test_latents_in_other_memory_are_still_the_same() -> None:
    make = SCHEDULERS["FlowMatchEulerDiscreteScheduler"]
    copied, trace = denoised(make(), "..ss.s....", degree=2, order=1, change=lambda index, latents: latents.clone())
    assert torch.equal(copied, denoised(make(), "..ss.s....", degree=2, order=1)[0])
    assert sum(entry.num_corrected for entry in trace) == 3


def test_cached_steps_at_the_end_stay_as_they_are() -> None:
    make = SCHEDULERS["UniPCMultistepScheduler"]
    run, trace = denoised(make(), "........ss", degree=2, order=1)
    assert torch.equal(run, denoised(make(), "........ss", degree=2, order=1, corrector=False)[0])
    assert not any(entry.num_corrected for entry in trace)


def test_arguments_that_draw_noise_switch_it_off() -> None:
    torch.manual_seed(0)
    _, trace = denoised(SCHEDULERS["CogVideoXDDIMScheduler"](), "..s.ss.ss.", degree=1, order=0, eta=0.0)
    assert sum(entry.num_corrected for entry in trace) == 5
    _, trace = denoised(SCHEDULERS["CogVideoXDDIMScheduler"](), "..s.ss.ss.", degree=1, order=0, eta=0.5)
    assert sum(entry.num_corrected for entry in trace) == 0


def test_schedulers_that_are_not_repeatable() -> None:
    assert not is_repeatable(None)
    assert not is_repeatable(FlowMatchHeunDiscreteScheduler())
    assert not is_repeatable(CogVideoXDPMScheduler())
    assert not is_repeatable(FlowMatchEulerDiscreteScheduler(stochastic_sampling=True))
    assert not is_repeatable(DPMSolverMultistepScheduler(algorithm_type="sde-dpmsolver++"))


# ------------------------------------------------------------------------------------------------------- the corrector


class Euler:
    """A solver that counts: sample + output, and where it is."""

    def __init__(self) -> None:
        self.taken: list[float] = []

    def state(self) -> int:
        return len(self.taken)

    def restore(self, state: int) -> None:
        del self.taken[state:]

    def advance(self, output: torch.Tensor, timestep: Any, sample: torch.Tensor) -> torch.Tensor:
        self.taken.append(float(output))
        return sample + output


def corrected_steps(
    granularities: list[Granularity], outputs: list[float], order: int = 0, degree: int | None = None
) -> list[float]:
    """The outputs that the solver has taken in the end; sigma falls by 0.1 a step."""
    corrector, solver, sample = Corrector(order + 1, degree), Euler(), torch.zeros(())
    for index, (granularity, output) in enumerate(zip(granularities, outputs, strict=True)):
        info = CallInfo(branch="cond", step=index, num_steps=9, sigma=1 - index / 10, signature=())
        record = StepRecord(info=info, decision=Decision(granularity=granularity, predictor=POLYNOMIALS[order]))
        value, sample = corrector.before(record, {}, solver, torch.tensor(output), index, sample)
        sample = solver.advance(value, index, sample)
        corrector.after(sample)
    assert float(sample) == pytest.approx(sum(solver.taken))
    return solver.taken


C, S, G, B = Granularity.COMPUTE, Granularity.STEP, Granularity.CFG, Granularity.BLOCK


def test_reuse_becomes_a_line() -> None:
    assert corrected_steps([C, S, S, C], [1, 1, 1, 4]) == pytest.approx([1, 2, 3, 4])


def test_reuse_becomes_a_parabola_where_the_policy_says_so() -> None:
    """The outputs are squares of the step; a line misses them."""
    squares = [0, 1, 1, 9, 9, 9, 36]
    assert corrected_steps([C, C, S, C, S, S, C], squares, degree=2) == pytest.approx([0, 1, 4, 9, 16, 25, 36])
    assert corrected_steps([C, C, S, C, S, S, C], squares) == pytest.approx([0, 1, 5, 9, 18, 27, 36])


def test_a_line_ahead_may_be_corrected_by_a_line() -> None:
    assert corrected_steps([C, C, S, C], [0, 1, 2, 9], order=1, degree=1) == pytest.approx([0, 1, 5, 9])


def test_with_too_few_nodes_the_degree_is_lower() -> None:
    assert corrected_steps([C, S, C], [1, 1, 9], degree=2) == pytest.approx([1, 5, 9])


@pytest.mark.parametrize("name", SCHEDULERS)
def test_a_parabola_is_met_by_reuse_corrected_by_a_parabola(name: str) -> None:
    plain, _ = denoised(SCHEDULERS[name](), "." * NUM_STEPS, degree=2, order=0)
    distances = []
    for correction in (None, 2):
        policy = Bounded(policy=Scripted(script="..ss.s.ss.", order=0, correction=correction), num_warmup_steps=1)
        run, _ = denoised(SCHEDULERS[name](), "", degree=2, order=0, policy=policy)
        distances.append(distance(run, plain))
    assert distances[0] > 1e-3
    assert distances[1] < 1e-5  # schedulers keep some constants in float32


def test_what_was_computed_in_part_is_kept() -> None:
    assert corrected_steps([C, S, G, B, C], [1, 1, 2.5, 7, 9]) == pytest.approx([1, 3, 2.5, 7, 9])
    assert corrected_steps([C, G, C], [1, 2.5, 9]) == pytest.approx([1, 2.5, 9])


def test_outputs_of_other_guidance_are_not_interpolated() -> None:
    """Guidance ends after the cached step: what was computed before it is of another kind."""
    corrector, solver, sample = Corrector(num_values=1), Euler(), torch.zeros(())
    branches = [("cond", "uncond"), ("cond", "uncond"), ("cond",), ("cond",), ("cond",)]
    for index, granularity in enumerate([C, S, C, S, C]):
        info = CallInfo(branch="cond", step=index, num_steps=9, sigma=1 - index / 10, signature=())
        calls = [Call(branch=name, computed=granularity is C, num_blocks=0) for name in branches[index]]
        record = StepRecord(info=info, decision=Decision(granularity=granularity), calls=calls)
        value, sample = corrector.before(
            record, {}, solver, torch.tensor([5.0, 5.0, 1.0, 1.0, 3.0][index]), index, sample
        )
        sample = solver.advance(value, index, sample)
        corrector.after(sample)
    assert solver.taken == pytest.approx([5, 5, 1, 2, 3])


def test_what_is_cached_before_anything_was_computed_is_kept() -> None:
    assert corrected_steps([S, C, S, C], [7, 1, 1, 3]) == pytest.approx([7, 1, 2, 3])


def test_a_second_stage_of_the_same_step_ends_it() -> None:
    corrector, solver, sample = Corrector(num_values=1), Euler(), torch.zeros(())
    info = CallInfo(branch="cond", step=0, num_steps=9, sigma=1.0, signature=())
    record = StepRecord(info=info, decision=Decision(granularity=C))
    for _ in range(3):
        assert corrector.before(record, {}, solver, torch.tensor(2.0), 0, sample) == (torch.tensor(2.0), sample)
    assert num_bytes(corrector.tensors()) == 0
    later = StepRecord(info=replace(info, step=1, sigma=0.9), decision=Decision(granularity=S))
    corrector.before(later, {}, solver, torch.tensor(2.0), 1, sample)
    assert num_bytes(corrector.tensors()) == 0  # nothing computed is known that it could start from


def test_bytes() -> None:
    """One value for order 0, the latents before the run, and what was computed in part; nothing else."""
    corrector, solver, sample = Corrector(num_values=1), Euler(), torch.zeros(())
    seen = []
    for index, granularity in enumerate([C, C, C, S, G, S]):
        info = CallInfo(branch="cond", step=index, num_steps=6, sigma=1 - index / 10, signature=())
        record = StepRecord(info=info, decision=Decision(granularity=granularity))
        _, sample = corrector.before(record, {}, solver, torch.tensor(1.0), index, sample)
        corrector.after(sample)
        seen.append(num_bytes(corrector.tensors()) // 4)
    assert seen == [1, 1, 1, 2, 3, 0]  # nothing after the last step


# ------------------------------------------------------------------------------------------------------- the scheduler


def test_the_scheduler_is_as_before() -> None:
    scheduler = SCHEDULERS["DDIMScheduler"]()
    parameters = inspect.signature(scheduler.step).parameters
    hook = SchedulerHook(scheduler)
    hook.put_on()
    assert inspect.signature(scheduler.step).parameters == parameters  # pipelines look for `eta`
    hook.take_off()
    assert "step" not in vars(scheduler)


def test_what_covered_the_step_before_is_put_back() -> None:
    scheduler = SCHEDULERS["DDIMScheduler"]()
    scheduler.step = covering = lambda *args, **kwargs: None
    hook = SchedulerHook(scheduler)
    hook.put_on()
    hook.take_off()
    assert scheduler.step is covering


def test_two_hooks_on_one_scheduler_leave_nothing_in_either_order() -> None:
    for order in (0, 1), (1, 0):
        scheduler = SCHEDULERS["DDIMScheduler"]()
        hooks = []
        for _ in range(2):
            hooks.append(SchedulerHook(scheduler))
            hooks[-1].put_on()
        for place in order:
            hooks[place].take_off()
        assert "step" not in vars(scheduler)


def test_what_covered_it_since_stays() -> None:
    scheduler = SCHEDULERS["FlowMatchEulerDiscreteScheduler"]()
    hook = SchedulerHook(scheduler)
    hook.put_on()
    inner = scheduler.step
    scheduler.step = covering = lambda *args, **kwargs: inner(*args, **kwargs)
    hook.take_off()
    assert scheduler.step is covering
    scheduler.set_timesteps(2)
    assert torch.equal(
        scheduler.step(torch.zeros(1), scheduler.timesteps[0], torch.ones(1), return_dict=False)[0], torch.ones(1)
    )


def test_a_copy_of_the_scheduler_steps_by_itself() -> None:
    scheduler = SCHEDULERS["UniPCMultistepScheduler"]()
    scheduler.set_timesteps(4)
    hook = SchedulerHook(scheduler)
    hook.put_on()
    copied = copy.deepcopy(scheduler)
    assert copied.step.__self__ is copied
    copied.step(torch.zeros(1), copied.timesteps[0], torch.ones(1))
    assert (copied.step_index, scheduler.step_index) == (1, None)


# -------------------------------------------------------------------------------------------------------- the pipeline


def test_the_handle_puts_it_on_and_takes_it_off(pipeline: Any, generate: Generate) -> None:
    plain = generate(pipeline)
    cadence = {"granularities": "step", "period": 2, "predictor": "line"}
    with mixcache.enable(pipeline, "every_nth", **cadence) as handle:
        uncorrected = generate(pipeline)
        assert "step" not in vars(pipeline.scheduler)
        assert handle.summary()["num_corrected"] == 0
    with mixcache.enable(pipeline, "every_nth", corrector=True, **cadence) as handle:
        corrected = generate(pipeline)
        first = pipeline.scheduler
        pipeline.scheduler = type(first).from_config(first.config)
        again = generate(pipeline)
        assert "step" not in vars(first)
    assert "step" not in vars(pipeline.scheduler)
    assert handle.summary()["num_corrected"] == handle.summary()["granularity_counts"]["step"] == 6
    assert torch.equal(corrected, again)
    assert not torch.equal(corrected, uncorrected)
    assert torch.equal(generate(pipeline), plain)


def test_a_scheduler_that_draws_noise_is_left_alone(pipeline: Any, generate: Generate) -> None:
    pipeline.scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0, stochastic_sampling=True)
    with mixcache.enable(pipeline, "every_nth", corrector=True) as handle:
        generate(pipeline)
        assert "step" not in vars(pipeline.scheduler)
    assert handle.summary()["num_corrected"] == 0
    assert handle.summary()["granularity_counts"]["step"] > 0


def test_an_error_in_the_middle_leaves_nothing_behind(pipeline: Any, generate: Generate) -> None:
    def stop(pipe: Any, index: int, timestep: Any, values: dict[str, Any]) -> dict[str, Any]:
        if index == 5:
            raise KeyboardInterrupt
        return values

    cadence = {"granularities": "step", "period": 2, "predictor": "line", "corrector": True}
    with mixcache.enable(pipeline, "every_nth", **cadence):
        undisturbed = generate(pipeline)
        with pytest.raises(KeyboardInterrupt):
            generate(pipeline, callback_on_step_end=stop)
        assert torch.equal(generate(pipeline), undisturbed)
