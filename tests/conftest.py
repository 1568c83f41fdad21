"""A real WanPipeline, tiny, built from config in well under a second; nothing is downloaded."""

from __future__ import annotations

import gc
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import hypothesis
import pytest

hypothesis.settings.register_profile("any machine", deadline=None)
hypothesis.settings.load_profile("any machine")


def pytest_collection_finish() -> None:
    """What imports have made stays; a full collection that looks at it again takes a third of a second each time."""
    gc.collect()
    gc.freeze()


NUM_LAYERS = 4
PROMPT = "a small red circle moving left"
OTHER_PROMPT = "a big blue square moving right"


def build_pipeline(scheduler: str = "unipc", dtype: str = "float32", seed: int = 0) -> Any:
    """The same weights for the same seed; 4 blocks of width 24; latents of 4 channels."""
    import torch
    from diffusers import (
        AutoencoderKLWan,
        FlowMatchEulerDiscreteScheduler,
        UniPCMultistepScheduler,
        WanPipeline,
        WanTransformer3DModel,
    )
    from transformers import UMT5Config, UMT5EncoderModel

    from training.tokenizer import build_tokenizer

    torch.set_num_threads(1)
    torch.manual_seed(seed)
    tokenizer = build_tokenizer()
    transformer = WanTransformer3DModel(
        patch_size=(1, 2, 2),
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=4,
        out_channels=4,
        text_dim=16,
        freq_dim=16,
        ffn_dim=32,
        num_layers=NUM_LAYERS,
    )
    vae = AutoencoderKLWan(
        base_dim=3,
        z_dim=4,
        dim_mult=[1, 1, 1, 1],
        num_res_blocks=1,
        temperal_downsample=[False, True, True],
        latents_mean=[0.0] * 4,
        latents_std=[1.0] * 4,
    )
    text_config = UMT5Config(vocab_size=len(tokenizer), d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    schedulers = {
        "unipc": lambda: UniPCMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
        ),
        "euler": lambda: FlowMatchEulerDiscreteScheduler(shift=3.0),
    }
    pipeline = WanPipeline(
        tokenizer=tokenizer,
        text_encoder=UMT5EncoderModel(text_config).eval(),
        vae=vae.eval(),
        transformer=transformer.eval().to(getattr(torch, dtype)),
        scheduler=schedulers[scheduler](),
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def run_pipeline(pipeline: Any, prompt: str | list[str] = PROMPT, num_steps: int = 12, **arguments: Any) -> Any:
    """Latents of shape (videos, 4, 2, 2, 2) for 5 frames of 16 x 16, from seed 0."""
    import torch

    settings: dict[str, Any] = {
        "height": 16,
        "width": 16,
        "num_frames": 5,
        "guidance_scale": 5.0,
        "max_sequence_length": 24,
        "output_type": "latent",
    }
    generator = torch.Generator().manual_seed(0)
    return pipeline(prompt, num_inference_steps=num_steps, generator=generator, **settings | arguments).frames


@dataclass
class Work:
    """What ran inside the transformer, counted from inside it."""

    num_calls: int = 0
    num_blocks: int = 0


PATCHES = re.compile("patch_embed(ding)?|x_embedder")
ATTENTION = re.compile(r"((single_)?transformer_)?blocks\.\d+\.attn1?")


@contextmanager
def counted_work(transformer: Any) -> Iterator[Work]:
    """Counts forwards of the patch embedding (one a call) and of the self-attentions (one a block)."""
    work = Work()

    def count_call(*_: Any) -> None:
        work.num_calls += 1

    def count_block(*_: Any) -> None:
        work.num_blocks += 1

    counts = [(PATCHES, count_call), (ATTENTION, count_block)]
    modules = list(transformer.named_modules())
    handles = [m.register_forward_hook(count) for kind, count in counts for name, m in modules if kind.fullmatch(name)]
    try:
        yield work
    finally:
        for handle in handles:
            handle.remove()


@pytest.fixture(scope="session")
def make_pipeline() -> Callable[..., Any]:
    return build_pipeline


@pytest.fixture
def pipeline() -> Any:
    return build_pipeline()


@pytest.fixture(scope="session")
def generate() -> Callable[..., Any]:
    return run_pipeline


@pytest.fixture
def counted() -> Callable[..., Any]:
    return counted_work


@pytest.fixture
def steady_times(monkeypatch: pytest.MonkeyPatch) -> None:
    """A cached step takes a fiftieth of a computed one, as in a large model, whatever else the machine is doing."""
    from mixcache.core.step_times import StepTimes
    from mixcache.decision import Granularity

    times = {Granularity.COMPUTE: 1.0, Granularity.STEP: 0.02}
    monkeypatch.setattr(StepTimes, "medians", lambda self: times)
