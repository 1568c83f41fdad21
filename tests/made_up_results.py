"""Made-up records and results, so that what follows from them is arithmetic."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest

from mixcache.bench.methods import PLAIN, Method, fewer_steps, policy_method
from mixcache.bench.records import Record
from mixcache.bench.results import assemble

HINDSIGHT = policy_method("hindsight", error=0.01)
CALIBRATED = replace(policy_method("hold", speedup=2.0), is_calibrated=True)
PEER = Method(family="first-block-cache", setting="threshold 0.1", origin="diffusers 0.42", is_peer=True)
COPIED = Method(family="copied", origin="re-implementation of arXiv 0000.00000", is_peer=True)
FEWER = (fewer_steps(33), fewer_steps(16))

CASE = {
    "command": "mixcache bench --methods all",
    "model": "shapes-wan",
    "weights": "00ff",
    "arguments": {"num_inference_steps": 50, "guidance_scale": 5.0, "width": 64, "height": 64, "num_frames": 17},
    "scheduler": "UniPCMultistepScheduler",
    "seed": 9000,
    "prompts": ["p"],
    "calibration_prompts": ["q", "r"],
    "num_repeats": 1,
    "versions": {"torch": "2.8"},
    "machine": {"threads": "1"},
}


def build_record(method: Method, speedup: float = 2.0, psnr_db: float | None = 30.0, **other: Any) -> Record:
    """12 seconds plain; half of the work, which no overhead adds to."""
    fields: dict[str, Any] = {
        "prompt": "p",
        "seed": 9000,
        "denoising_seconds": 12 / speedup,
        "ideal_speedup": speedup,
        "ssim": 0.9,
        "cache_peak_bytes": 2048,
        "granularity_counts": {"compute": 25, "step": 25},
        "encoding_seconds": 0.25,
        "decoding_seconds": 0.5,
        "schedule": "##s#",
        "work": "##.#",
    }
    return Record(method=method.name, speedup=speedup, psnr_db=psnr_db, **fields | other)


def build_result(
    methods: Sequence[Method],
    records: Sequence[Record],
    *,
    failures: Mapping[str, str] | None = None,
    added: Mapping[str, int] | None = None,
    **case: Any,
) -> dict[str, Any]:
    """As `mixcache bench` writes it; a plain clip is put before the records. Both mappings are by method name."""
    survey = {
        method.name: {
            "failure": (failures or {}).get(method.name),
            "memory_added_bytes": (added or {}).get(method.name),
        }
        for method in methods
    }
    plain = [build_record(PLAIN, 1.0, None, granularity_counts={}, cache_peak_bytes=None, schedule="", work="####")]
    floor = {"2 instead of 1 threads": None, "bfloat16 autocast instead of float32": 52.25}
    return assemble(CASE | case, methods, survey, [*plain, *records], floor, [[10.0, 11.0]])


@pytest.fixture
def make_record() -> Callable[..., Record]:
    return build_record


@pytest.fixture
def make_result() -> Callable[..., dict[str, Any]]:
    return build_result


@pytest.fixture
def made_up() -> dict[str, Method]:
    """One method of each kind, by the kind."""
    kinds = {"ours": HINDSIGHT, "calibrated": CALIBRATED, "peer": PEER, "copied": COPIED}
    return kinds | {"more steps": FEWER[0], "fewer steps": FEWER[1]}
