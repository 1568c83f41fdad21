"""Profiles: what is known of one model before it generates, as JSON, with where it came from.

A profile holds what every cached generation shows anyway (`mixcache.policies.way.Learnt`: how fast outputs change by
noise level, what a cached step takes), and what only `mixcache calibrate` measures: PSNR by `error`, and the impacts of
the paper's policy. `handle.profile` is one, `enable(..., profile=)` goes on from one.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from functools import cache
from importlib import resources
from os import PathLike
from pathlib import Path
from typing import Any

from mixcache.policies.way import PRIOR, Learnt
from mixcache.profiles.errors import ProfileError
from mixcache.profiles.estimates import Estimate, Line
from mixcache.store import write_json

FORMAT = 10


@dataclass(frozen=True, kw_only=True, slots=True)
class Expert:
    """What tells a transformer from others."""

    transformer_class: str
    fingerprint: str
    """Of class and architecture, see `fingerprint`."""
    weights: str
    """Of the weights, see `weights_hash`."""
    dtype: str

    @classmethod
    def of(cls, transformer: Any) -> Expert:
        """That of a transformer."""
        return cls(
            transformer_class=type(transformer).__name__,
            fingerprint=fingerprint(transformer),
            weights=weights_hash(transformer),
            dtype=str(transformer.dtype),
        )

    def misfit(self, transformer: Any) -> str | None:
        """Why this is not the transformer, or None where it is."""
        if type(transformer).__name__ != self.transformer_class:
            return f"it is of a {self.transformer_class}, not of a {type(transformer).__name__}"
        if fingerprint(transformer) != self.fingerprint:
            return f"it is of another architecture of {self.transformer_class}"
        if dtype_family(str(transformer.dtype)) != dtype_family(self.dtype):
            return f"it was measured in {self.dtype}, and the model is in {transformer.dtype}"
        if weights_hash(transformer) != self.weights:
            return "it is of other weights of the same architecture"
        return None


@dataclass(frozen=True, kw_only=True)
class Profile:
    """What is known of one model."""

    format: int = FORMAT
    model: str
    """Name under which it was measured."""
    experts: Sequence[Expert]
    """Its transformer, or the two that share a loop, in their order."""
    rates: Mapping[str, float]
    """Error of reuse for each unit of noise level, by the log of signal over noise, at places of `PRIOR`."""
    cached_share: float | None = None
    """Time of a cached step over that of a computed one, on the machine that it was measured on."""
    num_generations: int
    """That taught it."""
    limits: Mapping[str, Sequence[float]] = field(default_factory=dict)
    """For each wish the `error` that gave it, and in how many generations."""
    impacts: Mapping[str, float] = field(default_factory=dict)
    """Change of the final latents by a relative Gaussian disturbance in one step, by granularity (policy `mixcache`);
    empty where they were not measured."""
    psnrs: Sequence[Sequence[float]] = field(default_factory=list)
    """(`error` of policy `hold`, number of steps, PSNR in dB against the plain clip) of each clip of a calibration."""
    provenance: Mapping[str, Any] = field(default_factory=dict)
    """Command, prompts, seeds, scheduler, versions, machine, date."""

    def __post_init__(self) -> None:
        _must(len(self.experts) in (1, 2), "it is of no transformer, or of more than two")
        places = {str(place) for place in PRIOR.places}
        _must(set(self.rates) <= places, "rates are at other places")
        _must(all(_is_positive(rate) for rate in self.rates.values()), "a rate is no number over 0")
        _must(all(_is_positive(impact) for impact in self.impacts.values()), "an impact is no number over 0")
        share = self.cached_share
        _must(share is None or (_is_positive(share) and share < 1), "cached_share is not between 0 and 1")
        _must(
            all(len(known) == 2 and all(map(_is_positive, known)) for known in self.limits.values()), "a limit is none"
        )
        _must(all(len(row) == 3 and all(map(_is_positive, row)) for row in self.psnrs), "psnrs has rows that are none")

    @property
    def learnt(self) -> Learnt:
        """What a policy begins with."""
        places = {str(place): index for index, place in enumerate(PRIOR.places)}
        log_rates = {places[place]: math.log(rate) for place, rate in self.rates.items()}
        return Learnt(
            log_rates=log_rates,
            cached_share=self.cached_share,
            limits={wish: (math.log(error), int(count)) for wish, (error, count) in self.limits.items()},
            num_generations=self.num_generations,
        )

    @property
    def digest(self) -> str:
        """Names what is in it: a SHA-256."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()

    def estimate(self, psnr_db: float, num_steps: int) -> Estimate:
        """The `error` at which nine of ten clips of so many steps are expected to have this PSNR or more; ProfileError
        where it is not known, or further from what was measured than MOST_BEYOND."""
        line = Line.of(self.psnrs, num_steps)
        worst, best = line.tenth_at(line.most), line.tenth_at(line.least)
        if not worst <= psnr_db <= best:
            raise ProfileError(
                f"quality={psnr_db:g} is beyond what this profile tells of {num_steps} steps, {math.ceil(worst)} to "
                f"{math.floor(best)} dB; ask for something between, or calibrate on more prompts"
            )
        return line.estimate(line.error_at(psnr_db), psnr_db)

    def foretold(self, error: float, num_steps: int) -> Estimate:
        """The PSNR that nine of ten clips of so many steps are expected to have at least with this `error`;
        ProfileError as for `estimate`."""
        line = Line.of(self.psnrs, num_steps)
        if not line.least <= error <= line.most:
            raise ProfileError(
                f"error={error:g} is beyond what this profile tells of {num_steps} steps: {line.least:.2g} to "
                f"{line.most:.2g}"
            )
        return line.estimate(error, line.tenth_at(error))

    def with_learnt(self, learnt: Learnt) -> Profile:
        """This profile, with what the generations since have taught."""
        rates = {str(PRIOR.places[k]): _rounded(math.exp(rate)) for k, rate in sorted(learnt.log_rates.items())}
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        share = None if learnt.cached_share is None else min(0.99, _rounded(learnt.cached_share))
        limits = {wish: [_rounded(math.exp(log)), count] for wish, (log, count) in learnt.limits.items()}
        known = {"rates": rates, "cached_share": share, "limits": limits, "num_generations": learnt.num_generations}
        return Profile(**values | known)

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
            return cls(**values | {"experts": [Expert(**expert) for expert in values["experts"]]})
        except (TypeError, ValueError, KeyError, AttributeError) as error:
            raise ProfileError(f"{name} is no sound profile: {error}") from error

    def misfit(self, *transformers: Any) -> str | None:
        """Why this profile is not of these transformers, the experts of one pipeline in their order, or None where it
        is."""
        if len(self.experts) < len(transformers):
            return "it is of one transformer, and this model has two experts"
        if len(self.experts) > len(transformers):
            return "it is of two experts, and this model has one transformer"
        return next((why for e, t in zip(self.experts, transformers, strict=True) if (why := e.misfit(t))), None)


def profile_of(model: str, transformers: Sequence[Any], **known: Any) -> Profile:
    """A profile of these transformers of which nothing is known but what is given."""
    values: dict[str, Any] = {"rates": {}, "num_generations": 0} | known
    return Profile(model=model, experts=[Expert.of(transformer) for transformer in transformers], **values)


def _must(holds: bool, complaint: str) -> None:
    if not holds:
        raise ValueError(complaint)


def _rounded(value: float) -> float:
    """To six digits, so that a small one is not 0."""
    return float(f"{value:.6g}")


def _is_positive(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value) and value > 0


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
