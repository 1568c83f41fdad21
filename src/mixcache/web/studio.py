"""What the page does: one clip plain and one cached, on one pipeline, one at a time. Knows nothing of the page."""

from __future__ import annotations

import hashlib
import json
import math
import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from mixcache import generation
from mixcache.arguments import call_arguments
from mixcache.generation import Generated
from mixcache.hosts.diffusers.attachment import enable
from mixcache.metrics import video_psnr, video_ssim
from mixcache.report.filmstrip import DIFFERENCE_GAIN
from mixcache.report.video import amplified_difference, write_mp4
from mixcache.store import key_of

MAX_KEPT = 16
"""Plain clips that are kept in memory; films stay on the disk as long as the page is there."""
MIN_SIDE = 256
"""Films of smaller frames are enlarged to about this, in pixels."""
OnStage = Callable[[str, int, int], None]
"""Called with (what is made, steps done, steps in all)."""


class Stopped(Exception):  # noqa: N818 - it is no error
    """Somebody asked for the end of the generation."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Wish:
    """What somebody asked for; at most one of the last two, which are those of `mixcache.enable`."""

    prompt: str
    seed: int
    num_steps: int
    speedup: float | None = None
    quality: str | None = None

    def __post_init__(self) -> None:
        if not self.prompt.strip():
            raise ValueError("the prompt is empty; say what to show")
        if not 0 <= self.seed < 2**63:
            raise ValueError(f"seed={self.seed} must be from 0 to {2**63 - 1}")
        if not 1 <= self.num_steps <= 1000:
            raise ValueError(f"num_steps={self.num_steps} must be from 1 to 1000")

    @property
    def settings(self) -> dict[str, Any]:
        named = {"speedup": self.speedup, "quality": self.quality}
        return {name: value for name, value in named.items() if value is not None}


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """Both clips as films, and what is to be said of them."""

    wish: Wish
    plain: Path
    cached: Path
    difference: Path
    trace: tuple[dict[str, Any], ...]
    plain_seconds: float
    cached_seconds: float
    psnr_db: float | None
    """None where every value is the same."""
    ssim: float
    saving: float
    """Share of the block work that was left out."""
    loop_speedup: float | None
    """Of the cached clip alone, as the times of its own steps tell."""
    why_not: str | None

    @property
    def speedup(self) -> float:
        return self.plain_seconds / self.cached_seconds


class Studio:
    """A model, and the clips that it made; ValueError or TypeError where it is none that can be cached."""

    def __init__(
        self,
        model: str,
        folder: Path,
        *,
        profile: str | None = None,
        dtype: str | None = None,
        device: str | None = None,
    ) -> None:
        self.pipeline, self.defaults = generation.open_model(model, dtype=dtype, device=device)
        self.model, self.folder = model, folder
        self.profile = {} if profile is None else {"profile": profile}
        enable(self.pipeline, **self.profile).disable()
        self._lock = threading.Lock()
        self._plain: OrderedDict[str, Generated] = OrderedDict()
        self._ends: dict[str, threading.Event] = {}
        self._is_warm = False

    @property
    def num_steps(self) -> int:
        """Of a clip, unless somebody says otherwise."""
        return int(self.defaults.get("num_inference_steps", 50))

    def stop(self, visitor: str) -> None:
        """Ends what this visitor has under way or waiting, at its next step."""
        if visitor in self._ends:
            self._ends[visitor].set()

    def compare(self, wish: Wish, visitor: str, on_stage: OnStage) -> Comparison:
        """Makes what is not kept. One at a time, since they share a device. Stopped where `stop` was called
        meanwhile."""
        # of this call alone: one that was stopped may be at its last step when the visitor's next one begins
        end = self._ends[visitor] = threading.Event()

        def watch(stage: str) -> Callable[[int, int], None]:
            def on_step(done: int, total: int) -> None:
                if end.is_set():
                    raise Stopped
                on_stage(stage, done, total)

            return on_step

        with self._lock:
            if not self._is_warm:  # the first steps of a process are slow, and would be those of the plain clip
                self._generated(replace(wish, num_steps=2), watch("warm-up"))
                self._is_warm = True
            plain = self._plain_clip(wish, watch("plain"))
            with enable(self.pipeline, **wish.settings, **self.profile) as handle:
                cached = self._generated(wish, watch("cached"))
                summary = handle.summary()
        psnr = video_psnr(cached.clip, plain.clip)
        return Comparison(
            wish=wish,
            plain=self._film(plain.clip),
            cached=self._film(cached.clip),
            difference=self._film(amplified_difference(plain.clip, cached.clip, gain=DIFFERENCE_GAIN)),
            trace=tuple(entry.to_json() for entry in handle.trace),
            plain_seconds=plain.denoising_seconds,
            cached_seconds=cached.denoising_seconds,
            psnr_db=psnr if math.isfinite(psnr) else None,
            ssim=video_ssim(cached.clip, plain.clip),
            saving=1 - summary.computed_share,
            loop_speedup=summary.speedup,
            why_not=summary.why_not,
        )

    def _plain_clip(self, wish: Wish, on_step: Callable[[int, int], None]) -> Generated:
        key = key_of([wish.prompt, wish.seed, wish.num_steps])
        if key not in self._plain:
            self._plain[key] = self._generated(wish, on_step)
            if len(self._plain) > MAX_KEPT:
                self._plain.popitem(last=False)
        self._plain.move_to_end(key)
        return self._plain[key]

    def _generated(self, wish: Wish, on_step: Callable[[int, int], None]) -> Generated:
        arguments = call_arguments(self.pipeline, self.defaults, {"num_inference_steps": wish.num_steps})
        return generation.generate(self.pipeline, wish.prompt, seed=wish.seed, on_step=on_step, **arguments)

    def _film(self, clip: np.ndarray) -> Path:
        """The same film for the same clip."""
        path = self.folder / f"{hashlib.sha256(np.ascontiguousarray(clip).tobytes()).hexdigest()[:24]}.mp4"
        if not path.exists():
            write_mp4(clip, path, scale=max(1, MIN_SIDE // min(clip.shape[1:3])))
        return path


def as_json(comparison: Comparison) -> str:
    """All that is known, for whoever wants to keep it."""
    return json.dumps(asdict(comparison), indent=1, default=str)
