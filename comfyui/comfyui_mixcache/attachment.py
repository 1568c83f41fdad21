"""Attaches MixCache to a clone of a ComfyUI model: four wrappers, and what they share.

    OUTER_SAMPLE      notes which latents came of a run, for the report
    SAMPLER_SAMPLE    makes a `Sampling` for the run, takes the sampler anew where it says so, and ends it
    PREDICT_NOISE     one call of the sampler's
    CALC_COND_BATCH   what of it the model is asked

Wrappers and the `Attachment` lie in the clone's own options, so that nothing is left where the node is taken out.
"""

from __future__ import annotations

import itertools
import logging
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

from mixcache.core import End
from mixcache.policies.way import Learnt
from mixcache.trace import Trace

from .blocks import Gate
from .learnt import learnt_of, taught
from .levels import Levels
from .models import row_for
from .samplers import Treatment, name_of, treatment_of
from .sampling import Again, Sampling, in_force
from .settings import Settings

logger = logging.getLogger("mixcache")
KEY = "mixcache"
MAX_RUNS = 8
"""Runs of one node whose traces are kept for the report."""
OTHERS = {"easycache": "EasyCache", "lazycache": "LazyCache"}
"""Keys by which other caches lie in a model's options."""
COMPILE_KEY = "torch.compile"
"""That of the wrapper by which ComfyUI's own node compiles a model."""
WRAPPERS = ("OUTER_SAMPLE", "SAMPLER_SAMPLE", "PREDICT_NOISE", "CALC_COND_BATCH")
GUIDING = (
    "sampler_cfg_function",
    "sampler_post_cfg_function",
    "sampler_pre_cfg_function",
    "sampler_calc_cond_batch_function",
)
"""Options by which a node takes guidance into its own hands."""


@dataclass(slots=True)
class RunRecord:
    """What is kept of a run: no tensors."""

    trace: Trace
    num_steps: int
    sampler: str
    why_not: str | None = None
    """Why it was passed through."""
    in_full: dict[int, str] = field(default_factory=dict)
    num_corrected: int = 0
    peak_bytes: int = 0
    num_before: int = 0
    """Samplings that a wished speed-up has learnt from."""
    latents: tuple[Any, ...] | None = None
    """`fingerprint` of the latents that came of it."""


@dataclass(slots=True)
class Attachment:
    """Of one node, shared by the runs of its model."""

    settings: Settings
    granularities: tuple[str, ...]
    gate: Gate | None = None
    """Of the blocks; None where they are not looked at."""
    runs: deque[RunRecord] = field(default_factory=lambda: deque(maxlen=MAX_RUNS))

    def run_of(self, latents: Any) -> RunRecord | None:
        """The run that these latents came of, or else the newest; None before the first."""
        seen = fingerprint(latents)
        return next((run for run in reversed(self.runs) if run.latents == seen), self.runs[-1] if self.runs else None)


def fingerprint(latents: Any) -> tuple[Any, ...] | None:
    """A few numbers that tell latents apart."""
    if getattr(latents, "is_nested", False):
        latents = latents.unbind()[0]
    values = latents.detach().flatten()
    return (tuple(latents.shape), *values[:: max(1, values.numel() // 16)].float().tolist())


def attach(model: Any, settings: Settings) -> Any:
    """A clone of the model patcher that caches, or the patcher itself where its model allows nothing."""
    patcher_extension = _wrappers()
    row = row_for(model.model)
    if row.unsafe:
        logger.warning("MixCache leaves %s as it is: %s", row.name, row.unsafe)
        return model
    granularities, gate = row.granularities, None
    if settings.leaves_blocks:
        diffusion_model = model.get_model_object("diffusion_model")
        granularities, gate = (*granularities, "block"), Gate.of(diffusion_model)
        if gate is None:
            raise ValueError(
                f"leave_out={settings.leave_out!r} is not for this model ({row.name}), which has no middle blocks that "
                "can be left out: set it to whole steps, negative prompts or both"
            )
    clone = model.clone()
    options = clone.model_options.setdefault("transformer_options", {})
    options[KEY] = Attachment(settings, granularities, gate)
    functions = (outer_sample, sampler_sample, predict_noise, calc_cond_batch)
    for name, function in zip(WRAPPERS, functions, strict=True):
        kind = getattr(patcher_extension.WrappersMP, name)
        clone.remove_wrappers_with_key(kind, KEY)  # a second node takes the place of the first
        clone.add_wrapper_with_key(kind, KEY, function)
    return clone


def attachment_of(model: Any) -> Attachment | None:
    found = model.model_options.get("transformer_options", {}).get(KEY)
    return found if isinstance(found, Attachment) else None


def _wrappers() -> Any:
    """ComfyUI's module of wrappers; ValueError where it is too old to have them."""
    try:
        import comfy.patcher_extension as extension
    except ImportError:
        extension = None
    missing = [name for name in WRAPPERS if not hasattr(getattr(extension, "WrappersMP", None), name)]
    if missing:
        raise ValueError(
            f"MixCache needs a newer ComfyUI: this one has no wrappers {', '.join(missing)}; update ComfyUI, or bypass "
            "the MixCache node"
        )
    return extension


# -------------------------------------------------------------------------------------------------------- wrappers


def outer_sample(executor: Any, *args: Any, **kwargs: Any) -> Any:
    attachment = executor.class_obj.model_options["transformer_options"][KEY]
    num_before = len(attachment.runs)
    latents = executor(*args, **kwargs)
    if attachment.runs and (len(attachment.runs) > num_before or num_before == MAX_RUNS):
        attachment.runs[-1].latents = fingerprint(latents)
    return latents


def sampler_sample(
    executor: Any,
    guider: Any,
    sigmas: Any,
    extra_args: dict[str, Any],
    callback: Any,
    noise: Any,
    latent_image: Any = None,
    denoise_mask: Any = None,
    disable_pbar: bool = False,
) -> Any:
    options = extra_args["model_options"]
    attachment: Attachment = options["transformer_options"][KEY]
    sampler, rest = executor.class_obj, (latent_image, denoise_mask)
    treatment = treatment_of(sampler)
    levels = sigmas.tolist()
    record = RunRecord(Trace(num_blocks=1), len(levels) - 1, name_of(sampler))
    attachment.runs.append(record)
    record.why_not = why_passed(guider, options, treatment, record.sampler, levels, attachment.gate)
    if record.why_not is not None:
        logger.warning("MixCache passes this run through: %s", record.why_not)
        return executor(guider, sigmas, extra_args, callback, noise, *rest, disable_pbar)
    learnt = learnt_of(guider.inner_model, (record.sampler, tuple(levels)))
    record.num_before = learnt.num_generations if attachment.settings.speedup else 0
    gate = None if attachment.gate is None else attachment.gate.anew()
    sampling = begun(attachment, guider, options, levels, learnt, gate, corrects=treatment is Treatment.CORRECTED)
    record.trace = sampling.trace
    # the options are this run's own; the attachment stays in those of the model
    options["transformer_options"][KEY] = sampling
    shown, reason = Shown(callback, record.num_steps, disable_pbar), End.FAILED
    try:
        while True:
            sampling.begin()
            try:
                with nullcontext() if gate is None else gate.on(options):
                    samples = executor(guider, sigmas, dict(extra_args), shown, noise.clone(), *rest, True)
            except Again:
                continue
            reason = End.DONE
            learnt.num_generations += 1
            return samples
    finally:
        shown.close()
        sampling.end(reason)
        options["transformer_options"][KEY] = attachment
        record.in_full, record.num_corrected = sampling.in_full, sampling.num_corrected
        record.peak_bytes = sampling.peak_bytes


def predict_noise(executor: Any, x: Any, timestep: Any, model_options: Any = None, seed: Any = None) -> Any:
    sampling = (model_options or {}).get("transformer_options", {}).get(KEY)
    if not isinstance(sampling, Sampling):
        return executor(x, timestep, model_options, seed)
    return sampling.predict(lambda: executor(x, timestep, model_options, seed), x, timestep)


def calc_cond_batch(executor: Any, model: Any, conds: Any, x: Any, timestep: Any, model_options: Any) -> Any:
    sampling = model_options.get("transformer_options", {}).get(KEY)
    if not isinstance(sampling, Sampling):
        return executor(model, conds, x, timestep, model_options)
    return sampling.call(
        lambda some: executor(model, some, x, timestep, model_options),
        conds,
        x,
        timestep,
        in_force(conds, timestep.flatten()[0].cpu()),
    )


class Shown:
    """Progress and previews as they are without the cache: each step once, though the sampler may begin anew."""

    def __init__(self, callback: Any, num_steps: int, disable_pbar: bool) -> None:
        from tqdm.auto import tqdm

        self._callback, self._next = callback, 0
        self._bar = tqdm(total=num_steps, disable=disable_pbar)

    def __call__(self, step: int, denoised: Any, x: Any, num_steps: int) -> None:
        if step < self._next:
            return
        self._next = step + 1
        self._bar.update()
        if self._callback is not None:
            self._callback(step, denoised, x, num_steps)

    def close(self) -> None:
        self._bar.close()


def begun(
    attachment: Attachment,
    guider: Any,
    options: Any,
    sigmas: list[float],
    learnt: Learnt,
    gate: Gate | None,
    *,
    corrects: bool,
) -> Sampling:
    """A `Sampling` with a policy that knows how many steps there are, and what was learnt before."""
    settings, model_sampling = attachment.settings, guider.inner_model.model_sampling
    start = model_sampling.percent_to_sigma(settings.start_percent)
    end = model_sampling.percent_to_sigma(settings.end_percent)
    policy = settings.bounded(
        len(sigmas) - 1,
        corrects=corrects and settings.correct,
        num_before=sum(sigma > start for sigma in sigmas[:-1]),
        num_after=sum(sigma <= end for sigma in sigmas[:-1]),
    )
    is_guided_alike = hasattr(guider, "cfg") and not guides(options)
    return Sampling(
        taught(policy, learnt),
        Levels.of(model_sampling),
        sigmas,
        lambda: float(guider.cfg) if hasattr(guider, "cfg") else None,
        attachment.granularities,
        is_guided_alike=is_guided_alike,
        gate=gate,
    )


def why_passed(
    guider: Any, options: Any, treatment: Treatment, sampler: str, sigmas: list[float], gate: Gate | None
) -> str | None:
    """Why nothing of a run is cached; None where it is. ValueError where it cannot be right."""
    for key, name in OTHERS.items():
        if key in options["transformer_options"]:
            raise ValueError(
                f"{name} and MixCache are on one model, and each would hide calls from the other: keep one"
            )
    if treatment is Treatment.PASSED:
        return f"sampler {sampler} calls the model several times a step"
    if options.get("context_handler") is not None:
        return "a step is made of context windows, each a call of its own"
    if any(part.get("hooks") for part in conditions(guider)):
        return "hooks change the weights during the run"
    if len(sigmas) < 2 or any(after >= before for before, after in itertools.pairwise(sigmas)):
        return "the noise levels do not fall from step to step"
    return None if gate is None else why_blocks_stay(guider, options, gate)


def conditions(guider: Any) -> Iterator[Mapping[str, Any]]:
    """All parts of all prompts of a run."""
    return (part for conds in guider.conds.values() for part in conds or ())


def guides(options: Mapping[str, Any]) -> bool:
    """True where a node guides in its own way."""
    return any(options.get(name) for name in GUIDING)


def why_blocks_stay(guider: Any, options: Any, gate: Gate) -> str | None:
    """Why no blocks of a run can be left out; None where they can."""
    transformer_options = options["transformer_options"]
    replaced = transformer_options.get("patches_replace", {}).get("dit", {})
    if any(kind == gate.kind for kind, *_ in replaced) or gate.kind in transformer_options.get("patches", {}):
        return "another node replaces blocks of the model, or adds to them"
    if guides(options):
        return "a node that guides may run the blocks in its own way"
    if getattr(guider, "uncond_model_patcher", None) is not None:
        return "the negative prompt has a model of its own"
    if any(part.get("control") is not None for part in conditions(guider)):
        return "a control adds to the blocks"
    if COMPILE_KEY in transformer_options.get("wrappers", {}).get("apply_model", {}):
        return "the model is compiled as a whole, and blocks of one graph cannot be left out"
    if "multigpu_clones" in options:
        return "the model runs on several devices"
    return None
