"""One clip: its loop timed apart, its steps told, its pipeline left as it was."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mixcache.generation import final_latents, generate, loop_seconds, open_model, watched_loop

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


class Answers:
    """A pipeline that gives the same whatever it is asked for."""

    _execution_device = torch.device("cpu")

    def __init__(self, **fields: Any) -> None:
        self.fields = fields

    def __call__(self, prompt: Any = None, generator: Any = None, output_type: str = "np") -> dict[str, Any]:
        return self.fields


def test_a_loop_alone_is_timed_and_nothing_is_decoded(pipeline: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[tuple[int, int]] = []

    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("decoded")

    monkeypatch.setattr(pipeline.vae, "decode", never)

    def on_step(done: int, total: int) -> None:
        told.append((done, total))

    assert loop_seconds(pipeline, "a circle", seed=0, on_step=on_step, **ARGUMENTS) > 0
    assert told == [(done, 4) for done in range(5)]


def test_what_a_pipeline_gives_under_other_names() -> None:
    frames = np.zeros((5, 4, 4, 3))
    assert generate(Answers(video=frames), "", seed=0).clip.shape == (5, 4, 4, 3)
    assert generate(Answers(frames=frames[None]), "", seed=0).clip.shape == (5, 4, 4, 3)
    parts = [torch.ones(1, 2), torch.ones(1, 3)]
    assert final_latents(Answers(frames=parts), "", seed=0).shape == (5,)
    assert final_latents(Answers(video=parts[0], sound=parts[1]), "", seed=0).shape == (5,)
    assert final_latents(Answers(frames=parts[0], latent=parts[1]), "", seed=0).shape == (1, 2)


def test_a_pipeline_that_gives_no_latents_or_no_video() -> None:
    with pytest.raises(TypeError, match=r'^Answers gives no latents for output_type="latent"$'):
        final_latents(Answers(frames=np.zeros((1, 5, 4, 4, 3))), "", seed=0)
    for answers in (Answers(), Answers(text="a circle"), Answers(frames=np.zeros(3))):
        with pytest.raises(TypeError, match=r"^Answers gives no video; mixcache takes a diffusers video pipeline$"):
            generate(answers, "", seed=0)


def test_a_loop_that_walks_through_its_progress_bar_or_closes_it(pipeline: Any) -> None:
    told: list[tuple[int, int]] = []
    with watched_loop(pipeline, lambda done, total: told.append((done, total))) as clock:
        assert list(pipeline.progress_bar([5, 6])) == [5, 6]
        first_ended, first_seconds = clock.ended, clock.seconds
        bar = pipeline.progress_bar(total=1)
        bar.update()
        bar.close()
    assert told == [(0, 2), (1, 2), (2, 2), (0, 1), (1, 1)]
    assert first_ended is not None
    assert clock.ended is not None
    assert clock.ended > first_ended
    assert clock.seconds > first_seconds > 0


@pytest.mark.parametrize(("dtype", "expected"), [(None, torch.float32), ("bfloat16", torch.bfloat16)])
def test_the_vae_of_wan_stays_float32(tmp_path: Path, pipeline: Any, dtype: str | None, expected: torch.dtype) -> None:
    pipeline.save_pretrained(tmp_path)
    for name in (str(tmp_path), "shapes-wan"):
        opened, _ = open_model(name, dtype=dtype, device="cpu")
        assert opened.transformer.proj_out.weight.dtype is expected
        assert opened.text_encoder.dtype is expected
        assert opened.vae.dtype is torch.float32
    opened, arguments = open_model("shapes-hunyuan", dtype=dtype)
    assert opened.vae.dtype is expected
    assert arguments["num_inference_steps"] == 50


def test_a_clip_is_made_in_bfloat16(tmp_path: Path, pipeline: Any) -> None:
    pipeline.save_pretrained(tmp_path)
    opened, _ = open_model(str(tmp_path), dtype="bfloat16")
    assert np.isfinite(generate(opened, "a circle", seed=0, **ARGUMENTS).clip).all()
