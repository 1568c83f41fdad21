"""Policies and peers in settings in which an error grows as it does in real models.

    python -m studies.hard --settings wan-30 hunyuan-20 --methods hindsight every_nth:period=2 teacache

A setting is hard by what half the steps and rounding to bfloat16 cost in it, which `--difficulty` measures; no method
is looked at for that. Every method makes the same clips as the plain pipeline, one caption in a call, and what is told
of it are the lowest clips, beside the median: PSNR of the decoded clips against the plain ones, and how much of its
caption a clip shows. Captions are training
ones unless `--held-out` asks for those that judge. What was measured is kept in `--work`, and a run cut off goes on
from there.
"""

from __future__ import annotations

import argparse
import itertools
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, UniPCMultistepScheduler
from rich.console import Console

from mixcache import generation
from mixcache.arguments import accepted_arguments
from mixcache.bench.command import calibration_captions, held_out
from mixcache.bench.families import select
from mixcache.bench.meter import WorkMeter, work_share
from mixcache.bench.methods import PLAIN, Case, Method, fewer_steps
from mixcache.bench.source import code_hash
from mixcache.calibration import built_in_prompts
from mixcache.metrics import video_psnr
from mixcache.policies.budget import check_reach
from mixcache.store import Store
from mixcache.zoo import world
from studies.captions import adherence

SEED = 8000
NUM_SKIPPED_CAPTIONS = 60
"""The first training captions are those that profiles, peers and settings were chosen on."""
NUM_SEEN_CAPTIONS = 50
NUM_ROUNDED = 4
JUDGING_SEED = 25
BROKEN = 30.0
"""PSNR (dB) under which a clip shows something else than the plain one."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Setting:
    """One way of calling a built-in model."""

    model: str
    num_steps: int
    guidance_scale: float
    sampler: str | None = None
    """None for the model's own."""


SETTINGS = {
    "wan-50": Setting(model="shapes-wan", num_steps=50, guidance_scale=9.0),
    "wan-30": Setting(model="shapes-wan", num_steps=30, guidance_scale=7.0),
    "wan-20": Setting(model="shapes-wan", num_steps=20, guidance_scale=7.0),
    "wan-20-euler": Setting(model="shapes-wan", num_steps=20, guidance_scale=10.0, sampler="euler"),
    "hunyuan-20": Setting(model="shapes-hunyuan", num_steps=20, guidance_scale=10.0),
    "hunyuan-12": Setting(model="shapes-hunyuan", num_steps=12, guidance_scale=10.0),
    "hunyuan-12-unipc": Setting(model="shapes-hunyuan", num_steps=12, guidance_scale=10.0, sampler="unipc"),
    "cogvideox-30": Setting(model="shapes-cogvideox", num_steps=30, guidance_scale=10.0),
    "cogvideox-20": Setting(model="shapes-cogvideox", num_steps=20, guidance_scale=10.0),
    "cogvideox-12": Setting(model="shapes-cogvideox", num_steps=12, guidance_scale=8.0),
}
SHIFTS = {"shapes-wan": 20.0, "shapes-hunyuan": 7.0}
"""Of the noise levels, as the model's own scheduler has it."""


def sampler_of(name: str, model: str) -> Any:
    """A scheduler of that name for a model of flow matching."""
    if name == "euler":
        return FlowMatchEulerDiscreteScheduler(shift=SHIFTS[model])
    return UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=SHIFTS[model])


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--settings", nargs="+", choices=SETTINGS, default=list(SETTINGS))
    parser.add_argument("--methods", nargs="*", default=[], help="as `mixcache bench --methods` takes them")
    parser.add_argument("--num-prompts", type=int, default=12)
    parser.add_argument("--held-out", action="store_true", help="the captions that judge")
    parser.add_argument("--difficulty", action="store_true", help="half the steps, and bfloat16")
    parser.add_argument("--work", type=Path, default=Path("build/hard"))
    args = parser.parse_args(arguments)
    console = Console(soft_wrap=True)
    for name in args.settings:
        trials = Trials(name, args.num_prompts, is_held_out=args.held_out, work=args.work)
        if args.difficulty:
            half = trials.values(fewer_steps(SETTINGS[name].num_steps // 2))
            console.print(row(name, "half the steps", half))
            console.print(row(name, "bfloat16", trials.rounded()))
        for method in select(args.methods, SETTINGS[name].num_steps, trials.transformer) if args.methods else ():
            console.print(row(name, method.name, trials.values(method)))


def judging(num_prompts: int) -> tuple[str, ...]:
    """Held-out captions that no setting, rule or peer was looked at on: none of those of `mixcache bench`."""
    seen = set(held_out("shapes-wan", NUM_SEEN_CAPTIONS))
    captions = world.held_out_captions(num_prompts + NUM_SEEN_CAPTIONS, seed=JUDGING_SEED)
    return tuple([caption for caption in captions if caption not in seen][:num_prompts])


def allows(speedup: float, num_steps: int) -> bool:
    """False for a wished speed-up that so many steps do not reach."""
    try:
        check_reach(speedup, num_steps)
    except ValueError:
        return False
    return True


Value = tuple[float, float, float]
"""Of a clip: share of the plain work, PSNR (dB) against the plain clip, share of its caption that it shows."""


def speedup_of(values: Sequence[Value]) -> float:
    """Ideal: of the work, of all captions together."""
    return 1 / fmean(value[0] for value in values)


def decibels_of(values: Sequence[Value]) -> list[float]:
    return [value[1] for value in values]


def row(setting: str, method: str, values: Sequence[Value]) -> str:
    """What is told of a method: ideal speed-up; lowest, tenth percentile and median in dB; share of broken clips."""
    decibels = decibels_of(values)
    tenth, median = np.quantile(decibels, (0.1, 0.5))
    broken = fmean(psnr < BROKEN for psnr in decibels)
    return (
        f"{setting:17} {method:44} {speedup_of(values):.2f}x lowest {min(decibels):.1f} tenth {tenth:.1f} "
        f"median {median:.1f} broken {broken:.0%}"
    )


class Trials:
    """The clips of one setting."""

    def __init__(self, name: str, num_prompts: int, *, is_held_out: bool, work: Path) -> None:
        setting = SETTINGS[name]
        self.pipeline, defaults = generation.open_model(setting.model)
        if setting.sampler:
            self.pipeline.scheduler = sampler_of(setting.sampler, setting.model)
        own = {"num_inference_steps": setting.num_steps, "guidance_scale": setting.guidance_scale}
        self.arguments = accepted_arguments(self.pipeline, defaults | own)
        self.num_steps = setting.num_steps
        self.transformer = type(self.pipeline.transformer).__name__
        training = built_in_prompts(NUM_SKIPPED_CAPTIONS + num_prompts)[NUM_SKIPPED_CAPTIONS:]
        self._prompts = judging(num_prompts) if is_held_out else training
        self._case = Case(
            pipeline=self.pipeline,
            arguments=self.arguments,
            calibration_prompts=calibration_captions(setting.model, given=None),
        )
        self._store = Store(work / f"{name}{'-held-out' if is_held_out else ''}.jsonl")
        self._clips = work / "clips" / f"{name}{'-held-out' if is_held_out else ''}"
        self._clips.mkdir(parents=True, exist_ok=True)
        self._setting = asdict(setting)

    def values(self, method: Method) -> list[Value]:
        """Of each caption."""
        return [self.value(method, index) for index in range(len(self._prompts))]

    def rounded(self) -> list[Value]:
        """The plain pipeline under bfloat16 autocast, on the first captions: that is slow on a CPU."""

        def measure(index: int) -> Value:
            plain, _ = self._plain(index)
            with torch.autocast("cpu", torch.bfloat16), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of layers that autocast leaves in float32
                clip, _ = self.make(index)
            return 1.0, video_psnr(clip, plain), self._adherence(clip, index)

        count = min(NUM_ROUNDED, len(self._prompts))
        return [self._kept("autocast", index, partial(measure, index)) for index in range(count)]

    def plain_adherence(self) -> float:
        """Mean share of their captions that the plain clips show."""
        return fmean(self._adherence(self._plain(index)[0], index) for index in range(len(self._prompts)))

    def step_change(self) -> float:
        """Mean over a plain clip's steps of the relative L1 change of the first output of a step to that of the step
        before."""

        def measure() -> float:
            outputs: list[torch.Tensor] = []
            hook = self.pipeline.transformer.register_forward_hook(lambda *told: outputs.append(told[-1][0]))
            with hook:
                self.make(0)
            firsts = outputs[:: len(outputs) // self.num_steps]
            return fmean(
                float((now - before).abs().sum() / before.abs().sum()) for before, now in itertools.pairwise(firsts)
            )

        change: float = self._store.get(["change", self._setting, self._prompts[0]], measure)
        return change

    def _adherence(self, clip: np.ndarray, index: int) -> float:
        return adherence(clip, self._prompts[index]).mean

    def value(self, method: Method, index: int) -> Value:
        """Of one caption."""

        def measure() -> Value:
            plain, plain_work = self._plain(index)
            own = {"num_inference_steps": method.num_inference_steps} if method.num_inference_steps else {}
            with method.attached(self._case):
                clip, work = self.make(index, own)
            return work_share(work, plain_work), video_psnr(clip, plain), self._adherence(clip, index)

        return self._kept(method.name, index, measure, own=method.policy is not None)

    def _kept(self, name: str, index: int, measure: Callable[[], Value], *, own: bool = False) -> Value:
        """Measured before, or now; what our policies give hangs on all of our code."""
        code = [code_hash()] if own else []
        identity = ["clip", self._setting, name, self._prompts[index], SEED + index, *code]
        share, psnr, shown = self._store.get(identity, measure)
        return share, psnr, shown

    def _plain(self, index: int) -> tuple[np.ndarray, list[int]]:
        file = self._clips / f"{index}.npz"
        if not file.exists():
            with PLAIN.attached(self._case):
                clip, work = self.make(index)
            np.savez(file, clip=clip, work=work)
        with np.load(file) as kept:
            return kept["clip"], kept["work"].tolist()

    def make(self, index: int, own: Mapping[str, Any] | None = None) -> tuple[np.ndarray, list[int]]:
        """Clip and work of one caption, by the pipeline as it is, with `own` arguments in place of the setting's."""
        meter = WorkMeter()
        with meter.on(self.pipeline):
            made = generation.generate(
                self.pipeline,
                self._prompts[index],
                seed=SEED + index,
                on_step=meter.mark,
                **{**self.arguments, **(own or {})},
            )
        return made.clip, meter.steps


if __name__ == "__main__":
    main()
