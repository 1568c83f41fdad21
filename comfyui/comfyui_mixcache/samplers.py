"""SAMPLERS: how each sampler of ComfyUI is treated, by its function's name. docs/comfyui.md has the measurement."""

from __future__ import annotations

from enum import Enum
from typing import Any


class Treatment(str, Enum):
    """What may be done under a sampler."""

    CORRECTED = "corrected"
    """One call a step, and what it does follows from the model's outputs: cached steps are taken again."""
    CACHED = "cached"
    """One call a step; correcting brought nothing, or noise is added that makes every step new."""
    PASSED = "passed through"
    """Several calls a step, at noise levels of its own."""


_CORRECTED = "euler"
_CACHED = (
    "dpmpp_2m res_multistep gradient_estimation unipc unipc_bh2 lms ipndm ipndm_v deis euler_ancestral dpmpp_2m_sde "
    "dpmpp_2m_sde_gpu dpmpp_2m_sde_heun dpmpp_2m_sde_heun_gpu dpmpp_3m_sde dpmpp_3m_sde_gpu ddpm lcm "
    "res_multistep_ancestral er_sde sa_solver euler_cfg_pp euler_ancestral_cfg_pp dpmpp_2m_cfg_pp "
    "res_multistep_cfg_pp res_multistep_ancestral_cfg_pp gradient_estimation_cfg_pp"
)
_PASSED = (
    "heun heunpp2 exp_heun_2_x0 exp_heun_2_x0_sde dpm_2 dpm_2_ancestral dpm_fast dpm_adaptive dpmpp_2s_ancestral "
    "dpmpp_2s_ancestral_cfg_pp dpmpp_sde dpmpp_sde_gpu seeds_2 seeds_3 sa_solver_pece ar_video"
)
SAMPLERS: dict[str, Treatment] = {
    name: treatment
    for names, treatment in (
        (_CORRECTED, Treatment.CORRECTED),
        (_CACHED, Treatment.CACHED),
        (_PASSED, Treatment.PASSED),
    )
    for name in names.split()
}
NAMES = {"unipc": "uni_pc", "unipc_bh2": "uni_pc_bh2"}
"""Names that users see, where the function has another."""
NOISE = ("s_churn",)
"""Options of corrected samplers that let them add noise where they are over 0."""


def name_of(sampler: Any) -> str:
    """The name of a sampler object's function, without what all have in common."""
    function = getattr(sampler, "sampler_function", sampler)
    name = getattr(function, "__name__", type(function).__name__)
    return name.removeprefix("sample_").removesuffix("_function")


def treatment_of(sampler: Any) -> Treatment:
    """How a sampler object is treated; ValueError names those that are known."""
    name = name_of(sampler)
    if name not in SAMPLERS:
        known = ", ".join(
            NAMES.get(known, known) for known, treatment in SAMPLERS.items() if treatment is not Treatment.PASSED
        )
        raise ValueError(
            f"MixCache does not know the sampler {name!r}: bypass the MixCache node, or sample with one of these: "
            f"{known}"
        )
    treatment = SAMPLERS[name]
    options = getattr(sampler, "extra_options", None) or {}
    if treatment is Treatment.CORRECTED and any(options.get(option, 0) for option in NOISE):
        return Treatment.CACHED
    return treatment
