"""Runs methods on prompts, interleaved with plain clips, and records wall-clock, quality against the plain clip of the
same seed, and the work really skipped.

    survey   one setting of every family once, untimed and not decoded: does it run, what memory does it add, does it
             leave the pipeline as it was?
    measure  for each prompt and repeat: plain, a few methods, plain, a few methods, plain ...

A method's speed-up is the mean time of the plain clips before and after its group over its own. What is done is in the
store, and is not done again.
"""

from __future__ import annotations

import gc
import io
import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mixcache import generation
from mixcache.bench.meter import MemoryGauge, WorkMeter, work_digits, work_share
from mixcache.bench.methods import PLAIN, Case, Method
from mixcache.bench.records import Progress, Record
from mixcache.core.signals import relative_l1
from mixcache.generation import Generated
from mixcache.metrics import video_lpips, video_psnr, video_ssim
from mixcache.report.filmstrip import spread
from mixcache.report.video import to_bytes
from mixcache.store import Store, write_whole

WARM_UP_STEPS = 4
GROUP = 10
"""Methods between two plain clips."""
SAME_DB = 80.0
"""PSNR from which two plain clips are the same, on devices that do not repeat themselves to the bit."""
SAME_LATENTS = 1e-3
"""Relative L1 error up to which two plain clips' latents are the same."""


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One clip and what was read off while it was made."""

    made: Generated
    steps: tuple[int, ...]
    """Work of each step, see `WorkMeter`."""
    account: dict[str, Any] = field(default_factory=dict)


class Benchmark:
    """Methods on prompts. `load` gives a fresh pipeline, for when a method has spoilt the one in use."""

    def __init__(
        self,
        load: Callable[[], Any],
        arguments: dict[str, Any],
        prompts: Sequence[str],
        calibration_prompts: Sequence[str],
        *,
        seed: int,
        store: Store,
        num_repeats: int = 1,
    ) -> None:
        self.load, self.arguments, self.prompts, self.seed = load, arguments, list(prompts), seed
        self.store, self.num_repeats = store, num_repeats
        self._calibration_prompts = tuple(calibration_prompts)
        self._reload()

    def _reload(self) -> None:
        self.pipeline: Any = None  # two may be more than the device holds
        gc.collect()  # a pipeline that a method has spoilt hangs in cycles
        self.pipeline = self.load()

    def _renew(self) -> None:
        """A fresh pipeline that is warm, in place of one that a method may have spoilt."""
        self._reload()
        self._warm_up()

    @property
    def case(self) -> Case:
        return Case(pipeline=self.pipeline, arguments=self.arguments, calibration_prompts=self._calibration_prompts)

    @property
    def folder(self) -> Path:
        """Where plain clips and frames are kept."""
        return self.store.path.parent

    # --------------------------------------------------------------------------------------------------- one clip

    def generate(self, method: Method, prompt: str, seed: int) -> Measured:
        """One clip of a method."""
        meter = WorkMeter()
        arguments = self._arguments_of(method)
        with method.attached(self.case) as account, meter.on(self.pipeline):
            made = generation.generate(self.pipeline, prompt, seed=seed, on_step=meter.mark, **arguments)
            if not np.isfinite(made.clip).all():
                raise ArithmeticError(f"{method.name}: the clip holds a NaN or an infinity")
            return Measured(made=made, steps=tuple(meter.steps), account=account())

    def _arguments_of(self, method: Method) -> dict[str, Any]:
        steps = method.num_inference_steps
        return self.arguments if steps is None else self.arguments | {"num_inference_steps": steps}

    def _warm_up(self) -> torch.Tensor:
        """The latents of a short clip."""
        arguments = self.arguments | {"num_inference_steps": WARM_UP_STEPS}
        return generation.final_latents(self.pipeline, self.prompts[0], seed=self.seed, **arguments)

    # ----------------------------------------------------------------------------------------------------- survey

    def survey(self, methods: Sequence[Method], on_clip: Progress | None = None) -> dict[str, dict[str, Any]]:
        """For every method the reason why it cannot be measured, if one is known; for the first of each family the
        bytes that it added."""
        firsts = {method.family: method for method in reversed(methods)}.values()
        asked = [m for m in methods if m in firsts and not self.store.has(["survey", m.name])]
        if asked:
            reference = self._warm_up()
            plain = self._gauged(PLAIN)
        for index, method in enumerate(asked):
            found: dict[str, Any] = {"memory_added_bytes": None, "failure": None}
            try:
                found["memory_added_bytes"] = self._gauged(method).above(plain)
            except Exception as error:  # a peer fails in ways of its own; the reason is the result
                found["failure"] = reason_of(error)
            found["failure"] = found["failure"] or self._spoilt(reference)
            if found["failure"]:
                self._renew()
            self.store.keep(["survey", method.name], found)
            if on_clip:
                on_clip(index + 1, len(asked))
        return {method.name: self._surveyed(method) for method in methods}

    def _surveyed(self, method: Method) -> dict[str, Any]:
        key = ["survey", method.name]
        return self.store.get(key) if self.store.has(key) else {"memory_added_bytes": None, "failure": None}

    def _fail(self, method: Method, reason: str) -> None:
        """From here on the method counts as one that cannot be measured."""
        self.store.keep(["survey", method.name], {"memory_added_bytes": None, "failure": reason})
        self._renew()

    def failure(self, method: Method) -> str | None:
        """Why it cannot be measured, if it is known that it cannot."""
        reason: str | None = self._surveyed(method)["failure"]
        return reason

    def _gauged(self, method: Method) -> MemoryGauge:
        gc.collect()  # what the method before has left, which is not this one's
        gauge = MemoryGauge(self.pipeline._execution_device)
        arguments = self._arguments_of(method)
        with method.attached(self.case):
            latents = generation.final_latents(
                self.pipeline, self.prompts[0], seed=self.seed, on_step=gauge.mark, **arguments
            )
        if not torch.isfinite(latents).all():
            raise ArithmeticError(f"{method.name}: the latents hold a NaN or an infinity")
        return gauge

    def _spoilt(self, reference: torch.Tensor) -> str | None:
        try:
            is_same = float(relative_l1(self._warm_up(), reference)) <= SAME_LATENTS
        except Exception as error:  # as above
            return f"leaves the pipeline broken: {reason_of(error)}"
        if not is_same:
            return "leaves the pipeline changed: a plain clip after it is another one"
        return None

    # ---------------------------------------------------------------------------------------------------- measure

    def run(self, methods: Sequence[Method], on_clip: Progress | None = None) -> list[Record]:
        """The records of every method on every prompt and repeat, each round beginning elsewhere in the list.

        What fails on the way is left out from there on; `failure` then tells the reason.
        """
        self._warm_up()
        rounds = [(repeat, index) for repeat in range(self.num_repeats) for index in range(len(self.prompts))]
        num_done, total = 0, len(methods) * len(rounds)
        for number, (repeat, index) in enumerate(rounds):
            turn = len(methods) * number // len(rounds)
            asked = [
                method
                for method in (*methods[turn:], *methods[:turn])
                if not self.failure(method) and not self.store.has(self._key(method, index, repeat))
            ]
            num_done += len(methods) - len(asked)
            before: Measured | None = None
            for start in range(0, len(asked), GROUP):
                before = self._measure_group(asked[start : start + GROUP], index, repeat, before)
                num_done += len(asked[start : start + GROUP])
                if on_clip:
                    on_clip(num_done, total)
        return self.records(methods)

    def records(self, methods: Sequence[Method]) -> list[Record]:
        """Those that are measured, the plain ones first."""
        keys = [
            self._key(method, index, repeat)
            for method in (PLAIN, *methods)
            for repeat in range(self.num_repeats)
            for index in range(len(self.prompts))
        ]
        failed = {method.name for method in methods if self.failure(method)}
        return [Record(**self.store.get(key)) for key in keys if key[1] not in failed and self.store.has(key)]

    def pace(self) -> list[list[float]]:
        """Seconds of the plain clips before and after each group that was measured."""
        return [list(value) for value in self.store.all("pace")]

    def _key(self, method: Method, index: int, repeat: int) -> list[Any]:
        return ["record", method.name, index, repeat]

    def _measure_group(
        self, methods: Sequence[Method], index: int, repeat: int, before: Measured | None
    ) -> Measured | None:
        """Records methods between two plain clips: `before`, or a new one, and the one that is returned."""
        prompt, seed = self.prompts[index], self.seed + index
        before = before or self.generate(PLAIN, prompt, seed)
        records: list[tuple[Method, Record]] = []
        for method in methods:
            reason = None
            try:
                made = self.generate(method, prompt, seed)
            except Exception as error:  # as in the survey
                reason = reason_of(error)
            if reason:  # only now, since the error holds on to the pipeline
                self._fail(method, f"{reason} (seed {seed})")
            else:
                records.append((method, self._record(method, prompt, seed, repeat, made, before)))
        after = self.generate(PLAIN, prompt, seed)
        if not same(after.made, before.made):
            sound = [method for method, _ in records if not self._spoils(method, prompt, seed, before.made)]
            if len(sound) == len(records):
                raise RuntimeError("two plain clips of the same seed differ, and no method is to blame for it")
            return self._measure_group(sound, index, repeat, None) if sound else None
        if not records:
            return after
        seconds = (before.made.denoising_seconds + after.made.denoising_seconds) / 2
        self.store.keep(
            ["pace", index, repeat, records[0][0].name], [before.made.denoising_seconds, after.made.denoising_seconds]
        )
        if not self.store.has(self._key(PLAIN, index, repeat)):
            plain = self._record(PLAIN, prompt, seed, repeat, before, before)
            self.store.keep(self._key(PLAIN, index, repeat), asdict(plain))
        for method, record in records:
            timed = replace(record, speedup=seconds / record.denoising_seconds)
            self.store.keep(self._key(method, index, repeat), asdict(timed))
        return after

    def _spoils(self, method: Method, prompt: str, seed: int, reference: Generated) -> bool:
        """True, and the method has failed, if a plain clip after it is another one, or none."""
        self._renew()
        try:
            self.generate(method, prompt, seed)
            if same(self.generate(PLAIN, prompt, seed).made, reference):
                return False
            reason = "leaves the pipeline changed: a plain clip after it is another one"
        except Exception as error:  # as in the survey
            reason = reason_of(error)
        self._fail(method, f"{reason} (seed {seed})")
        return True

    def _record(self, method: Method, prompt: str, seed: int, repeat: int, one: Measured, plain: Measured) -> Record:
        """What a clip shows; its speed-up waits for the plain clip after it."""
        made, clip = one.made, plain.made.clip
        if seed == self.seed and repeat == 0:
            self._keep_frames(method, made)
        psnr = video_psnr(made.clip, clip)
        on_gpu = self.pipeline._execution_device.type == "cuda"
        return Record(
            method=method.name,
            prompt=prompt,
            seed=seed,
            repeat=repeat,
            denoising_seconds=made.denoising_seconds,
            encoding_seconds=made.encoding_seconds,
            decoding_seconds=made.decoding_seconds,
            speedup=1.0,
            ideal_speedup=1 / work_share(one.steps, plain.steps),
            psnr_db=psnr if math.isfinite(psnr) else None,
            ssim=video_ssim(made.clip, clip),
            lpips=video_lpips(made.clip, clip),
            cache_peak_bytes=one.account.get("cache_bytes"),
            peak_memory_bytes=made.peak_memory_bytes if on_gpu else None,
            granularity_counts=one.account.get("granularity_counts", {}),
            schedule=one.account.get("schedule", ""),
            work=work_digits(one.steps, plain.steps),
        )

    def _keep_frames(self, method: Method, made: Generated) -> None:
        """A few frames of the first prompt's clip, for the page."""
        frames = io.BytesIO()
        np.save(frames, to_bytes(made.clip[list(spread(len(made.clip)))]))
        write_whole(self.frames_path(method.name), frames.getvalue())

    def frames_path(self, name: str) -> Path:
        return self.folder / f"frames {''.join(c if c.isalnum() or c in ' .,-' else '_' for c in name)}.npy"

    # ------------------------------------------------------------------------------------------------ noise floor

    def noise_floor(self, num_prompts: int = 2) -> dict[str, float | None]:
        """PSNR of the plain clip against itself computed otherwise, the mean over a few prompts; None where it is the
        same to the bit. Empty on a GPU."""
        if self.pipeline._execution_device.type == "cuda":
            return {}
        return dict(self.store.get(["noise floor"], lambda: self._noise_floor(num_prompts)))

    def _noise_floor(self, num_prompts: int) -> dict[str, float | None]:
        chosen = [(prompt, self.seed + index) for index, prompt in enumerate(self.prompts[:num_prompts])]
        plain = [self.generate(PLAIN, prompt, seed).made.clip for prompt, seed in chosen]

        def floor() -> float | None:
            clips = [self.generate(PLAIN, prompt, seed).made.clip for prompt, seed in chosen]
            values = [video_psnr(a, b) for a, b in zip(clips, plain, strict=True)]
            finite = [value for value in values if math.isfinite(value)]
            return sum(finite) / len(finite) if finite else None

        num_threads = torch.get_num_threads()
        other = 1 if num_threads > 1 else 2
        torch.set_num_threads(other)
        try:
            found = {f"{other} instead of {num_threads} threads": floor()}
        finally:
            torch.set_num_threads(num_threads)
        if next(self.pipeline.transformer.parameters()).dtype is torch.float32:
            with torch.autocast("cpu", torch.bfloat16), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of layers that autocast leaves in float32
                found["bfloat16 autocast instead of float32"] = floor()
        return found


def same(made: Generated, reference: Generated) -> bool:
    """True for clips that differ by no more than the device's own noise; False where one holds a NaN."""
    return video_psnr(made.clip, reference.clip) >= SAME_DB


def reason_of(error: BaseException) -> str:
    """Kind and first line of an error, for a table."""
    if isinstance(error, torch.OutOfMemoryError):
        return "out of memory"
    first = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    return f"{type(error).__name__}: {first}"[:300]
