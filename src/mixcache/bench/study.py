"""make study: which rules of the method pay, on `shapes-wan` and held-out captions.

    python -m mixcache.bench.study --out docs/results

Five parts: (a) interference of granularities, (b) the two ends of the trajectory, (c) the parts of policy `mixcache`,
(d) predictor orders and curves of quality against speed-up, (e) the distance to a schedule searched with the true
error. What is measured is kept in the folder `--work`, clip by clip, and a run that was cut off goes on from there, as
long as model, profile, engine and policies are the same.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any, cast

import torch
from rich.progress import Progress

import mixcache
from mixcache import generation
from mixcache.attachment import Handle, enable
from mixcache.bench.methods import Method, fewer_steps
from mixcache.bench.run import WARM_UP_STEPS, Record, margin, summarise
from mixcache.calibration import Schedule, trace_of
from mixcache.calls import CallInfo, SpanMode
from mixcache.config import MixCacheConfig
from mixcache.decision import Granularity
from mixcache.engine import Compute, Engine, StepRecord, Streams
from mixcache.generation import Generated
from mixcache.metrics import adherence, video_psnr, video_ssim
from mixcache.models import row_for
from mixcache.policies import Replay
from mixcache.profiles import profile_for, weights_hash
from mixcache.report.figures import significant
from mixcache.report.markdown import table
from mixcache.zoo import call_defaults, load, world

SEED = 9500
PARTS = ("a", "b", "c", "d", "e")
PROMPTS_OF_PART = {"a": 4, "b": 3, "c": 4, "e": 4}
"""Most prompts of a part; part d and the plain pipeline take all."""
SPEEDUP = 2.0
"""Where methods are compared."""
SHARE = 0.6
"""Block work that the schedules of part a still do."""
ERRORS = tuple(float(f"{0.0005 * 120 ** (k / 11):.3g}") for k in range(12))
WARM_UPS, COOL_DOWNS = (1, 2, 4, 8), (0, 1, 3, 6, 10)
FEWER = (0.76, 0.6, 0.5, 0.4, 0.3)
"""Numbers of plain steps, as shares of all."""
COMPUTE, STEP, CFG, BLOCK = Granularity.COMPUTE, Granularity.STEP, Granularity.CFG, Granularity.BLOCK
PLAIN, PLANNED, MIXCACHE, HINDSIGHT = "fewer plain steps", "planned", "mixcache, cool-down 3", "hindsight"
STEP_ONLY = "hindsight, step only"
CURVES = (PLAIN, PLANNED, HINDSIGHT, STEP_ONLY, MIXCACHE, "mixcache, cool-down 8", "step, order 0", "step, order 1")
COLUMNS = (
    "method",
    "ideal",
    "wall_clock",
    "psnr_db",
    "psnr_spread",
    "ssim",
    "adherence",
    "margin_db",
    "num_prompts",
    "note",
)
Points = list[tuple[float, float]]
Row = dict[str, Any]

# ------------------------------------------------------------------------------------------------------------- engines


class StackedEngine(Engine):
    """In a `cfg` step the cond call leaves its span out too: two granularities in one step, which rule 1 forbids."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._kept |= {CFG, BLOCK}

    def _computed_output(self, record: StepRecord, info: CallInfo, compute: Compute) -> torch.Tensor:
        decision = record.decision
        if decision.granularity is not CFG:
            return super()._computed_output(record, info, compute)
        record.decision = replace(decision, granularity=BLOCK)
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
        parts = output.detach().clone().chunk(len(info.branches))
        cast(StepRecord, self._record).outputs |= zip(info.branches, parts, strict=True)
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

# ---------------------------------------------------------------------------------------------------------------- rows


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One row: a method, or a schedule and the engine that runs it, at one step count."""

    part: str
    method: Method
    num_steps: int
    num_prompts: int
    curve: str = ""
    schedule: tuple[tuple[str, int], ...] = ()
    engine: str = ""

    @property
    def identity(self) -> Any:
        """What its clip depends on, besides prompt and seed: rows of two parts may share it."""
        m = self.method
        return [m.policy, dict(m.settings), m.num_inference_steps, self.num_steps, self.schedule, self.engine]


def even_schedule(
    num_steps: int, kinds: Sequence[Granularity], costs: Sequence[float], share: float, order: int
) -> tuple[tuple[str, int], ...]:
    """Cached steps of the `kinds` in turn, evenly between the ends, as many as bring the work nearest to `share`.

    `costs` are those of the kinds, in computed steps.
    """
    inner = range(min(4, num_steps // 3), num_steps - min(3, num_steps // 6))

    def work(count: int) -> float:
        return (num_steps - count + sum(costs[k % len(costs)] for k in range(count))) / num_steps

    count = min(range(len(inner) + 1), key=lambda n: abs(work(n) - share))
    places = {inner[int((k + 0.5) * len(inner) / count)]: kinds[k % len(kinds)] for k in range(count)}
    return tuple((places[i].value, order) if i in places else ("compute", 0) for i in range(num_steps))


def plain_trials(num_steps: int, num_prompts: int) -> Iterator[Trial]:
    """Fewer plain steps, what every row is held against."""
    for count in dict.fromkeys(max(2, round(num_steps * share)) for share in FEWER):
        yield Trial(part="plain", method=fewer_steps(count), num_steps=num_steps, num_prompts=num_prompts, curve=PLAIN)


def interference_trials(num_steps: int, num_prompts: int, block_cost: float) -> Iterator[Trial]:
    """Part a: the same share of work, stacked or in turn, with histories of computed values or of any."""
    cost = {STEP: 0.0, CFG: 0.5, BLOCK: block_cost}
    wanted: list[tuple[str, str, tuple[Granularity, ...], tuple[float, ...], int]] = []
    for order in (0, 1):
        wanted.append(("cfg+block in one step", "stacked", (CFG,), (block_cost / 2,), order))
        wanted.append(("cfg, block in turn", "", (CFG, BLOCK), (0.5, block_cost), order))
    for pair in ((CFG, BLOCK), (STEP, BLOCK), (STEP, CFG)):
        costs = tuple(cost[kind] for kind in pair)
        name = ", ".join(kind.value for kind in pair) + " in turn"
        if pair != (CFG, BLOCK):
            wanted.append((name, "", pair, costs, 1))
        wanted.append((f"{name}, histories fed", "fed", pair, costs, 1))
    for name, engine, kinds, costs, order in wanted:
        yield Trial(
            part="a",
            method=Method(name=f"{name}, order {order}"),
            num_steps=num_steps,
            num_prompts=num_prompts,
            schedule=even_schedule(num_steps, kinds, costs, SHARE, order),
            engine=engine,
        )


def boundary_trials(num_steps: int, num_prompts: int) -> Iterator[Trial]:
    """Part b: lengths of the ends, around a warm-up of 4 and a cool-down of 3."""
    for granularity in ("step", "cfg", "block"):
        for warm_up, cool_down in dict.fromkeys([*((w, 3) for w in WARM_UPS), *((4, c) for c in COOL_DOWNS)]):
            settings = {"granularity": granularity, "period": 3, "order": 0}
            settings |= {"num_warmup_steps": warm_up, "num_cooldown_steps": cool_down}
            name = f"{granularity}, warm-up {warm_up}, cool-down {cool_down}"
            method = Method(name=name, policy="every_nth", settings=settings)
            yield Trial(part="b", method=method, num_steps=num_steps, num_prompts=num_prompts)


def ablation_trials(num_steps: int, num_prompts: int) -> Iterator[Trial]:
    """Part c: policy `mixcache` and what is left of it without one of its parts."""
    fixed = {"delta_1": 0, "delta_2": 1e9}
    settings: dict[str, dict[str, Any]] = {
        "mixcache": {},
        "without trigger, interval 1": fixed | {"first_interval": 1, "max_interval": 1},
        "without trigger, interval 2": fixed | {"first_interval": 2, "max_interval": 2},
        "without impact": {"impacts": {"step": 1.0, "cfg": 1.0, "block": 1.0}},
        "without penalty": {"penalty": 1},
        **{f"{name} alone": {"impacts": {name: 1.0}} for name in ("step", "cfg", "block")},
    }
    for name, given in settings.items():
        method = Method(name=name, policy="mixcache", settings=given)
        yield Trial(part="c", method=method, num_steps=num_steps, num_prompts=num_prompts)


def hindsight_trials(part: str, num_steps: int, num_prompts: int, errors: Sequence[float]) -> Iterator[Trial]:
    """The curve of `hindsight`."""
    for error in errors:
        method = Method(name=f"hindsight, error {error:g}", policy="hindsight", settings={"error": error})
        yield Trial(part=part, method=method, num_steps=num_steps, num_prompts=num_prompts, curve=HINDSIGHT)


def mixcache_trials(part: str, num_steps: int, num_prompts: int, cool_down: int, intervals: Any) -> Iterator[Trial]:
    """The curve of policy `mixcache`."""
    for interval in intervals:
        settings = {"first_interval": interval, "max_interval": interval, "num_cooldown_steps": cool_down}
        curve = f"mixcache, cool-down {cool_down}"
        method = Method(name=f"{curve}, interval to {interval}", policy="mixcache", settings=settings)
        yield Trial(part=part, method=method, num_steps=num_steps, num_prompts=num_prompts, curve=curve)


def planned_trial(part: str, num_steps: int, num_prompts: int, speedup: float) -> Trial:
    """Policy `planned` at one speed-up."""
    method = Method(name=f"planned, speedup {speedup:g}", policy="planned", settings={"speedup": speedup})
    return Trial(part=part, method=method, num_steps=num_steps, num_prompts=num_prompts, curve=PLANNED)


def curve_trials(num_steps: int, num_prompts: int, errors: Sequence[float]) -> Iterator[Trial]:
    """Part d: orders, and quality against speed-up. Side questions take half of the prompts."""
    few = max(1, num_prompts // 2)
    for order, periods in ((0, (1.5, 2, 2.5, 3)), (1, (1.5, 2, 2.5, 3)), (2, (2, 3))):
        for period in periods:
            settings = {"granularity": "step", "period": period, "order": order}
            method = Method(name=f"step, period {period:g}, order {order}", policy="every_nth", settings=settings)
            count = few if order == 2 else num_prompts
            yield Trial(part="d", method=method, num_steps=num_steps, num_prompts=count, curve=f"step, order {order}")
    yield from hindsight_trials("d", num_steps, num_prompts, errors)
    for curve, given, chosen in (
        (STEP_ONLY, {"choices": ["step"]}, ERRORS[2:9:2]),
        ("hindsight, order 0", {"order": 0}, ERRORS[2:7:3]),
        ("hindsight, order 2", {"order": 2}, ERRORS[2:7:3]),
    ):
        for error in chosen:
            method = Method(name=f"{curve}, error {error:g}", policy="hindsight", settings=given | {"error": error})
            yield Trial(part="d", method=method, num_steps=num_steps, num_prompts=few, curve=curve)
    yield from mixcache_trials("d", num_steps, num_prompts, 3, (1, 2, 3, 4))
    yield from mixcache_trials("d", num_steps, num_prompts, 8, (1, 2, 3, 4)[: 4 if num_steps > 16 else 0])
    for speedup in (1.5, 2.0, 2.5, 3.0):
        yield planned_trial("d", num_steps, num_prompts, speedup)


def oracle_trials(num_steps: int, num_prompts: int) -> Iterator[Trial]:
    """Part e: what the searched schedule is held against."""
    yield planned_trial("e", num_steps, num_prompts, SPEEDUP)
    yield from hindsight_trials("e", num_steps, num_prompts, ERRORS[1:9])
    yield from mixcache_trials("e", num_steps, num_prompts, 3, (1, 2, 3, 4))


def all_trials(parts: Sequence[str], num_steps: Sequence[int], num_prompts: int, block_cost: float) -> list[Trial]:
    """Every row; parts a, b, c and e at the first step count alone, and later counts on half of the prompts."""
    first = num_steps[0]
    trials: list[Trial] = []
    few = {part: min(count, num_prompts) for part, count in PROMPTS_OF_PART.items()}
    for place, count in enumerate(num_steps):
        if place and "d" not in parts:
            break
        prompts = num_prompts if not place else max(1, num_prompts // 2)
        trials += plain_trials(count, prompts if "d" in parts else min(prompts, max(few.values())))
        if "d" in parts:
            trials += curve_trials(count, prompts, ERRORS[::2] if place else ERRORS)
    makers: dict[str, Callable[[], Iterator[Trial]]] = {
        "a": lambda: interference_trials(first, few["a"], block_cost),
        "b": lambda: boundary_trials(first, few["b"]),
        "c": lambda: ablation_trials(first, few["c"]),
        "e": lambda: oracle_trials(first, few["e"]),
    }
    return trials + [trial for part in parts if part in makers for trial in makers[part]()]


# -------------------------------------------------------------------------------------------------------------- search


def neighbour(schedule: Schedule, rng: random.Random) -> Schedule:
    """Another schedule of the same cost: a cached step moved, another order, or two neighbours swapped.

    The first step stays computed.
    """
    changed = list(schedule)
    cached = [i for i, (granularity, _) in enumerate(schedule) if granularity is not COMPUTE]
    computed = [i for i in range(1, len(schedule)) if i not in cached]
    borders = [i for i in range(1, len(schedule) - 1) if (i in cached) != (i + 1 in cached)]
    kinds = (["order"] if cached else []) + (["move", "swap"] if borders else [])
    kind = rng.choice(kinds) if kinds else ""
    if kind == "order":
        i = rng.choice(cached)
        changed[i] = (changed[i][0], 1 - min(1, changed[i][1]))
    elif kind:
        i = rng.choice(borders if kind == "swap" else cached)
        j = i + 1 if kind == "swap" else rng.choice(computed)
        changed[i], changed[j] = changed[j], changed[i]
    return changed


def climb(
    start: Schedule, error_of: Callable[[Schedule], float], num_trials: int, rng: random.Random
) -> tuple[Schedule, list[float]]:
    """The best of `num_trials` schedules, each a neighbour of the best before it, and the least error after each."""
    best, errors, seen = start, [error_of(start)], {tuple(start)}
    while len(errors) < num_trials:
        fresh = next((s for s in (neighbour(best, rng) for _ in range(50)) if tuple(s) not in seen), None)
        if fresh is None:
            break
        seen.add(tuple(fresh))
        error = error_of(fresh)
        if error < errors[-1]:
            best = fresh
        errors.append(min(error, errors[-1]))
    return best, errors


# --------------------------------------------------------------------------------------------------------------- study


class Store:
    """What was measured, one JSON line each, by a key."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.done: dict[str, Any] = {}
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists():
            text = path.read_text()
            if text and not text.endswith("\n"):
                path.write_text(f"{text}\n")
            for line in text.splitlines():
                try:
                    entry = json.loads(line)
                except json.JSONDecodeError:
                    continue  # where a run was cut off
                self.done[entry["key"]] = entry["value"]

    def get(self, identity: Any, measure: Callable[[], Any]) -> Any:
        """What was measured before, or is now."""
        key = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:24]
        if key not in self.done:
            value = measure()
            with self.path.open("a") as file:
                file.write(f"{json.dumps({'key': key, 'identity': identity, 'value': value})}\n")
            self.done[key] = json.loads(json.dumps(value))
        return self.done[key]


class Study:
    """Measures trials on prompts; what the store holds is not measured again."""

    def __init__(self, pipeline: Any, prompts: Sequence[str], arguments: Mapping[str, Any], store: Store) -> None:
        self.pipeline, self.prompts, self.arguments, self.store = pipeline, prompts, dict(arguments), store
        profile = profile_for(pipeline.transformer)
        calibrated = hashlib.sha256(json.dumps(asdict(profile), sort_keys=True).encode()).hexdigest() if profile else ""
        self.model = [weights_hash(pipeline.transformer), calibrated[:16], code_hash()]
        self.skipped: dict[str, str] = {}
        """Methods that could not be run, and why."""
        self._plain: dict[tuple[int, int], Generated] = {}
        self._plain_latents: dict[tuple[int, int], torch.Tensor] = {}
        self._planners: dict[tuple[float, int], Any] = {}

    def measured(self, kind: str, identity: Any, index: int, measure: Callable[[], Any]) -> Any:
        """From the store, or measured on the prompt of that index."""
        arguments = {k: v for k, v in self.arguments.items() if k != "num_inference_steps"}
        return self.store.get([kind, self.model, arguments, identity, self.prompts[index], SEED + index], measure)

    def record(self, trial: Trial, index: int) -> Record | None:
        """One row on one prompt; None where the method cannot be run."""
        if trial.method.name in self.skipped:
            return None
        try:
            values = self.measured("clip", trial.identity, index, lambda: asdict(self._record(trial, index)))
        except ValueError as reason:
            if trial.method.policy != "planned":
                raise
            self.skipped[trial.method.name] = str(reason)
            return None
        return Record(**values | {"method": trial.method.name})

    def _record(self, trial: Trial, index: int) -> Record:
        prompt, plain = self.prompts[index], self.plain(trial.num_steps, index)
        count = trial.method.num_inference_steps
        summary: dict[str, Any] = {"ideal_speedup": trial.num_steps / (count or trial.num_steps)}
        with self.attached(trial) as handle:
            made = self._generate(count or trial.num_steps, index)
            if handle is not None:
                summary = handle.summary()
        psnr = video_psnr(made.clip, plain.clip)
        return Record(
            method=trial.method.name,
            prompt=prompt,
            seed=SEED + index,
            denoising_seconds=made.denoising_seconds,
            speedup=plain.denoising_seconds / made.denoising_seconds,
            ideal_speedup=summary["ideal_speedup"],
            psnr_db=psnr if math.isfinite(psnr) else None,
            ssim=video_ssim(made.clip, plain.clip),
            adherence=adherence(made.clip, prompt).mean,
            cache_peak_bytes=summary.get("peak_bytes", 0),
            granularity_counts=summary.get("granularity_counts", {}),
        )

    @contextmanager
    def attached(self, trial: Trial) -> Iterator[Handle | None]:
        """The pipeline with the trial's method on it; None for the plain pipeline."""
        settings = dict(trial.method.settings)
        if trial.schedule:
            trace = trace_of([(Granularity(name), order) for name, order in trial.schedule])
            row = row_for(self.pipeline.transformer, self.pipeline)
            config = MixCacheConfig(policy=Replay(trace=trace))
            handle = Handle(self.pipeline, config, row, ENGINES[trial.engine])
            handle._attach()
        elif trial.method.policy is None:
            yield None
            return
        else:
            if trial.method.policy == "planned":
                settings["planner"] = self._planner(trial)
            handle = enable(self.pipeline, trial.method.policy, **settings)
        try:
            yield handle
        finally:
            handle.disable()

    def _planner(self, trial: Trial) -> Any:
        """A planner that knows these noise levels already: a user plans once, so it is no part of the time."""
        key = (trial.method.settings["speedup"], trial.num_steps)
        if key not in self._planners:
            with enable(self.pipeline, "planned", speedup=key[0]) as handle:
                self._latents(trial.num_steps, 0)
                self._planners[key] = handle.config.settings["planner"]
        return self._planners[key]

    def _generate(self, num_steps: int, index: int) -> Generated:
        arguments = self.arguments | {"num_inference_steps": num_steps}
        return generation.generate(self.pipeline, self.prompts[index], seed=SEED + index, **arguments)

    def plain(self, num_steps: int, index: int) -> Generated:
        """The clip that nothing was left out of, made once."""
        if (num_steps, index) not in self._plain:
            if not self._plain:
                self._generate(WARM_UP_STEPS, index)
            self._plain[num_steps, index] = self._generate(num_steps, index)
        return self._plain[num_steps, index]

    def _latents(self, num_steps: int, index: int) -> torch.Tensor:
        generator = torch.Generator("cpu").manual_seed(SEED + index)
        arguments = self.arguments | {"num_inference_steps": num_steps, "output_type": "latent"}
        with generation.watched_loop(self.pipeline):
            made = self.pipeline(self.prompts[index], generator=generator, **arguments)
        return cast(torch.Tensor, made.frames).detach().float().cpu()

    def deviations(self, num_steps: int, index: int) -> list[dict[str, Any]]:
        """At every step of a run that computes all: sigma, the deviation of order 1, and the distances."""
        measuring = Method(name="", policy="hindsight", settings={"error": 1e-12})
        trial = Trial(part="b", method=measuring, num_steps=num_steps, num_prompts=1)

        def measure() -> list[dict[str, Any]]:
            with self.attached(trial) as handle:
                self._latents(num_steps, index)
                entries = list(cast(Handle, handle).trace)
            return [
                {"sigma": e.sigma, "deviation": e.deviation, **{g.value: d for g, d in e.distances.items()}}
                for e in entries
            ]

        return cast(list[dict[str, Any]], self.measured("deviations", trial.identity, index, measure))

    def searched(self, num_steps: int, index: int, num_trials: int, block_cost: float) -> dict[str, Any]:
        """The schedule that a search with the true error finds, from the planned one of this prompt."""

        def run(trial: Trial) -> tuple[torch.Tensor, Schedule]:
            with self.attached(trial) as handle:
                latents = self._latents(num_steps, index)
                return latents, [(e.granularity, e.order) for e in cast(Handle, handle).trace]

        def error_of(schedule: Schedule) -> float:
            latents, _ = run(schedule_trial("", schedule, 1))
            plain = self._plain_latents[num_steps, index]
            return float((latents - plain).square().mean().sqrt() / plain.square().mean().sqrt())

        def measure() -> dict[str, Any]:
            if (num_steps, index) not in self._plain_latents:
                self._plain_latents[num_steps, index] = self._latents(num_steps, index)
            try:
                _, start = run(planned_trial("e", num_steps, 1, SPEEDUP))
                origin = "planned"
            except ValueError:
                even = even_schedule(num_steps, (STEP, BLOCK), (0.0, block_cost), 1 / SPEEDUP, 1)
                start, origin = [(Granularity(name), order) for name, order in even], "steps and blocks in turn"
            best, errors = climb(start, error_of, num_trials, random.Random(SEED + index))
            return {"origin": origin, "schedule": [[g.value, order] for g, order in best], "errors": errors}

        return cast(dict[str, Any], self.measured("search", [num_steps, num_trials, SPEEDUP], index, measure))


def code_hash() -> str:
    """Of the source that decides and predicts."""
    root = Path(mixcache.__file__).parent
    names = ("attachment", "engine", "history", "host", "planning", "signals")
    files = [*(root / f"{name}.py" for name in names), *sorted((root / "policies").glob("*.py"))]
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:16]


def schedule_trial(name: str, schedule: Any, num_prompts: int) -> Trial:
    """A schedule of part e as a row; its items are pairs of a granularity and an order."""
    pairs = tuple((str(granularity), int(order)) for granularity, order in schedule)
    method = Method(name=name)
    return Trial(part="e", method=method, num_steps=len(pairs), num_prompts=num_prompts, schedule=pairs)


# ------------------------------------------------------------------------------------------------------------- summing


def row_of(trial: Trial, records: Sequence[Record], reason: str | None = None) -> Row:
    """A row of the results; without records it says why."""
    row: Row = {"part": trial.part, "num_steps": trial.num_steps, "curve": trial.curve, "method": trial.method.name}
    if not records:
        return row | {"ideal": None, "psnr_db": None, "note": reason}
    found = summarise(records)[0]
    row |= {name: found[name] for name in ("ideal", "psnr_db", "psnr_spread", "ssim", "adherence", "steps")}
    return row | {
        "wall_clock": found["speedup"],
        "num_prompts": len(records),
        "ideal_by_prompt": [record.ideal_speedup for record in records],
        "psnr_by_prompt": [record.psnr_db for record in records],
    }


def points(rows: Sequence[Row], curve: str, num_steps: int, prompts: Sequence[int] | None = None) -> Points:
    """(ideal speed-up, PSNR) of a curve, means over some of the prompts (by default all); one point per speed-up."""
    found: dict[float, float] = {}
    for row in rows:
        if row["curve"] != curve or row["num_steps"] != num_steps or row["psnr_db"] is None:
            continue
        chosen = range(row["num_prompts"]) if prompts is None else prompts
        values = [
            (row["ideal_by_prompt"][i], row["psnr_by_prompt"][i])
            for i in chosen
            if i < row["num_prompts"] and row["psnr_by_prompt"][i] is not None
        ]
        if values and (prompts is None or len(values) == len(prompts)):
            found[fmean(ideal for ideal, _ in values)] = fmean(psnr for _, psnr in values)
    return sorted(found.items())


def level(curve: Points, speedup: float) -> float | None:
    """PSNR of a curve at a speed-up, on the line between its neighbours; None outside."""
    gap = margin(speedup, 0.0, curve)
    return None if gap is None else -gap


def with_margins(rows: list[Row]) -> list[Row]:
    """Each row with what it is above fewer plain steps of the same work, on the same prompts."""
    for row in rows:
        row["margin_db"] = None
        if row["psnr_db"] is not None and "ideal_by_prompt" in row and row["curve"] != PLAIN:
            fewer = points(rows, PLAIN, row["num_steps"], range(row["num_prompts"]))
            row["margin_db"] = margin(fmean(row["ideal_by_prompt"]), row["psnr_db"], fewer)
    return rows


def lines(rows: Sequence[Row], num_steps: int) -> dict[str, Points]:
    """The curves of the figure that have points."""
    found = {curve: points(rows, curve, num_steps) for curve in CURVES}
    return {curve: line for curve, line in found.items() if line}


def mean_deviations(runs: Sequence[Sequence[Mapping[str, float | None]]]) -> dict[str, Points]:
    """(sigma, mean over prompts) by what was measured."""
    found: dict[str, Points] = {"step, order 1": [], "step": [], "cfg": [], "block": []}
    for steps in zip(*runs, strict=True):
        for name, line in found.items():
            values = [step.get("deviation" if name == "step, order 1" else name) for step in steps]
            known = [value for value in values if value is not None]
            if len(known) == len(steps):
                line.append((cast(float, steps[0]["sigma"]), fmean(known)))
    return {name: line for name, line in found.items() if line}


def oracle_rows(rows: Sequence[Row], searched: Row, num_steps: int) -> list[Row]:
    """What the policies reach at the cost of the searched schedules, prompt by prompt, on the lines of their curves."""
    found = []
    for curve in (HINDSIGHT, MIXCACHE, PLAIN):
        pairs = []
        for index, (ideal, psnr) in enumerate(
            zip(searched["ideal_by_prompt"], searched["psnr_by_prompt"], strict=True)
        ):
            value = level(points(rows, curve, num_steps, [index]), ideal)
            if value is not None and psnr is not None:
                pairs.append((ideal, value, psnr))
        row: Row = {"part": "e", "num_steps": num_steps, "curve": "", "method": f"{curve}, interpolated"}
        if not pairs:
            found.append(row | {"ideal": None, "psnr_db": None, "note": "its curve does not reach this speed-up"})
            continue
        ideals, psnrs, best = zip(*pairs, strict=True)
        found.append(
            row
            | {"ideal": fmean(ideals), "psnr_db": fmean(psnrs), "num_prompts": len(pairs)}
            | {"below_searched_db": fmean(b - p for b, p in zip(best, psnrs, strict=True))}
        )
    return found


# ---------------------------------------------------------------------------------------------------------------- page


def db(value: float) -> str:
    return f"{value:+.1f} dB"


def _by_name(rows: Sequence[Row], part: str) -> dict[str, Row]:
    return {row["method"]: row for row in rows if row["part"] == part and row["psnr_db"] is not None}


def interference_sentence(rows: Sequence[Row]) -> str:
    found = _by_name(rows, "a")
    told = []
    for order in (0, 1):
        stacked, turn = (found.get(f"cfg{n}, order {order}") for n in ("+block in one step", ", block in turn"))
        if stacked and turn:
            told.append(
                f"cfg and block stacked in one step are {db(stacked['psnr_db'] - turn['psnr_db'])} from one per step "
                f"with order {order} (ideal {significant(stacked['ideal'])} and {significant(turn['ideal'])})"
            )
    for pair in ("cfg, block", "step, block", "step, cfg"):
        fed, clean = found.get(f"{pair} in turn, histories fed, order 1"), found.get(f"{pair} in turn, order 1")
        if fed and clean:
            told.append(f"histories fed with approximations are {db(fed['psnr_db'] - clean['psnr_db'])} with {pair}")
    return _sentence(told)


def boundary_sentence(rows: Sequence[Row]) -> str:
    found = _by_name(rows, "b")
    told = []
    for granularity in ("step", "cfg", "block"):
        for end, lengths in (("warm-up", WARM_UPS), ("cool-down", COOL_DOWNS)):
            of_end = {}
            for length in lengths:
                warm_up, cool_down = (length, 3) if end == "warm-up" else (4, length)
                row = found.get(f"{granularity}, warm-up {warm_up}, cool-down {cool_down}")
                if row and row["margin_db"] is not None:
                    of_end[length] = row
            if len(of_end) > 1:
                best = max(of_end, key=lambda length: of_end[length]["margin_db"])
                rise = of_end[max(of_end)]["psnr_db"] - of_end[min(of_end)]["psnr_db"]
                told.append(
                    f"for {granularity} a {end} of {best} is the best against fewer plain steps of the same work "
                    f"({min(of_end)} to {max(of_end)} give {db(rise)} before the lost time is counted)"
                )
    return _sentence(told)


def ablation_sentence(rows: Sequence[Row]) -> str:
    found = _by_name(rows, "c")
    whole = found.pop("mixcache", None)
    if whole is None or whole["margin_db"] is None:
        return _sentence([])
    told = [f"policy `mixcache` is {db(whole['margin_db'])} from fewer plain steps of the same work"]
    told += [
        f"{name} {db(row['margin_db'] - whole['margin_db'])} from that"
        for name, row in found.items()
        if row["margin_db"] is not None
    ]
    return _sentence(told)


def curve_sentence(rows: Sequence[Row], num_steps: int) -> str:
    reached = {curve: level(line, SPEEDUP) for curve, line in lines(rows, num_steps).items()}
    ranked = sorted(((v, curve) for curve, v in reached.items() if v is not None), reverse=True)
    told = [f"{curve} {value:.1f} dB" for value, curve in ranked]
    sentence = _sentence([f"at an ideal speed-up of {SPEEDUP:g}: {', '.join(told)}"] if told else [])
    few = min((r["num_prompts"] for r in rows if r["curve"] == STEP_ONLY and r["psnr_db"] is not None), default=0)
    chosen = points(rows, HINDSIGHT, num_steps, range(few)) if few else []
    for curve in (STEP_ONLY, "hindsight, order 0", "hindsight, order 2"):
        gaps = [psnr - at for ideal, psnr in points(rows, curve, num_steps) if (at := level(chosen, ideal)) is not None]
        if gaps:
            sentence += f" {curve.capitalize()}: {db(fmean(gaps))} from hindsight as it is, on the same prompts."
    return sentence


def oracle_sentence(rows: Sequence[Row]) -> str:
    found = _by_name(rows, "e")
    searched = found.get("searched")
    if searched is None:
        return _sentence([])
    told = [f"the searched schedules are at {searched['psnr_db']:.1f} dB, ideal {significant(searched['ideal'])}"]
    told += [
        f"{row['method']} is {row['below_searched_db']:.1f} dB below"
        for row in found.values()
        if row.get("below_searched_db") is not None
    ]
    return _sentence(told)


def _sentence(told: Sequence[str]) -> str:
    text = "; ".join(told) or "nothing was measured that tells"
    return text[0].upper() + text[1:] + "."


def markdown(result: Mapping[str, Any]) -> str:
    """The results as a page: a section for each question."""
    rows: list[Row] = result["rows"]
    arguments, first = result["arguments"], result["num_steps"][0]
    text = [
        "# Which rules pay",
        "",
        f"`{result['command']}`",
        "",
        f"Guidance {arguments['guidance_scale']:g}, {result['scheduler']}, {arguments['num_frames']} frames of "
        f"{arguments['width']}x{arguments['height']}, held-out captions; "
        + ", ".join(f"{name} {value}" for name, value in {**result["versions"], **result["machine"]}.items()),
        "",
        "`ideal` is the speed-up by the block work left out, without noise; `wall_clock` that of the denoising loop, "
        "the median over prompts; PSNR (mean and spread over prompts) and SSIM are against the plain clip of the same "
        "seed, and no PSNR means an identical clip; `margin_db` is the PSNR over that of fewer plain steps of the same "
        "ideal speed-up, an en dash outside their range.",
        "",
        "![Quality against speed-up, and the deviation over sigma](method-study.png)",
    ]
    sections: list[tuple[str, str, int, str]] = [
        ("a", "Interference", first, interference_sentence(rows)),
        ("b", "The ends of the trajectory", first, boundary_sentence(rows)),
        ("c", "The parts of policy mixcache", first, ablation_sentence(rows)),
        *(("d", "Orders and curves", count, curve_sentence(rows, count)) for count in result["num_steps"]),
        ("e", "Distance to a searched schedule", first, oracle_sentence(rows)),
    ]
    for part, title, count, sentence in sections:
        of_part = [r for r in rows if r["part"] == part and r["num_steps"] == count]
        if part == "d" and of_part:
            of_part = [r for r in rows if r["part"] == "plain" and r["num_steps"] == count] + of_part
        if of_part:
            columns = [c for c in COLUMNS if any(r.get(c) is not None for r in of_part)]
            columns += ["below_searched_db"] if part == "e" else []
            text += ["", f"## {title}, {count} steps", "", sentence, "", table(of_part, columns)]
        if part == "a" and of_part:
            text += ["", "A `step` step leaves everything out, so stacking cfg or block on it changes nothing there."]
    return "\n".join([*text, ""])


def draw(result: Mapping[str, Any], path: Path) -> None:
    """Quality against ideal speed-up, a panel for each step count, and the deviation over sigma."""
    from matplotlib.figure import Figure

    curves: dict[str, dict[str, Points]] = result["curves"]
    figure = Figure(figsize=(6.5 * (len(curves) + 1), 5), layout="constrained")
    panels = figure.subplots(1, len(curves) + 1)
    for panel, (count, of_count) in zip(panels, curves.items(), strict=False):
        for number, curve in enumerate(CURVES):
            if of_count.get(curve):
                style = {"color": "black", "linestyle": "--"} if curve == PLAIN else {"color": f"C{number}"}
                panel.plot(*zip(*of_count[curve], strict=True), marker="o", markersize=4, label=curve, **style)
        panel.set(xlabel="ideal speed-up", ylabel="PSNR (dB) to the plain clip", title=f"{count} steps", xlim=(1, 4))
    for name, line in result["deviations"].items():
        panels[-1].plot(*zip(*line, strict=True), marker=".", label=name)
    panels[-1].set(
        xlabel="sigma", ylabel="relative L1 error of the prediction", title="deviation, order 0 unless named"
    )
    panels[-1].set_yscale("log")
    panels[-1].invert_xaxis()
    for panel in panels:
        panel.grid(alpha=0.3)
        if panel.lines:
            panel.legend(fontsize="small")
    figure.savefig(path, dpi=110)


# ---------------------------------------------------------------------------------------------------------------- main


def block_cost_of(pipeline: Any) -> float:
    """Share of a computed step's blocks that a `block` step runs."""
    with enable(pipeline, "every_nth", granularity="block") as handle:
        span = handle.engine.span
    return 1 - span.num_skipped / span.num_blocks


def measure_all(
    study: Study, parts: Sequence[str], num_steps: Sequence[int], num_trials: int, progress: Progress
) -> dict[str, Any]:
    """Rows, curves, deviations and searches of the parts."""
    first, cost = num_steps[0], block_cost_of(study.pipeline)
    trials = all_trials(parts, num_steps, len(study.prompts), cost)
    records: dict[int, list[Record]] = {place: [] for place in range(len(trials))}
    task = progress.add_task("clips", total=sum(trial.num_prompts for trial in trials))
    for count in num_steps:
        for index in range(len(study.prompts)):
            places = [p for p, t in enumerate(trials) if t.num_steps == count and index < t.num_prompts]
            turn = index * 7 % max(1, len(places))
            for place in places[turn:] + places[:turn]:
                record = study.record(trials[place], index)
                if record is not None:
                    records[place].append(record)
                progress.advance(task)
    rows = [row_of(trial, records[p], study.skipped.get(trial.method.name)) for p, trial in enumerate(trials)]
    runs, searches, indices = [], [], range(len(study.prompts))
    if "b" in parts:
        runs = [study.deviations(first, index) for index in indices[: PROMPTS_OF_PART["b"]]]
    if "e" in parts:
        task = progress.add_task("searches", total=min(len(indices), PROMPTS_OF_PART["e"]))
        found = []
        for index in indices[: PROMPTS_OF_PART["e"]]:
            searches.append(study.searched(first, index, num_trials, cost))
            trial = schedule_trial("searched", searches[-1]["schedule"], 1)
            found.append(cast(Record, study.record(trial, index)))
            progress.advance(task)
        searched = row_of(trial, found)
        rows += [searched, *oracle_rows(rows, searched, first)]
        for row in rows:
            if row["part"] == "e" and row["method"].startswith("planned") and row["psnr_db"] is not None:
                row["below_searched_db"] = (searched["psnr_db"] or 0.0) - row["psnr_db"]
    return {
        "rows": with_margins(rows),
        "curves": {str(count): lines(rows, count) for count in num_steps},
        "deviations": mean_deviations(runs),
        "searches": searches,
    }


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("docs/results"))
    parser.add_argument("--work", type=Path, default=Path("training/runs/study"), help="what a run goes on from")
    parser.add_argument("--num-prompts", type=int, default=8, help="half as many for all step counts but the first")
    parser.add_argument("--num-steps", type=int, nargs="+", default=[50, 20])
    parser.add_argument("--num-trials", type=int, default=40, help="schedules tried per prompt in part e")
    parser.add_argument("--parts", default=",".join(PARTS), help="some of a,b,c,d,e")
    args = parser.parse_args(arguments)
    parts = [part for part in PARTS if part in args.parts.split(",")]
    args.out.mkdir(parents=True, exist_ok=True)
    pipeline, call_arguments = load(), call_defaults()
    prompts = world.held_out_captions(args.num_prompts, seed=1)
    study = Study(pipeline, prompts, call_arguments, Store(args.work / "method-study.jsonl"))
    with Progress() as progress:
        measured = measure_all(study, parts, args.num_steps, args.num_trials, progress)
    counts = " ".join(map(str, args.num_steps))
    result = {
        "command": f"python -m mixcache.bench.study --num-prompts {args.num_prompts} --num-steps {counts} "
        f"--num-trials {args.num_trials} --parts {','.join(parts)}",
        "arguments": call_arguments,
        "num_steps": args.num_steps,
        "prompts": prompts,
        "scheduler": type(pipeline.scheduler).__name__,
        "weights": study.model[0],
        "versions": generation.versions(),
        "machine": generation.machine(pipeline._execution_device),
        **measured,
    }
    (args.out / "method-study.json").write_text(json.dumps(result, indent=1) + "\n")
    (args.out / "method-study.md").write_text(markdown(result))
    draw(result, args.out / "method-study.png")


if __name__ == "__main__":
    main()
