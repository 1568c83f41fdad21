"""Profiles: what calibration measured of one model, as JSON, with where it came from.

A profile is in terms of sigma. Its heart are *coordinates*: the conditional output `c` and the guidance difference `d`
of every step of plain trajectories, as points in a space of few dimensions in which distances are what they were
between the tensors, averaged over prompts (the principal coordinates of their Gram matrix). Whatever a cache would
predict is a weighted sum of such points, so the error of any (granularity, predictor, step, age) follows from them.

Where two experts share the loop there is still one file: the profile of the first, for the noise levels that it works
at, with that of the other in it (`Profile.second`). Both stand in one space, measured on whole trajectories.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cache, cached_property
from importlib import resources
from os import PathLike
from pathlib import Path
from typing import Any

from mixcache.store import write_json

FORMAT = 8
GRANULARITIES = ("step", "cfg", "block")
EXPERTS = ("transformer", "transformer_2")
"""How pipelines call the first and the second of their experts."""


class ProfileError(ValueError):
    """A file that is no profile, or a profile of something else; the message says what to do."""


@dataclass(frozen=True, kw_only=True)
class Profile:
    """Calibrated numbers of one model."""

    format: int
    model: str
    """Name under which it was calibrated."""
    transformer_class: str
    fingerprint: str
    """Of class and architecture, see `fingerprint`."""
    weights: str
    """Of the weights, see `weights_hash`."""
    dtype: str
    guidance: float | None
    """Guidance scale of the calibration; None for a model without an unconditional branch."""
    sigmas: Sequence[float]
    """Noise levels of the T steps, falling, and last the one at which the last step arrives."""
    outputs: Sequence[Sequence[float]]
    """Coordinates of the conditional output, T points, in units of the rms of the final latents."""
    differences: Sequence[Sequence[float]]
    """Coordinates of uncond - cond in the same space, T points; all zero without guidance."""
    residuals: Sequence[Sequence[float]]
    """Coordinates of the guided span residual over its rms in the same step, T points in a space of their own; empty
    where the block granularity was not measured."""
    sensitivity: Mapping[str, Sequence[Sequence[float]]]
    """How much of a disturbance arrives: for "step" and "block" pairs of (sigma, rms over prompts of the change of the
    final latents over the disturbance that reuse put in there), sigma falling."""
    costs: Mapping[str, float]
    """Time of a step over that of a plain one: "compute", "step", "cfg", "block", on the machine of the calibration.
    What `block` makes a computed step measure more is left out."""
    damping: float
    """Share of an extrapolation that plans follow, 0 to 1: what gave the best clips in calibration."""
    psnr_at_one: float
    """PSNR (dB) of a clip whose plan has a cost of 1; a cost c gives this less 10 log10(c)."""
    band: float
    """How far above the mean over prompts the error of reuse was seen, as a factor."""
    impacts: Mapping[str, float]
    """Change of the final latents by a relative Gaussian disturbance in one step, averaged over steps."""
    impacts_by_step: Mapping[str, Mapping[str, float]]
    """The same by step of the calibration."""
    provenance: Mapping[str, Any] = field(default_factory=dict)
    """Command, prompts, seeds, scheduler, versions, machine, date."""
    others: Sequence[Profile] = field(default_factory=list)
    """The same model at other numbers of steps, each a profile without others."""
    second: Profile | None = None
    """Of the expert that goes on where these steps arrive, without others; None for a model of one transformer.
    Sensitivity and impacts are those of the whole loop in both."""
    share: float = 1.0
    """Of the time of a plain loop, what these steps take: 1 for a model of one transformer."""

    def __post_init__(self) -> None:
        num_steps = len(self.sigmas) - 1
        _must(num_steps >= 2, "sigmas has fewer than 3 values")
        _must(all(a > b for a, b in zip(self.sigmas, self.sigmas[1:], strict=False)), "sigmas does not fall")
        for name in ("outputs", "differences", "residuals"):
            points = getattr(self, name)
            allowed = (num_steps, 0) if name == "residuals" else (num_steps,)
            _must(len(points) in allowed, f"{name} has {len(points)} points for {num_steps} steps")
            _must(len({len(point) for point in points}) <= 1, f"{name} has points of different dimensions")
        _must(self.sigmas[0] <= 1, "sigmas are over 1, where noise levels go from 1 to 0; calibrate anew")
        _must(len(self.outputs[0]) == len(self.differences[0]), "outputs and differences are not in the same space")
        _must("step" in self.sensitivity and all(self.sensitivity.values()), "sensitivity has nothing for step")
        _must({"compute", "step"} <= set(self.costs), "costs lacks compute or step")
        _must(all(cost > 0 for cost in self.costs.values()), "a cost is not over 0")
        _must(0 <= self.damping <= 1, "damping is not between 0 and 1")
        _must(self.band >= 1, "band is under 1")
        _must(all(other.weights == self.weights for other in self.others), "one of its others is of other weights")
        _must(0 < self.share <= 1, "share is not between 0 and 1")
        for other in self.others:
            of_second = [profile.second and profile.second.weights for profile in (self, other)]
            _must(of_second[0] == of_second[1], "the second expert of one of its others is another")
        if self.second is not None:
            _must(not self.second.others and self.second.second is None, "its second has others, or a second, itself")
            _must(self.second.sigmas[0] == self.sigmas[-1], "its second does not begin where it ends")
        _must(all(_is_finite(getattr(self, f.name)) for f in fields(self) if f.name != "provenance"), "a NaN is in it")

    @property
    def num_steps(self) -> int:
        """Of the calibration, of both experts where there are two."""
        return len(self.loop_sigmas) - 1

    @property
    def loop_sigmas(self) -> Sequence[float]:
        """Noise levels of the whole loop, of both experts where there are two, and the one at which it ends."""
        return self.sigmas if self.second is None else [*self.sigmas[:-1], *self.second.sigmas]

    def levels(self, num_steps: int | None, of_scheduler: Callable[[int], Sequence[float]]) -> tuple[float, ...]:
        """Noise levels of a loop of so many steps and of its end: those of the profile where it was made with as many,
        or the number is not given; else those that `of_scheduler` tells."""
        nearest = self if num_steps is None else self.nearest(num_steps)
        if num_steps in (None, len(nearest.loop_sigmas) - 1):
            return tuple(nearest.loop_sigmas)
        return (*of_scheduler(num_steps or 0), float(self.loop_sigmas[-1]))

    @cached_property
    def experts(self) -> tuple[Profile, ...]:
        """Each expert's profile by itself, with its other numbers of steps."""
        if self.second is None:
            return (self,)
        first = replace(self, second=None, others=[replace(other, second=None) for other in self.others])
        return first, replace(self.second, others=[other.second for other in self.others if other.second])

    def nearest(self, num_steps: int) -> Profile:
        """Of this profile and its others, the one whose number of steps is nearest, as a ratio."""
        return min((self, *self.others), key=lambda profile: abs(math.log(profile.num_steps / num_steps)))

    @cached_property
    def alone(self) -> Profile:
        """This profile without others."""
        return replace(self, others=[]) if self.others else self

    @cached_property
    def digest(self) -> str:
        """Names what is in it: a SHA-256."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()

    def save(self, path: str | PathLike[str]) -> None:
        """Writes JSON, whole or not at all."""
        write_json(path, asdict(self))

    @classmethod
    def load(cls, path: str | PathLike[str]) -> Profile:
        """Reads what `save` wrote; ProfileError names the file and what is wrong with it."""
        try:
            text = Path(path).read_text()
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "it is no text"
            raise ProfileError(f"the profile {path} cannot be read: {reason}") from error
        return cls.parse(text, str(path))

    @classmethod
    def parse(cls, text: str, name: str) -> Profile:
        """The profile in `text`; ProfileError, with `name` in it, for anything else."""
        try:
            values = json.loads(text)
        except json.JSONDecodeError as error:
            raise ProfileError(f"{name} is no profile: broken off or damaged JSON (line {error.lineno})") from error
        if not isinstance(values, dict) or "format" not in values:
            raise ProfileError(f"{name} is no profile of mixcache")
        if values["format"] != FORMAT:
            age = "newer than" if isinstance(values["format"], int) and values["format"] > FORMAT else "not of"
            raise ProfileError(f"{name} has format {values['format']}, {age} this mixcache, which reads {FORMAT}")
        known = {f.name for f in fields(cls)}
        unknown, missing = sorted(set(values) - known), sorted(known - set(values))
        if unknown or missing:
            what = f"an unknown key {unknown[0]!r}" if unknown else f"no {missing[0]!r}"
            raise ProfileError(f"{name} is no profile of this mixcache: it has {what}")
        try:
            others = [cls.parse(json.dumps(other), name) for other in values["others"]]
            second = values["second"] and cls.parse(json.dumps(values["second"]), name)
            return cls(**values | {"others": others, "second": second})
        except ProfileError:
            raise
        except (TypeError, ValueError, KeyError, IndexError, AttributeError) as error:
            raise ProfileError(f"{name} is no sound profile: {error}") from error

    def misfit(self, *transformers: Any) -> str | None:
        """Why this profile is not of these transformers, the experts of one pipeline in their order, or None where it
        is."""
        own = self.experts
        if len(own) == len(transformers) == 1:
            return self._misfit(transformers[0])
        if len(own) < len(transformers):
            known = [name for name, expert in zip(EXPERTS, transformers, strict=True) if not self._misfit(expert)]
            alone = f"{known[0]} alone" if known else "one transformer"
            missing = next((name for name in EXPERTS if known and name not in known), " and ".join(EXPERTS))
            return f"it is of {alone}, and this model has two experts: it does not fit {missing}"
        if len(own) > len(transformers):
            return "it is of two experts, and this model has one transformer"
        found = [profile._misfit(expert) for profile, expert in zip(own, transformers, strict=True)]
        return next((f"{why} ({name})" for name, why in zip(EXPERTS, found, strict=True) if why), None)

    def _misfit(self, transformer: Any) -> str | None:
        if type(transformer).__name__ != self.transformer_class:
            return f"it is of a {self.transformer_class}, not of a {type(transformer).__name__}"
        if fingerprint(transformer) != self.fingerprint:
            return f"it is of another architecture of {self.transformer_class}"
        if dtype_family(str(transformer.dtype)) != dtype_family(self.dtype):
            return f"it was measured in {self.dtype}, and the model is in {transformer.dtype}"
        if weights_hash(transformer) != self.weights:
            return "it is of other weights of the same architecture"
        return None


def _must(holds: bool, complaint: str) -> None:
    if not holds:
        raise ValueError(complaint)


def _is_finite(value: Any) -> bool:
    if isinstance(value, Mapping):
        return all(_is_finite(v) for v in value.values())
    if isinstance(value, (list, tuple)):
        return all(_is_finite(v) for v in value)
    return not isinstance(value, float) or math.isfinite(value)


def dtype_family(dtype: str) -> str:
    """ "floating" for float32, bfloat16 and float16, whose trajectories agree; else the dtype itself."""
    name = dtype.removeprefix("torch.")
    return "floating" if name in ("float32", "bfloat16", "float16", "float64") else name


def fingerprint(transformer: Any) -> str:
    """Names a model by the class and the architecture in its config: 16 hexadecimal digits of a SHA-256."""
    config = {name: value for name, value in dict(transformer.config).items() if not name.startswith("_")}
    text = json.dumps([type(transformer).__name__, config], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def weights_hash(transformer: Any) -> str:
    """Names the weights: 16 hexadecimal digits of a SHA-256 of up to 64 values of each parameter, in bfloat16."""
    import torch

    digest = hashlib.sha256()
    for name, value in sorted(transformer.named_parameters()):
        flat = value.detach().flatten()
        last = max(0, flat.numel() - 1)
        # float32 rounds the last place of a large parameter up, over its end
        places = torch.linspace(0, last, min(64, flat.numel())).long().clamp(max=last)
        sample = flat[places.to(flat.device)].to("cpu", torch.bfloat16).view(torch.int16)
        digest.update(f"{name} {tuple(value.shape)} {sample.tolist()}".encode())
    return digest.hexdigest()[:16]


@cache
def shipped_profiles() -> tuple[Profile, ...]:
    """All profiles in the package."""
    files = sorted(f.name for f in resources.files(__name__).iterdir() if f.name.endswith(".json"))
    return tuple(Profile.parse(resources.files(__name__).joinpath(name).read_text(), name) for name in files)


def profile_for(*transformers: Any) -> Profile | None:
    """The shipped profile of exactly this model, or None; of both experts where it has two."""
    return next((profile for profile in shipped_profiles() if profile.misfit(*transformers) is None), None)
