"""One clip: its loop timed apart, its steps told, its pipeline left as it was."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from mixcache.generation import accepted_arguments, generate, watched_loop

ARGUMENTS = {
    "height": 16,
    "width": 16,
    "num_frames": 5,
    "num_inference_steps": 4,
    "guidance_scale": 5.0,
    "max_sequence_length": 24,
}


def test_generate_gives_a_clip_and_tells_every_step(pipeline: Any) -> None:
    told: list[tuple[int, int]] = []
    made = generate(pipeline, "a circle", seed=3, on_step=lambda done, total: told.append((done, total)), **ARGUMENTS)
    assert made.clip.shape == (5, 16, 16, 3)
    assert made.clip.dtype == np.float32
    assert 0 <= made.clip.min() <= made.clip.max() <= 1
    assert told == [(0, 4), (1, 4), (2, 4), (3, 4), (4, 4)]
    parts = (made.encoding_seconds, made.denoising_seconds, made.decoding_seconds)
    assert min(parts) > 0
    assert sum(parts) <= made.total_seconds
    assert made.peak_memory_bytes > 2**20
    again = generate(pipeline, "a circle", seed=3, **ARGUMENTS)
    assert np.array_equal(again.clip, made.clip)
    other = generate(pipeline, "a circle", seed=4, **ARGUMENTS)
    assert not np.array_equal(other.clip, made.clip)


def test_the_pipeline_gets_its_own_progress_bar_back(pipeline: Any) -> None:
    with watched_loop(pipeline):
        assert "progress_bar" in vars(pipeline)
    assert "progress_bar" not in vars(pipeline)


def test_the_pipeline_gets_it_back_after_an_error(pipeline: Any) -> None:
    def fails(*_: Any) -> None:
        raise RuntimeError("half way")

    with pytest.raises(RuntimeError, match="half way"):
        generate(pipeline, "a circle", seed=3, on_step=fails, **ARGUMENTS)
    assert "progress_bar" not in vars(pipeline)


def test_accepted_arguments_drops_what_the_call_does_not_take(pipeline: Any) -> None:
    asked = {"height": 16, "width": None, "no_such_argument": 1}
    assert accepted_arguments(pipeline, asked) == {"height": 16}
