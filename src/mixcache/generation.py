"""One clip from a pipeline, with the denoising loop timed apart and watched, and the memory it took."""

from __future__ import annotations

import contextlib
import inspect
import os
import platform
import resource
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mixcache import zoo
from mixcache.config import unknown_name

OnStep = Callable[[int, int], None]
"""Called with (steps done, steps in all) when the loop begins and after each step."""


@dataclass(slots=True)
class LoopTime:
    """Wall-clock of the denoising loops seen."""

    seconds: float = 0.0
    num_loops: int = 0
    began: float | None = None
    """`time.perf_counter()` at which the first of them began."""
    ended: float | None = None
    """The same for the end of the last."""


class _Watch:
    """Stands in for the progress bar that a pipeline opens around its denoising loop."""

    def __init__(self, total: int, clock: LoopTime, device: torch.device, on_step: OnStep | None) -> None:
        self.total, self.clock, self.device, self.on_step, self.num_done = total, clock, device, on_step, 0

    def __enter__(self) -> _Watch:
        if self.on_step:
            self.on_step(0, self.total)
        _synchronize(self.device)
        self.start = time.perf_counter()
        if self.clock.began is None:
            self.clock.began = self.start
        return self

    def update(self, num_steps: int = 1) -> None:
        self.num_done += num_steps
        if self.on_step:
            self.on_step(self.num_done, self.total)

    def __exit__(self, *error: object) -> None:
        _synchronize(self.device)
        self.clock.ended = time.perf_counter()
        self.clock.seconds += self.clock.ended - self.start
        self.clock.num_loops += 1


@contextlib.contextmanager
def watched_loop(pipeline: Any, on_step: OnStep | None = None) -> Iterator[LoopTime]:
    """While it is open, the pipeline's denoising loop is timed, and `on_step` told, in place of its own progress
    bar."""
    clock = LoopTime()

    def progress_bar(iterable: Any = None, total: int | None = None) -> _Watch:
        return _Watch(total or 0, clock, pipeline._execution_device, on_step)

    pipeline.progress_bar = progress_bar
    try:
        yield clock
    finally:
        del pipeline.progress_bar


@dataclass(frozen=True, kw_only=True, slots=True)
class Generated:
    """A clip and what it cost."""

    clip: np.ndarray
    """float32, shape (num_frames, height, width, 3), values in [0, 1]."""
    denoising_seconds: float
    """Wall-clock of the denoising loop: text encoding and VAE decoding are left out."""
    total_seconds: float
    """Wall-clock of the whole pipeline call."""
    encoding_seconds: float
    """Of it, before the loop: text encoding and preparation."""
    decoding_seconds: float
    """Of it, after the loop: VAE decoding."""
    peak_memory_bytes: int
    """Highest memory of the device in use; on a CPU the highest resident size of this process so far."""


def generate(pipeline: Any, prompt: str, *, seed: int, on_step: OnStep | None = None, **arguments: Any) -> Generated:
    """Calls the pipeline once with a generator of that seed; other arguments go to the pipeline's call."""
    device = pipeline._execution_device
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    generator = torch.Generator("cpu").manual_seed(seed)
    start = time.perf_counter()
    with watched_loop(pipeline, on_step) as clock:
        video = pipeline(prompt, generator=generator, output_type="np", **arguments).frames[0]
    end = time.perf_counter()
    return Generated(
        clip=np.asarray(video, dtype=np.float32),
        denoising_seconds=clock.seconds,
        total_seconds=end - start,
        encoding_seconds=(clock.began or start) - start,
        decoding_seconds=end - (clock.ended or end),
        peak_memory_bytes=peak_memory_bytes(device),
    )


def final_latents(
    pipeline: Any, prompt: str, *, seed: int, on_step: OnStep | None = None, **arguments: Any
) -> torch.Tensor:
    """What the VAE would decode, float32 on the CPU; seed and arguments as for `generate`."""
    generator = torch.Generator("cpu").manual_seed(seed)
    with watched_loop(pipeline, on_step):
        made = pipeline(prompt, generator=generator, output_type="latent", **arguments)
    latents: torch.Tensor = made.frames
    return latents.detach().float().cpu()


def peak_memory_bytes(device: torch.device) -> int:
    """Peak of the CUDA device since its last reset, or of this process's resident memory."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def accepted_arguments(pipeline: Any, arguments: dict[str, Any]) -> dict[str, Any]:
    """Those of `arguments` that are not None and that the pipeline's call takes."""
    known = inspect.signature(pipeline.__call__).parameters
    return {name: value for name, value in arguments.items() if value is not None and name in known}


def open_model(name: str) -> tuple[Any, dict[str, Any]]:
    """A built-in model with its call arguments, or the pipeline in a folder with none; ValueError if it is neither.

    A folder is loaded in bfloat16 onto the GPU where there is one, else in float32.
    """
    if name in zoo.BUILT_IN:
        return zoo.load(name), zoo.call_defaults(name)
    folder = Path(name)
    if not folder.is_dir():
        raise ValueError(unknown_name("model or folder", name, zoo.BUILT_IN))
    if not (folder / "model_index.json").is_file():
        raise ValueError(f"{folder} is no diffusers pipeline: it has no model_index.json")
    from diffusers import DiffusionPipeline

    has_gpu = torch.cuda.is_available()
    try:
        dtype = torch.bfloat16 if has_gpu else torch.float32
        pipeline = DiffusionPipeline.from_pretrained(folder, dtype=dtype, local_files_only=True)
    except Exception as error:  # a broken folder fails in as many ways as it has files
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(f"{folder} cannot be loaded as a pipeline: {reason}") from error
    return pipeline.to("cuda") if has_gpu else pipeline, {}


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that a result depends on; cache-dit is a peer, and may be missing."""
    from mixcache import __version__

    packages = {name: metadata.version(name) for name in ("torch", "diffusers", "transformers")}
    if find_spec("cache_dit"):
        packages["cache-dit"] = metadata.version("cache-dit")
    return {"mixcache": __version__, "python": platform.python_version(), **packages}


def machine(device: torch.device) -> dict[str, str]:
    """What a timing was taken on; no host name."""
    kind = torch.cuda.get_device_name(device) if device.type == "cuda" else cpu_model()
    return {
        "system": platform.system(),
        "device": kind,
        "cores": str(os.cpu_count()),
        "threads": str(torch.get_num_threads()),
    }


def cpu_model() -> str:
    """The processor's name where the system tells it, else its architecture."""
    facts = Path("/proc/cpuinfo")
    lines = facts.read_text().splitlines() if facts.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
