"""First weights of a student's denoiser, copied from its teacher."""

from __future__ import annotations

from functools import singledispatch

import torch
from diffusers import CogVideoXTransformer3DModel, HunyuanVideoTransformer3DModel, WanTransformer3DModel

from counterparts import Plan, Words
from warm_start_cogvideox import copy_to_cogvideox
from warm_start_hunyuan import copy_to_hunyuan


@singledispatch
def copy_teacher(
    student: torch.nn.Module, teacher: WanTransformer3DModel, plan: Plan, sigmas: torch.Tensor, words: Words
) -> None:
    """Sets the student's first weights; `sigmas` are the teacher's noise levels at the student's 1,000 timesteps."""
    raise TypeError(f"no counterparts of the teacher's weights are known in {type(student).__name__}")


copy_teacher.register(HunyuanVideoTransformer3DModel, copy_to_hunyuan)
copy_teacher.register(CogVideoXTransformer3DModel, copy_to_cogvideox)
