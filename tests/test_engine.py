"""The engine on calls whose outputs are arithmetic; sigma is 1, 0.9, 0.8, ...; tensors are full of one number."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch

import mixcache.core.engine
from mixcache.core.calls import CallInfo, End, Span
from mixcache.core.engine import Engine
from mixcache.decision import Choice, Decision, Granularity, Measurement, Step
from mixcache.policies import Policy
from mixcache.policies.base import Needs
from mixcache.predictors import LINE, PARABOLA, REUSE, damped
from mixcache.trace import Trace, TraceEntry, TraceWriter

C, S, G, B = Granularity.COMPUTE, Granularity.STEP, Granularity.CFG, Granularity.BLOCK
NUM_STEPS = 10
TENSOR_BYTES = 24
POLYNOMIALS = (REUSE, LINE, PARABOLA)


@dataclass
class Seen:
    """What a scripted policy was told."""

    steps: list[Step] = field(default_factory=list)
    measurements: list[Measurement] = field(default_factory=list)
    num_trajectories: int = 0


@dataclass(frozen=True, kw_only=True)
class Scripted(Policy):
    """Answers by the index of the step; past the script it computes."""

    script: Sequence[Granularity]
    order: int = 0
    damping: float = 1.0
    kept: tuple[Granularity, ...] = (S, G, B)
    measuring: bool = True
    seen: Seen = field(default_factory=Seen)

    @property
    def needs(self) -> Needs:
        return Needs(granularities=self.kept, predictors=POLYNOMIALS[: self.order + 1], distances=self.measuring)

    def init(self) -> Seen:
        self.seen.num_trajectories += 1
        return self.seen

    def decide(self, step: Step, state: Seen) -> Decision:
        state.steps.append(step)
        granularity = self.script[step.index] if step.index < len(self.script) else C
        return Decision(
            granularity=granularity, predictor=damped(POLYNOMIALS[self.order], self.damping), reason="script"
        )

    def observe(self, measurement: Measurement, state: Seen) -> None:
        state.measurements.append(measurement)


@dataclass
class ArithmeticRun:
    """One call of a transformer of 4 blocks: block 0 doubles, the span (blocks 1 and 2) adds a residual, block 3
    multiplies by 3."""

    host: Host
    x: float
    residual: float
    latents: torch.Tensor = field(default_factory=lambda: torch.zeros(2, 3))

    def full(self, *, records: bool) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
        self.host.num_computed += 1
        self.host.num_spans += 1
        residual = torch.full((2, 3), self.residual)
        return (torch.full((2, 3), self.x) * 2 + residual) * 3, (residual,) if records else ()

    def without_span(self, residuals: tuple[torch.Tensor, ...]) -> torch.Tensor:
        self.host.num_computed += 1
        return (torch.full((2, 3), self.x) * 2 + residuals[0]) * 3

    def conditional(self) -> None:
        return None


@dataclass
class FailingRun(ArithmeticRun):
    """Raises once its blocks have run."""

    error: BaseException = field(default_factory=ZeroDivisionError)

    def full(self, *, records: bool) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
        super().full(records=records)
        raise self.error

    def without_span(self, residuals: tuple[torch.Tensor, ...]) -> torch.Tensor:
        super().without_span(residuals)
        raise self.error


class Host:
    """Stands for the pipeline."""

    def __init__(self, policy: Policy, guidance: float | None = 5.0) -> None:
        self.trace, self.guidance = Trace(num_blocks=4), guidance
        self.engine = Engine(policy, Span(1, 3, 4), lambda: self.guidance, TraceWriter(self.trace))
        self.num_computed = 0
        self.num_spans = 0

    def call(self, step: int, branch: str, run: Any, **info: Any) -> float:
        settings: dict[str, Any] = {
            "branch": branch,
            "step": step,
            "num_steps": NUM_STEPS,
            "sigma": 1 - step / 10,
            "signature": ((2, 3), torch.float32),
        }
        output = self.engine.call(CallInfo(**settings | info), run)
        assert output.shape == (2, 3)
        first = float(output[0, 0])
        assert torch.equal(output, torch.full((2, 3), first)) or first != first
        return first

    def out(self, step: int, branch: str, value: float, **info: Any) -> float:
        """A call that would compute `value`; the span's residual is then 0."""
        return self.call(step, branch, ArithmeticRun(self, value / 6, 0.0), **info)

    def both(self, step: int, cond: float, uncond: float, **info: Any) -> tuple[float, float]:
        return self.out(step, "cond", cond, **info), self.out(step, "uncond", uncond, **info)

    def spanned(self, step: int, branch: str, x: float, residual: float) -> float:
        return self.call(step, branch, ArithmeticRun(self, x, residual))


def scripted(*script: Granularity, **settings: Any) -> Scripted:
    return Scripted(script=script, **settings)


def approx(*numbers: float) -> Any:
    return pytest.approx(numbers, rel=1e-5)


# --------------------------------------------------------------------------------------------------- what is predicted


def test_step_repeats_the_last_computed_output() -> None:
    host = Host(scripted(C, S, S, C, S))
    assert host.both(0, 10, 4) == approx(10, 4)
    assert host.both(1, 20, 8) == approx(10, 4)
    assert host.both(2, 30, 12) == approx(10, 4)
    assert host.both(3, 40, 16) == approx(40, 16)
    assert host.both(4, 50, 20) == approx(40, 16)
    assert host.num_computed == 4


def test_step_of_order_1_extrapolates_from_computed_values_alone() -> None:
    host = Host(scripted(C, S, C, S, S, order=1))
    host.both(0, 10, 4)
    assert host.both(1, 99, 99) == approx(10, 4)  # one value: order 0
    host.both(2, 30, 5)
    # 10 at sigma 1, 30 at 0.8: 40 at 0.7, 50 at 0.6; 4 and 5: 5.5 and 6
    assert host.both(3, 99, 99) == approx(40, 5.5)
    assert host.both(4, 99, 99) == approx(50, 6)


def test_half_damped_goes_half_the_way_of_an_extrapolation_and_is_traced() -> None:
    host = Host(scripted(C, C, S, G, order=1, damping=0.5))
    host.both(0, 10, 4)
    host.both(1, 20, 12)
    assert host.both(2, 99, 99) == approx(25, 16)  # 30 and 20 all the way
    assert host.both(3, 40, 99) == approx(40, 30)  # difference -8, and -12 all the way
    host.engine.end(End.DONE)
    assert [entry.predictor for entry in host.trace][2:] == [damped(LINE, 0.5)] * 2
    assert TraceEntry.from_json(host.trace[2].to_json()).predictor == damped(LINE, 0.5)


def test_half_damped_goes_half_the_way_in_a_span() -> None:
    host = Host(scripted(C, C, B, order=1, damping=0.5))
    host.spanned(0, "cond", 1, 5)
    host.spanned(1, "cond", 1, 9)
    assert host.spanned(2, "cond", 1, 99) == pytest.approx((2 + 11) * 3)  # residual 9, and 13 all the way


def test_trials_tell_the_error_for_any_damping() -> None:
    policy = LookingBack(script=(C, C, C), order=1, kept=(S, G))
    host = Host(policy)
    for step, (cond, uncond) in enumerate([(10.0, 4.0), (20.0, 8.0), (40.0, 20.0)]):
        host.both(step, cond, uncond)
    host.engine.end(End.DONE)
    trials = policy.seen.measurements[2].trials
    # guided 34 and 68: 68 + 34 damping, and 120 is true
    assert trials[S, LINE].error(0.5) == pytest.approx(35 / 120, rel=1e-4)
    # four times a difference of -6 and -12: -12 - 6 damping, and -20 is true
    assert trials[G, LINE].error(0.5) == pytest.approx(4 * 5 / 120, rel=1e-4)


def test_cfg_is_cond_plus_the_last_computed_difference() -> None:
    host = Host(scripted(C, G, C, G))
    host.both(0, 10, 4)
    assert host.both(1, 20, 99) == approx(20, 14)
    host.both(2, 30, 20)
    assert host.both(3, 50, 99) == approx(50, 40)
    assert host.num_computed == 6


def test_cfg_of_order_1() -> None:
    host = Host(scripted(C, C, G, order=1))
    host.both(0, 10, 4)
    host.both(1, 20, 12)
    assert host.both(2, 40, 99) == approx(40, 30)  # difference -6 at 1, -8 at 0.9: -10 at 0.8


def test_block_adds_the_last_computed_residual() -> None:
    host = Host(scripted(C, B, C, B))
    assert (host.spanned(0, "cond", 1, 5), host.spanned(0, "uncond", 1, 2)) == approx(21, 12)
    # (2 x + r) 3 with x = 2 and the residuals of step 0
    assert (host.spanned(1, "cond", 2, 99), host.spanned(1, "uncond", 2, 99)) == approx(27, 18)
    assert (host.spanned(2, "cond", 3, 9), host.spanned(2, "uncond", 3, 4)) == approx(45, 30)
    assert (host.spanned(3, "cond", 4, 99), host.spanned(3, "uncond", 4, 99)) == approx(51, 36)
    assert (host.num_computed, host.num_spans) == (8, 4)
    host.engine.end(End.DONE)
    assert [[c.num_blocks for c in entry.calls] for entry in host.trace] == [[4, 4], [2, 2], [4, 4], [2, 2]]
    assert host.trace.computed_share() == (4 + 2 + 4 + 2) / 16


def test_block_of_order_1() -> None:
    host = Host(scripted(C, C, B, order=1))
    host.spanned(0, "cond", 1, 5)
    host.spanned(1, "cond", 1, 7)
    assert host.spanned(2, "cond", 4, 99) == pytest.approx((8 + 9) * 3, rel=1e-5)


# ----------------------------------------------------------------------------------------------------- looking back


@dataclass(frozen=True, kw_only=True)
class LookingBack(Scripted):
    """Wants to know what every granularity and predictor would have been wrong by."""

    @property
    def needs(self) -> Needs:
        return replace(super().needs, distances=False, trials=True)


def errors_of(measurement: Measurement) -> dict[Choice, float]:
    return {choice: trial.error() for choice, trial in measurement.trials.items()}


def test_errors_are_of_the_guided_output_for_each_granularity_and_order() -> None:
    """At guidance 5 the guided output is uncond + 5 (cond - uncond)."""
    policy = LookingBack(script=(C, C, C), order=1, kept=(S, G))
    host = Host(policy)
    for step, (cond, uncond) in enumerate([(10.0, 4.0), (20.0, 8.0), (40.0, 20.0)]):
        host.both(step, cond, uncond)
    host.engine.end(End.DONE)
    first, second, third = [errors_of(measurement) for measurement in policy.seen.measurements]
    assert first == {}
    # guided 34, then 68, then 120; differences -6, -12, -20
    assert second == pytest.approx({(S, REUSE): 34 / 68, (G, REUSE): 4 * 6 / 68})
    assert third == pytest.approx(
        {(S, REUSE): 52 / 120, (S, LINE): 18 / 120, (G, REUSE): 4 * 8 / 120, (G, LINE): 4 * 2 / 120}, rel=1e-4
    )


@pytest.mark.parametrize("looking_back", [True, False])
def test_a_step_is_measured_with_the_scale_that_is_set_after_its_calls(looking_back: bool) -> None:
    """As pipelines do whose guidance changes from step to step."""
    policy = (LookingBack if looking_back else Scripted)(script=(C, C), kept=(S, G))
    host = Host(policy)
    for step, scale in enumerate((2.0, 3.0)):
        host.both(step, 10.0 * (step + 1), 4.0)
        host.guidance = scale
    host.engine.end(End.DONE)
    # at scale 3: 4 + 3 * 6 = 22, then 4 + 3 * 16 = 52
    assert host.trace[1].deviation == pytest.approx(30 / 52)
    if looking_back:
        assert policy.seen.measurements[1].trials[G, REUSE].error() == pytest.approx(2 * 10 / 52)


def test_without_a_scale_there_are_no_trials_of_cfg() -> None:
    policy = LookingBack(script=(C, C), kept=(S, G))
    host = Host(policy, guidance=None)
    for step in range(2):
        host.both(step, 10.0 + step, 4.0)
    host.engine.end(End.DONE)
    assert set(policy.seen.measurements[1].trials) == {(S, REUSE)}


def test_trials_of_all_granularities_at_once() -> None:
    """Outputs 60 and 30, then 90 and 30; residuals 4 and 1, then 10 and 1: guided by 5 the latter are 16, then 46."""
    policy = LookingBack(script=(C, C), kept=(S, G, B))
    host = Host(policy)
    for step, (x, residual) in enumerate([(8.0, 4.0), (10.0, 10.0)]):
        host.spanned(step, "cond", x, residual)
        host.spanned(step, "uncond", 4.5, 1.0)
    host.engine.end(End.DONE)
    guided = 30 + 5 * 60
    assert errors_of(policy.seen.measurements[1]) == pytest.approx(
        {(S, REUSE): 5 * 30 / guided, (G, REUSE): 4 * 30 / guided, (B, REUSE): 30 / 46}
    )


def test_a_policy_that_needs_trials_gets_the_deviation_from_its_trials_and_no_distances() -> None:
    policy = LookingBack(script=(C, C, C), order=1, kept=(S, G))
    host = Host(policy)
    for step, (cond, uncond) in enumerate([(10.0, 4.0), (20.0, 8.0), (40.0, 20.0)]):
        host.both(step, cond, uncond)
    host.engine.end(End.DONE)
    assert [entry.deviation for entry in host.trace] == [None, pytest.approx(34 / 68), pytest.approx(18 / 120)]
    assert not any(entry.distances for entry in host.trace)


def test_a_policy_that_needs_trials_and_may_not_choose_step_keeps_no_outputs() -> None:
    host = Host(LookingBack(script=(C, C, C), order=1, kept=(G,)))
    for step in range(3):
        host.both(step, 10.0 + step, 4.0)
    assert host.engine.held_bytes == 2 * TENSOR_BYTES  # of the difference
    host.engine.end(End.DONE)
    assert [entry.deviation for entry in host.trace] == [None, None, None]


def test_the_error_of_a_span_is_that_of_its_guided_residual() -> None:
    policy = LookingBack(script=(C, C, C), order=1, kept=(B,))
    host = Host(policy)
    for step, (cond, uncond) in enumerate([(5.0, 2.0), (7.0, 3.0), (10.0, 4.0)]):
        host.spanned(step, "cond", 1, cond)
        host.spanned(step, "uncond", 1, uncond)
    host.engine.end(End.DONE)
    errors = [errors_of(measurement) for measurement in policy.seen.measurements]
    # guided residuals 17, 23, 34
    assert errors[1] == pytest.approx({(B, REUSE): 6 / 23})
    assert errors[2] == pytest.approx({(B, REUSE): 11 / 34, (B, LINE): 5 / 34}, rel=1e-4)


def test_nothing_is_tried_for_a_policy_that_does_not_look_back() -> None:
    policy = scripted(C, C, C)
    host = Host(policy)
    for step in range(3):
        host.both(step, 10, 4)
    host.engine.end(End.DONE)
    assert [dict(measurement.trials) for measurement in policy.seen.measurements] == [{}, {}, {}]


def test_a_policy_is_told_the_noise_levels_and_what_each_granularity_costs() -> None:
    policy = scripted(C, C)
    host = Host(policy)
    host.both(0, 10, 4, sigmas=(1.0, 0.5, 0.0))
    step = policy.seen.steps[0]
    assert (step.sigmas, step.distance) == ((1.0, 0.5, 0.0), 0.5)
    assert step.costs == {S: 0.0, G: 0.5, B: 0.5}
    host.both(1, 10, 4)
    assert policy.seen.steps[1].distance == 1 / NUM_STEPS


# ------------------------------------------------------------------------------------------- what enters a history


def ages_of(policy: Scripted) -> list[dict[Granularity, int]]:
    return [dict(step.ages) for step in policy.seen.steps]


def test_a_computed_step_refreshes_all() -> None:
    policy = scripted(C, C, C)
    host = Host(policy)
    for step in range(3):
        host.both(step, 10, 4)
    assert ages_of(policy) == [{}, {S: 1, G: 1, B: 1}, {S: 1, G: 1, B: 1}]
    assert [dict(step.history_lengths) for step in policy.seen.steps][1:] == [{S: 1, G: 1, B: 1}] * 2


def test_a_step_step_refreshes_nothing() -> None:
    policy = scripted(C, S, S, C, C)
    host = Host(policy)
    for step in range(5):
        host.both(step, 10, 4)
    assert ages_of(policy)[1:] == [{S: n, G: n, B: n} for n in (1, 2, 3, 1)]


def test_a_cfg_step_refreshes_cond_and_nothing_else() -> None:
    policy = scripted(C, G, G, S, G)
    host = Host(policy)
    host.both(0, 10, 4)
    assert host.both(1, 20, 99) == approx(20, 14)
    assert host.both(2, 31, 99) == approx(31, 25)
    assert host.out(3, "cond", 99) == pytest.approx(31)  # computed at step 2
    host.out(3, "uncond", 99)
    assert host.both(4, 50, 99) == approx(50, 44)  # the difference is still that of step 0
    # uncond, the difference and the residuals were last computed at step 0
    assert ages_of(policy)[1:] == [{S: n, G: n, B: n} for n in (1, 2, 3, 4)]


def test_a_block_step_refreshes_nothing() -> None:
    policy = scripted(C, B, S, G)
    host = Host(policy)
    host.spanned(0, "cond", 1, 4)
    host.spanned(0, "uncond", 1, 0)
    assert host.spanned(1, "cond", 5, 99) == pytest.approx(42)
    assert host.spanned(1, "uncond", 5, 99) == pytest.approx(30)
    assert host.both(2, 99, 99) == approx(18, 6)
    assert host.both(3, 20, 99) == approx(20, 8)
    assert ages_of(policy)[1:] == [{S: n, G: n, B: n} for n in (1, 2, 3)]


def test_a_granularity_the_policy_cannot_choose_keeps_nothing() -> None:
    # of the step under way cond is computed, so the residual of cond that it will replace is gone
    for kept, num_tensors in (((S,), 2), ((G,), 1), ((B,), 1), ((S, G, B), 4), ((), 0)):
        policy = scripted(C, C, kept=kept, measuring=False)
        host = Host(policy)
        host.both(0, 10, 4)
        host.out(1, "cond", 10)
        assert host.engine.held_bytes == num_tensors * TENSOR_BYTES
        assert set(policy.seen.steps[1].ages) == set(kept)


@pytest.mark.parametrize("granularity", [S, G, B])
def test_a_choice_without_history_is_computed_and_traced_so(granularity: Granularity) -> None:
    host = Host(scripted(granularity, granularity))
    assert host.both(0, 10, 4) == approx(10, 4)
    host.engine.end(End.DONE)
    assert (host.num_computed, host.trace[0].granularity) == (2, C)
    assert [call.computed for call in host.trace[0].calls] == [True, True]


def test_the_histories_do_not_alias_what_the_host_gets() -> None:
    host = Host(scripted(C, S, S))
    info = CallInfo(branch="cond", step=0, num_steps=NUM_STEPS, sigma=1.0, signature=())
    host.engine.call(info, ArithmeticRun(host, 10 / 6, 0.0)).zero_()
    for step in (1, 2):
        info = CallInfo(branch="cond", step=step, num_steps=NUM_STEPS, sigma=1 - step / 10, signature=())
        predicted = host.engine.call(info, ArithmeticRun(host, 99.0, 0.0))
        assert torch.equal(predicted, torch.full((2, 3), 10.0))
        predicted.zero_()


# ------------------------------------------------------------------------------------------------- what is measured


def test_deviation_and_distances_by_hand() -> None:
    policy = scripted(C, C)
    host = Host(policy)
    host.spanned(0, "cond", 1, 5)  # 21
    host.spanned(0, "uncond", 1, 2)  # 12
    host.spanned(1, "cond", 3, 8)  # 42
    host.spanned(1, "uncond", 3, 4)  # 30
    host.engine.end(End.DONE)
    first, second = policy.seen.measurements
    assert (first.step, first.deviation, dict(first.distances)) == (0, None, {})
    # guided: 12 + 5 * 9 = 57, then 30 + 5 * 12 = 90
    assert second.deviation == pytest.approx(33 / 90)
    # difference -9, then -12; residuals 5, then 8, and 2, then 4
    assert second.distances == {
        S: pytest.approx(33 / 90),
        G: pytest.approx(3 / 12),
        B: pytest.approx((3 / 8 + 2 / 4) / 2),
    }
    assert (host.trace[1].deviation, host.trace[1].distances) == (second.deviation, second.distances)
    assert (second.step, second.sigma) == (1, 0.9)


def test_deviation_uses_the_predictor_and_the_distance_does_not() -> None:
    policy = scripted(C, C, C, order=1)
    host = Host(policy, guidance=1.0)  # guided = cond
    for step, value in enumerate((10, 20, 40)):
        host.both(step, value, 0)
    host.engine.end(End.DONE)
    third = policy.seen.measurements[2]
    assert third.deviation == pytest.approx(10 / 40)  # the line through 10 and 20 says 30
    assert third.distances[S] == pytest.approx(20 / 40)


def test_without_a_guidance_scale_the_branches_are_measured_side_by_side() -> None:
    policy = scripted(C, C)
    host = Host(policy, guidance=None)
    host.both(0, 10, 4)
    host.both(1, 20, 8)
    host.engine.end(End.DONE)
    assert policy.seen.measurements[1].deviation == pytest.approx(14 / 28)


def test_one_branch_alone() -> None:
    policy = scripted(C, C, S, G)
    host = Host(policy)
    for step, value in enumerate((10, 20)):
        host.out(step, "cond", value)
    assert host.out(2, "cond", 99) == pytest.approx(20)
    assert host.out(3, "cond", 40) == pytest.approx(40)
    host.engine.end(End.DONE)
    assert policy.seen.measurements[1].deviation == pytest.approx(10 / 20)
    assert [G in step.ages for step in policy.seen.steps] == [False] * 4
    assert [entry.granularity for entry in host.trace] == [C, C, S, C]


def test_only_computed_steps_are_measured() -> None:
    policy = scripted(C, S, G, B, C)
    host = Host(policy)
    for step in range(5):
        host.both(step, 10 + step, 4)
    host.engine.end(End.DONE)
    assert [measurement.step for measurement in policy.seen.measurements] == [0, 4]


def test_at_most_one_transfer_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    real = mixcache.core.engine.to_floats

    def counting(scalars: list[torch.Tensor]) -> list[float]:
        sizes.append(len(scalars))
        return real(scalars)

    monkeypatch.setattr(mixcache.core.engine, "to_floats", counting)
    host = Host(scripted(C, C, S, G, B, C, order=1))
    for step in range(6):
        before = len(sizes)
        host.both(step, 10 + step, 4)
        assert len(sizes) - before == (step > 0)
    host.engine.end(End.DONE)
    # totals x 2; then also step, deviation, cfg, block; nothing; total of cond; totals x 2; all again
    assert sizes == [2, 6, 0, 1, 2, 6]
    sizes.clear()
    host = Host(LookingBack(script=(C, C, S, C), order=1))
    for step in range(4):
        host.both(step, 10 + step, 4)
    host.engine.end(End.DONE)
    # totals x 2 and the guided output; also the guided residual, and what reuse would have missed by each granularity;
    # nothing; then also what order 1 would have missed, its overlap and its reach
    assert sizes == [3, 7, 0, 16]


# ------------------------------------------------------------------------------------------------ new trajectories


START = {"step": 2, "num_steps": NUM_STEPS, "sigma": 0.8, "signature": ((2, 3), torch.float32)}


@pytest.mark.parametrize(
    "change",
    [
        {"step": 0, "sigma": 1.0},
        {"step": 3, "sigma": 0.85},
        {"step": 3, "signature": ((4, 3), torch.float32)},
        {"step": 3, "signature": ((2, 3), torch.bfloat16)},
        {"step": 3, "num_steps": 9},
        {"step": 2},  # the branch of this step again
        {"step": 4},  # a step was left out
        {"step": 1, "sigma": 0.8},
    ],
)
def test_a_new_trajectory_drops_every_history(change: dict[str, Any]) -> None:
    policy = scripted(C, C, C, S, S)
    host = Host(policy)
    for step in range(3):
        host.both(step, 10, 4)
    settings = {"step": 3, "num_steps": NUM_STEPS, "sigma": 0.7, "signature": START["signature"]} | change
    step = settings.pop("step")
    assert host.out(step, "cond", 77, **settings) == pytest.approx(77)
    assert policy.seen.steps[-1].ages == {}
    assert policy.seen.num_trajectories == 3  # at the start, at the first call, now
    assert host.engine.held_bytes == 0
    host.engine.end(End.DONE)
    assert [entry.generation for entry in host.trace] == [0, 0, 0, 1]


def test_the_same_trajectory_goes_on() -> None:
    policy = scripted(C, C, C, S)
    host = Host(policy)
    for step in range(3):
        host.both(step, 10, 4)
    # two steps at one noise level, as second-order schedulers make them
    assert host.out(3, "cond", 77, sigma=0.8) == pytest.approx(10)
    assert host.out(3, "uncond", 77, sigma=0.8) == pytest.approx(4)
    assert policy.seen.num_trajectories == 2


def test_two_runs_in_turn_that_look_alike_are_computed_until_a_first_step_comes(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Step 2 of the one comes right after step 1 of the other, and would be taken from it."""
    host = Host(scripted(C, C, S, S, S, S))
    with caplog.at_level("WARNING", "mixcache"):
        for step in range(6):
            for output in (10, 50):
                assert host.both(step, output + step, output) == approx(output + step, output)
    assert [record.getMessage() for record in caplog.records] == [mixcache.core.engine.IN_TURN]
    host.both(9, 19, 10)  # on its way in mid-loop, after the other's end
    host.engine.end(End.DONE)
    assert {entry.granularity for entry in host.trace} == {C}
    for step in range(3):
        host.both(step, 10 + step, 10)
    assert host.both(3, 99, 99) == approx(11, 10)


def test_an_exception_drops_everything_and_the_next_call_starts_afresh() -> None:
    policy = scripted(C, C, C, S)
    host = Host(policy)

    for step in range(2):
        host.both(step, 10, 4)
    host.out(2, "cond", 10)
    assert host.engine.held_bytes == 5 * TENSOR_BYTES
    with pytest.raises(KeyboardInterrupt):
        host.call(2, "uncond", FailingRun(host, 1.0, 2.0, error=KeyboardInterrupt()))
    assert host.engine.held_bytes == 0
    # even where the next step would have followed
    assert host.both(3, 50, 20) == approx(50, 20)
    assert policy.seen.steps[-1].ages == {}
    host.engine.end(End.DONE)
    assert [(entry.generation, entry.step) for entry in host.trace] == [(0, 0), (0, 1), (1, 3)]


def test_an_exception_in_a_skipped_span() -> None:
    host = Host(scripted(C, B))
    host.spanned(0, "cond", 1, 5)

    with pytest.raises(ValueError, match="out of luck"):
        host.call(1, "cond", FailingRun(host, 1.0, 2.0, error=ValueError("out of luck")))
    assert host.num_spans == 1
    assert host.spanned(0, "cond", 1, 7) == pytest.approx(27)


# --------------------------------------------------------------------------------------------------- not finite


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_is_never_cached(bad: float) -> None:
    policy = scripted(C, C, S, C, S)
    host = Host(policy)
    host.both(0, 10, 4)
    host.both(1, bad, 8)
    assert host.out(2, "cond", 99) == pytest.approx(10)
    assert host.out(2, "uncond", 99) in (pytest.approx(4), pytest.approx(8))
    host.both(3, 40, 16)
    assert host.both(4, 99, 99) == approx(40, 16)
    host.engine.end(End.DONE)
    assert [entry.non_finite for entry in host.trace] == [0, 1, 0, 0, 0]
    # nothing is learnt from a step that no history holds
    assert [m.step for m in policy.seen.measurements] == [0, 3]
    # the difference was last computed at step 0
    assert policy.seen.steps[2].ages[G] == 2


def test_a_difference_of_two_that_are_not_finite_is_not_cached() -> None:
    host = Host(scripted(C, C, G))
    host.both(0, 10, 4)
    host.both(1, float("nan"), float("inf"))
    assert host.both(2, 20, 99) == approx(20, 14)
    host.engine.end(End.DONE)
    assert [entry.non_finite for entry in host.trace] == [0, 2, 0]


def test_a_residual_is_not_cached_with_an_output_that_is_not_finite() -> None:
    host = Host(scripted(C, C, B))
    host.spanned(0, "cond", 1, 5)
    host.spanned(1, "cond", 1, float("nan"))
    assert host.spanned(2, "cond", 2, 99) == pytest.approx(27)


def test_without_a_measurement_the_residual_before_one_that_is_not_finite_is_gone() -> None:
    host = Host(scripted(C, C, B, measuring=False))
    host.spanned(0, "cond", 1, 5)
    host.spanned(1, "cond", 1, float("nan"))
    assert host.spanned(2, "cond", 2, 30) == pytest.approx((2 * 2 + 30) * 3)
    host.engine.end(End.DONE)
    assert [(entry.granularity, entry.reason) for entry in host.trace][2] == (C, "no history")


def test_a_block_step_that_is_not_finite_is_counted() -> None:
    host = Host(scripted(C, B, C))
    host.spanned(0, "cond", 1, 5)
    host.spanned(1, "cond", float("nan"), 5)
    host.spanned(2, "cond", 1, 5)
    host.engine.end(End.DONE)
    assert [entry.non_finite for entry in host.trace] == [0, 1, 0]


# ---------------------------------------------------------------------------------------------- trace and memory


def test_the_trace_says_what_ran() -> None:
    host = Host(scripted(C, S, G, B, C))
    for step in range(5):
        host.both(step, 10, 4)
    host.engine.end(End.DONE)
    assert [(e.step, e.granularity) for e in host.trace] == [(0, C), (1, S), (2, G), (3, B), (4, C)]
    assert [[c.branch for c in e.calls] for e in host.trace] == [["cond", "uncond"]] * 5
    assert [[c.num_blocks for c in e.calls] for e in host.trace] == [[4, 4], [0, 0], [4, 0], [2, 2], [4, 4]]
    assert sum(call.computed for entry in host.trace for call in entry.calls) == host.num_computed == 7
    assert [entry.sigma for entry in host.trace] == pytest.approx([1.0, 0.9, 0.8, 0.7, 0.6])
    assert host.trace.computed_share() == pytest.approx((8 + 0 + 4 + 4 + 8) / 40)


def test_held_bytes() -> None:
    host = Host(scripted(C, C, C, G, S, order=1))
    for step in range(5):
        host.both(step, 10, 4)
    host.engine.end(End.DONE)
    # outputs and residuals of two branches and one difference: 5 tensors; two of each; no more with order 1
    assert [entry.held_bytes for entry in host.trace] == [n * TENSOR_BYTES for n in (5, 10, 10, 10, 10)]
    # at its peak a computed step has two outputs and two residuals set aside
    assert (host.engine.held_bytes, host.engine.peak_bytes) == (0, (10 + 5) * TENSOR_BYTES)


def test_reset_twice_traces_once() -> None:
    host = Host(scripted(C))
    host.both(0, 10, 4)
    host.engine.end(End.DONE)
    host.engine.end(End.DONE)
    assert len(host.trace) == 1


def test_the_trace_of_a_server_stays_bounded() -> None:
    policy = scripted(C, C)
    trace = Trace(num_blocks=4)
    engine = Engine(policy, Span(1, 3, 4), lambda: None, TraceWriter(trace), max_traced_generations=3)
    for _ in range(7):
        for step in range(2):
            info = CallInfo(branch="cond", step=step, num_steps=2, sigma=1.0 - step, signature=())
            engine.call(info, ArithmeticRun(Host(policy), 1 / 6, 0.0))
    engine.end(End.DONE)
    assert [entry.generation for entry in trace] == [4, 4, 5, 5, 6, 6]


def test_a_step_after_a_cfg_step_keeps_cond_and_uncond_of_one_age() -> None:
    """Guidance multiplies the mismatch of a new cond and an old uncond; uncond is the new cond plus the difference."""
    host = Host(Scripted(script=[C, G, S, C]))
    assert host.both(0, 10, 4) == (10, 4)  # the difference is -6
    assert host.both(1, 20, -99) == (20, 14)
    assert host.both(2, -99, -99) == (20, 14)
    host.both(3, 40, 34)
    host.engine.end(End.DONE)
    # guided: 14 + 5 * 6 = 44 against 34 + 5 * 6 = 64
    assert host.trace[3].deviation == pytest.approx(20 / 64)
    assert host.trace[3].distances[S] == pytest.approx(20 / 64)


def test_a_granularity_that_the_model_does_not_allow_is_never_offered() -> None:
    policy = Scripted(script=[C, S, G, B])
    host = Host(policy)
    host.engine = Engine(policy, Span(1, 3, 4), lambda: 5.0, TraceWriter(host.trace), granularities=("step",))
    for step in range(4):
        host.both(step, 10.0 + step, 4.0)
    host.engine.end(End.DONE)
    assert [entry.granularity for entry in host.trace] == [C, S, C, C]
    assert all(set(told.ages) <= {S} for told in policy.seen.steps)
