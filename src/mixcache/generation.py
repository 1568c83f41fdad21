"""One clip from a pipeline, with the denoising loop timed apart and watched, and the memory it took."""

from __future__ import annotations

import contextlib
import json
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
from torch.utils import _pytree as pytree

from mixcache import zoo
from mixcache.arguments import check_call
from mixcache.names import unknown_name

DTYPES = ("float32", "bfloat16", "float16")
WAN = ("Wan", "SkyReelsV2", "LucyEdit", "ChronoEdit")
"""Beginnings of the names of Wan's pipelines. Others with its VAE have it in the dtype of the rest."""
VIDEO = ("frames", "video", "images")
"""Under which of these names pipelines give their clips."""
BESIDE = ("audio", "sound", "action")
"""And what some of them denoise together with it."""
OnStep = Callable[[int, int], None]
"""Called with (steps done, steps in all) when the loop begins and after each step."""


@dataclass(slots=True)
class LoopTime:
    """Wall-clock of the denoising loops seen."""

    seconds: float = 0.0
    began: float | None = None
    """`time.perf_counter()` at which the first of them began."""
    ended: float | None = None
    """The same for the end of the last."""


class _Watch:
    """Stands in for the progress bar of a denoising loop, which a pipeline opens around it, walks through, or closes
    itself."""

    def __init__(
        self, iterable: Any, total: int | None, clock: LoopTime, device: torch.device, on_step: OnStep | None
    ) -> None:
        self.iterable, self.total = iterable, total or (len(iterable) if iterable is not None else 0)
        self.clock, self.device, self.on_step, self.num_done = clock, device, on_step, 0
        if self.on_step:
            self.on_step(0, self.total)
        synchronize(self.device)
        self.start = time.perf_counter()
        if self.clock.began is None:
            self.clock.began = self.start

    def __enter__(self) -> _Watch:
        return self

    def __iter__(self) -> Iterator[Any]:
        with self:
            for item in self.iterable:
                yield item
                self.update()

    def update(self, num_steps: int = 1) -> None:
        self.num_done += num_steps
        if self.on_step:
            self.on_step(self.num_done, self.total)

    def close(self) -> None:
        synchronize(self.device)
        self.clock.ended = time.perf_counter()
        self.clock.seconds += self.clock.ended - self.start

    def __exit__(self, *error: object) -> None:
        self.close()


@contextlib.contextmanager
def watched_loop(pipeline: Any, on_step: OnStep | None = None) -> Iterator[LoopTime]:
    """While it is open, the pipeline's denoising loop is timed, and `on_step` told, in place of its own progress
    bar."""
    clock = LoopTime()

    def progress_bar(iterable: Any = None, total: int | None = None) -> _Watch:
        return _Watch(iterable, total, clock, pipeline._execution_device, on_step)

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
    """Calls the pipeline once with a generator of that seed; other arguments go to the pipeline's call.

    ValueError where that lacks an argument, or takes none of that name; TypeError where it gives no video.
    """
    device = pipeline._execution_device
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    start = time.perf_counter()
    with watched_loop(pipeline, on_step) as clock:
        made = _called(pipeline, prompt, seed, "np", arguments)
    end = time.perf_counter()
    return Generated(
        clip=clip_of(pipeline, made),
        denoising_seconds=clock.seconds,
        total_seconds=end - start,
        encoding_seconds=(clock.began or start) - start,
        decoding_seconds=end - (clock.ended or end),
        peak_memory_bytes=peak_memory_bytes(device),
    )


def final_latents(
    pipeline: Any, prompt: str, *, seed: int, on_step: OnStep | None = None, **arguments: Any
) -> torch.Tensor:
    """What the VAE would decode, float32 on the CPU; seed and arguments as for `generate`.

    Where several things are denoised together, such as video and sound, it is the values of all of them in one row.
    """
    with watched_loop(pipeline, on_step):
        made = _called(pipeline, prompt, seed, "latent", arguments)
    fields = dict(made)
    names = [name for name in (*VIDEO, *BESIDE) if name in fields]
    tensors = [leaf for name in names for leaf in pytree.tree_leaves(fields[name]) if isinstance(leaf, torch.Tensor)]
    if not tensors:
        raise TypeError(f'{type(pipeline).__name__} gives no latents for output_type="latent"')
    latents = [tensor.detach().float().cpu() for tensor in tensors]
    return latents[0] if len(latents) == 1 else torch.cat([tensor.flatten() for tensor in latents])


def loop_seconds(pipeline: Any, prompt: str, *, seed: int, on_step: OnStep | None = None, **arguments: Any) -> float:
    """Wall-clock of the denoising loop alone; nothing is decoded. Seed and arguments as for `generate`."""
    with watched_loop(pipeline, on_step) as clock:
        _called(pipeline, prompt, seed, "latent", arguments)
    return clock.seconds


def clip_of(pipeline: Any, made: Any) -> np.ndarray:
    """The first video of what a pipeline gave, as in `Generated`; TypeError where there is none."""
    fields = dict(made)
    clips = [np.asarray(fields[name], dtype=np.float32) for name in VIDEO if fields.get(name) is not None]
    if not clips or clips[0].ndim not in (4, 5):
        raise TypeError(f"{type(pipeline).__name__} gives no video; mixcache takes a diffusers video pipeline")
    return clips[0][0] if clips[0].ndim == 5 else clips[0]


def _called(pipeline: Any, prompt: str, seed: int, output_type: str, arguments: dict[str, Any]) -> Any:
    check_call(pipeline, arguments)
    generator = torch.Generator("cpu").manual_seed(seed)
    return pipeline(prompt=prompt, generator=generator, output_type=output_type, **arguments)


def peak_memory_bytes(device: torch.device) -> int:
    """Peak of the CUDA device since its last reset, or of this process's resident memory."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def open_model(name: str, *, dtype: str | None = None, device: str | None = None) -> tuple[Any, dict[str, Any]]:
    """A built-in model with its call arguments, or the pipeline in a folder with none; ValueError if it is neither.

    A folder is loaded in bfloat16 onto the GPU where there is one, else, as the built-in models are, in float32 onto
    the CPU; `dtype` ("float32", "bfloat16", "float16") and `device` ("cpu", "cuda", "cuda:1") ask for others. Wan's VAE
    stays float32, as its authors ask for.
    """
    if dtype is not None and dtype not in DTYPES:
        raise ValueError(unknown_name("dtype", dtype, DTYPES))
    is_own = name in zoo.BUILT_IN
    folder = zoo.folder(name) if is_own else Path(name)
    if not folder.is_dir():
        raise ValueError(unknown_name("model or folder", name, zoo.BUILT_IN))
    if not (folder / "model_index.json").is_file():
        raise ValueError(f"{folder} is no diffusers pipeline: it has no model_index.json")
    from diffusers import DiffusionPipeline

    place = _device(device) or torch.device("cuda" if torch.cuda.is_available() and not is_own else "cpu")
    wanted = getattr(torch, dtype or ("bfloat16" if place.type == "cuda" and not is_own else "float32"))
    try:
        parts = json.loads((folder / "model_index.json").read_text())
        keeps_vae = parts["_class_name"].startswith(WAN) and "AutoencoderKLWan" in (parts.get("vae") or ())
        dtypes = {"default": wanted, "vae": torch.float32} if keeps_vae else wanted
        pipeline = DiffusionPipeline.from_pretrained(folder, dtype=dtypes, local_files_only=True)
    except Exception as error:  # a broken folder fails in as many ways as it has files
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(f"{folder} cannot be loaded as a pipeline: {reason}") from error
    return pipeline.to(place), zoo.call_defaults(name) if is_own else {}


def _device(name: str | None) -> torch.device | None:
    """The device of that name; ValueError where there is none here."""
    if name is None:
        return None
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ValueError(f"device {name!r} is not on this machine; take cpu, or cuda where there is a GPU") from error
    return device


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


def synchronize(device: torch.device) -> None:
    """Waits until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
