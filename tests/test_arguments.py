"""What a pipeline's call takes, by its own names, and what is said where it lacks something."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mixcache.arguments import (
    accepted_arguments,
    call_arguments,
    check_call,
    read_image,
    read_video,
    told_arguments,
)
from mixcache.generation import generate


def test_accepted_arguments_drops_what_the_call_does_not_take(pipeline: Any) -> None:
    asked = {"height": 16, "width": None, "no_such_argument": 1}
    assert accepted_arguments(pipeline, asked) == {"height": 16}


def test_a_picture_is_told_by_its_pixels() -> None:
    from conformance.wan import film, picture

    told = told_arguments({"image": picture(0), "video": film(0), "height": 16})
    assert told == told_arguments({"image": picture(0), "video": film(0), "height": 16})
    other = told_arguments({"image": picture(1), "video": film(1), "height": 16})
    assert (told["image"] != other["image"], told["video"] != other["video"]) == (True, True)
    assert json.loads(json.dumps(told)) == told
    assert told["height"] == 16


class Sana:
    """A pipeline that calls the number of frames by another name."""

    def __call__(self, image: Any, prompt: Any = None, frames: int = 81, guidance_scale: float = 6.0) -> None:
        pass


def test_an_argument_has_the_name_that_the_pipeline_knows() -> None:
    assert accepted_arguments(Sana(), {"num_frames": 9, "height": 4}) == {"frames": 9}
    asked = {"image": "one", "num_frames": 9}
    assert call_arguments(Sana(), {"guidance_scale": 5.0, "height": 4}, asked) == {
        "guidance_scale": 5.0,
        "image": "one",
        "frames": 9,
    }


def test_the_size_of_a_picture_is_enough_where_the_pipeline_takes_none() -> None:
    assert call_arguments(Sana(), {}, {"image": "one", "height": 4, "width": 4}) == {"image": "one"}


def test_arguments_that_the_pipeline_lacks_or_does_not_take(pipeline: Any) -> None:
    with pytest.raises(ValueError, match=r"^Sana needs an image and none was given; give image=, or --image on the"):
        check_call(Sana(), {"frames": 4})
    with pytest.raises(ValueError, match=r"^Sana takes no num_inference_steps \(--steps\); leave it out$"):
        call_arguments(Sana(), {}, {"num_inference_steps": 4, "image": "one"})
    with pytest.raises(ValueError, match=r"^WanPipeline takes no image \(--image\); leave it out$"):
        generate(pipeline, "a circle", seed=0, image="one", height=16, width=16)
    with pytest.raises(TypeError, match=r"^function is not called with a prompt"):
        check_call(lambda image: None, {})


def test_pictures_and_films_are_read_at_a_size(tmp_path: Path) -> None:
    from conformance.wan import film, picture

    from mixcache.report.video import write_mp4

    picture(0, 20, 30).convert("L").save(tmp_path / "grey.png")
    assert read_image(tmp_path / "grey.png").size == (30, 20)
    assert read_image(tmp_path / "grey.png", (8, 16)).size == (8, 16)
    assert read_image(tmp_path / "grey.png").mode == "RGB"
    write_mp4(np.stack([np.asarray(frame) for frame in film(0, 7)]) / 255, tmp_path / "film.mp4")
    assert len(read_video(tmp_path / "film.mp4")) == 7
    assert [frame.size for frame in read_video(tmp_path / "film.mp4", (8, 16), 3)] == [(8, 16)] * 3
