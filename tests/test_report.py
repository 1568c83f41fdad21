"""The report: videos that play, differences that add up, a page that needs nothing from outside."""

from __future__ import annotations

import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mixcache.report import (
    ClipPair,
    amplified_difference,
    figures,
    filmstrip,
    side_by_side,
    table,
    timeline,
    write_html,
    write_mp4,
)

GRANULARITIES = ["compute", "compute", "step", "cfg", "compute", "block", "step", "compute"]


def clip(num_frames: int = 5, height: int = 12, width: int = 10, level: float = 0.5) -> np.ndarray:
    return np.full((num_frames, height, width, 3), level, dtype=np.float32)


def trace() -> list[dict[str, Any]]:
    return [
        {
            "step": index,
            "sigma": 1.0 - index / 8,
            "granularity": granularity,
            "predictor": "line",
            "reason": "cadence",
            "deviation": 0.5 / 4**index if granularity == "compute" and index else None,
            "non_finite": 0,
            "calls": [{"branch": "cond", "computed": granularity != "step"}],
        }
        for index, granularity in enumerate(GRANULARITIES)
    ]


def report(**changes: Any) -> dict[str, Any]:
    common = {"seconds_plain": 2.0, "seconds_cached": 1.0, "speedup": 2.0, "trace": trace()}
    clips = [
        {"caption": "a <b>bold</b> circle & more", "seed": 1, "psnr_db": 40.06, "ssim": 0.98765, **common}
        | {"side_by_side": "clip-0.mp4"},
        {"caption": 'a "quoted" square', "seed": 2, "psnr_db": None, "ssim": 1.0, **common}
        | {"side_by_side": "../secret.mp4"},
    ]
    return {
        "format": 1,
        "model": "built-in",
        "policy": "hindsight",
        "settings": {"max_age": 4, "warmup": None, "script": "<script>"},
        "num_inference_steps": 8,
        "guidance_scale": 5.0,
        "seed": 1,
        "size": [10, 12],
        "num_frames": 5,
        "speedup": 1.967,
        "psnr_db": 40.06,
        "ssim": 0.98765,
        "granularity_counts": {"compute": 8, "block": 2, "cfg": 2, "step": 4},
        "peak_memory_bytes": 3 * 2**20,
        "cache_peak_bytes": 512,
        "interrupted": False,
        "versions": {"torch": "2.8.0"},
        "machine": {"cores": 2},
        "clips": clips,
    } | changes


class Page(HTMLParser):
    """What the tests ask of a page: its tags with their attributes, and its text."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(path.read_text(encoding="utf-8"))
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in {"meta", "img", "br"}:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.text += data

    def with_class(self, name: str) -> list[dict[str, str | None]]:
        return [attributes for _, attributes in self.tags if name in (attributes.get("class") or "").split()]


def written(tmp_path: Path, content: dict[str, Any]) -> Page:
    pairs = [
        ClipPair(plain=clip(), cached=clip(level=0.5 + 0.05 * (1 - index))) for index in range(len(content["clips"]))
    ]
    write_html(content, pairs, tmp_path / "report.html")
    return Page(tmp_path / "report.html")


def decoded(path: Path, width: int, height: int) -> tuple[np.ndarray, str]:
    """The frames of a video and what ffmpeg tells of it."""
    import imageio_ffmpeg

    arguments = [
        imageio_ffmpeg.get_ffmpeg_exe(),
        "-hide_banner",
        "-i",
        path,
        "-f",
        "rawvideo",
        "-pix_fmt",
        "rgb24",
        "-",
    ]
    done = subprocess.run(arguments, capture_output=True, check=True)
    return np.frombuffer(done.stdout, dtype=np.uint8).reshape(-1, height, width, 3), done.stderr.decode()


@pytest.mark.parametrize(
    ("height", "width", "scale", "size"), [(64, 64, 1, (64, 64)), (15, 21, 1, (22, 16)), (8, 9, 3, (28, 24))]
)
def test_mp4_is_read_back_with_its_frames_and_size(
    tmp_path: Path, height: int, width: int, scale: int, size: tuple[int, int], capfd: pytest.CaptureFixture[str]
) -> None:
    original = clip(7, height, width, 0.25)
    original[3:] = 0.75
    write_mp4(original, tmp_path / "clip.mp4", fps=8, scale=scale)
    assert capfd.readouterr() == ("", "")
    frames, told = decoded(tmp_path / "clip.mp4", *size)
    assert len(frames) == 7
    assert [float(frame.mean()) / 255 for frame in (frames[0], frames[6])] == pytest.approx([0.25, 0.75], abs=0.02)
    for expected in ("Video: h264", "yuv420p", f"{size[0]}x{size[1]}", "8 fps"):
        assert expected in told


@pytest.mark.parametrize(
    ("changes", "message"), [({"fps": 0}, "fps must be at least 1, got 0"), ({"scale": 0}, "scale must be")]
)
def test_mp4_refuses_what_it_cannot_write(tmp_path: Path, changes: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        write_mp4(clip(), tmp_path / "clip.mp4", **changes)
    with pytest.raises(ValueError, match=r"got shape \(5, 12, 10\)"):
        write_mp4(clip()[..., 0], tmp_path / "clip.mp4")


def test_side_by_side_joins_left_to_right_with_a_light_gap() -> None:
    joined = side_by_side([clip(level=0.1), clip(level=0.2), clip(level=0.3)], gap=4)
    assert joined.shape == (5, 12, 3 * 10 + 2 * 4, 3)
    assert joined[2, 5, [0, 9, 10, 13, 14, 28, 37], 0] == pytest.approx([0.1, 0.1, 0.92, 0.92, 0.2, 0.3, 0.3])
    assert side_by_side([clip()], gap=4).shape == (5, 12, 10, 3)
    with pytest.raises(ValueError, match="must have one shape"):
        side_by_side([clip(), clip(width=11)])
    with pytest.raises(ValueError, match="at least one"):
        side_by_side([])


def test_difference_is_absolute_amplified_and_clipped() -> None:
    a, b = clip(level=0.5), clip(level=0.5)
    b[0], b[1] = 0.45, 0.9
    difference = amplified_difference(a, b)
    assert difference[:3, 0, 0, 0] == pytest.approx([0.4, 1.0, 0.0], abs=1e-6)
    assert amplified_difference(b, a, gain=2)[:3, 0, 0, 0] == pytest.approx([0.1, 0.8, 0.0], abs=1e-6)
    with pytest.raises(ValueError, match="one shape"):
        amplified_difference(a, b[:2])


def test_a_pair_has_one_shape() -> None:
    with pytest.raises(ValueError, match="one shape"):
        ClipPair(plain=clip(), cached=clip(4))


def test_frames_are_spread_from_first_to_last_and_large_ones_reduced() -> None:
    assert filmstrip.spread(17) == (0, 3, 6, 10, 13, 16)
    assert filmstrip.spread(3) == (0, 1, 2)
    large = filmstrip.film(ClipPair(plain=clip(2, 200, 400), cached=clip(2, 200, 400)))
    assert not large.pixelated
    assert [strip.label for strip in large.strips] == ["Plain", "Cached", "Difference ×8"]
    assert all(uri.startswith("data:image/jpeg;base64,") for strip in large.strips for uri in strip.uris)


def test_page_escapes_captions_and_settings(tmp_path: Path) -> None:
    page = written(tmp_path, report())
    source = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "a &lt;b&gt;bold&lt;/b&gt; circle &amp; more" in source
    assert "<b>bold" not in source
    assert "<script>" not in source
    for content in report()["clips"]:
        assert page.text.count(content["caption"]) == 2
    assert page.open == []


def test_page_has_one_cell_per_step_and_a_curve_per_clip(tmp_path: Path) -> None:
    page = written(tmp_path, report())
    assert [cell["class"] for cell in page.with_class("cell")] == [f"cell {name}" for name in GRANULARITIES * 2]
    assert page.with_class("cell")[4]["title"] == (
        "step 4 · sigma 0.500 · compute · line · cadence · deviation 0.00195"
    )
    assert len(page.with_class("curve")) == 2
    assert page.text.count("Measured deviation over the step") == 2


def test_page_asks_nothing_from_outside_and_embeds_only_videos_beside_it(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    (tmp_path / "secret.mp4").write_bytes(b"secret")
    (folder / "clip-0.mp4").write_bytes(b"video")
    page = written(folder, report())
    sources = [
        value for _, attributes in page.tags for name, value in attributes.items() if name in {"src", "href", "srcset"}
    ]
    assert len(sources) == 2 * (3 * 5 + 1) + 1  # of each clip three strips of five frames and a curve; a film
    assert all(source is not None and source.startswith("data:") for source in sources)
    assert [attributes["src"] for tag, attributes in page.tags if tag == "video"] == ["data:video/mp4;base64,dmlkZW8="]
    assert not {"link", "script", "iframe"} & {tag for tag, _ in page.tags}
    assert "http" not in (folder / "report.html").read_text(encoding="utf-8").replace("http-equiv", "")


def test_page_tells_an_interruption_only_when_there_was_one(tmp_path: Path) -> None:
    assert not written(tmp_path, report()).with_class("banner")
    page = written(tmp_path, report(interrupted=True))
    assert len(page.with_class("banner")) == 1
    assert "This run was interrupted. The report holds the 2 clips finished" in " ".join(page.text.split())
    assert "holds no clips" in " ".join(written(tmp_path, report(interrupted=True, clips=[])).text.split())


def test_page_shows_figures_and_what_is_missing(tmp_path: Path) -> None:
    text = written(tmp_path, report()).text
    for expected in (
        "1.97×",
        "40.1\N{NO-BREAK SPACE}dB",
        "0.9877",
        "identical",
        "3.00\N{NO-BREAK SPACE}MiB",
    ):
        assert expected in text
    empty = written(tmp_path, report(clips=[], speedup=None, psnr_db=None, ssim=None))
    assert "holds no clips" in empty.text
    assert [name for name in ("1.97×", "dB", "None") if name in empty.text] == []
    assert written(tmp_path, {"clips": []}).with_class("headline")


def test_page_needs_pixels_for_every_clip(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="tells of 2 clips, but the pixels of 0 were given"):
        write_html(report(), [], tmp_path / "report.html")


def test_curve_goes_through_what_was_measured_and_changes_to_a_logarithmic_axis_for_wide_ranges() -> None:
    steps = [{"step": index, "deviation": value} for index, value in enumerate([None, 0.02, float("nan"), 0.01])]
    (linear,) = timeline.curve(steps).axes
    assert [tuple(point) for point in linear.lines[0].get_xydata()] == [(1, 0.02), (3, 0.01)]
    assert (linear.get_xlim(), linear.get_ylim()[0], linear.get_yscale()) == ((-0.5, 3.5), 0.0, "linear")
    wide = [{"step": 0, "deviation": 1.0}, {"step": 1, "deviation": 0.001}, {"step": 2, "deviation": 0.0}]
    assert timeline.curve(wide).axes[0].get_yscale() == "log"


def test_without_a_deviation_the_steps_have_their_numbers_alone(tmp_path: Path) -> None:
    unmeasured = [entry | {"deviation": None} for entry in trace()]
    (axes,) = timeline.curve(unmeasured).axes
    assert not axes.lines
    assert axes.get_xlim() == (-0.5, 7.5)
    page = written(tmp_path, report(clips=[clip | {"trace": unmeasured} for clip in report()["clips"]]))
    assert len(page.with_class("curve")) == 2
    assert "Measured deviation over the step" not in page.text
    assert "None was measured here." in page.text


def test_a_granularity_without_a_colour_is_an_error() -> None:
    with pytest.raises(ValueError, match="unknown granularity 'frame' at step 3; there are compute, cfg, block, step"):
        timeline.cells([{"step": 3, "granularity": "frame"}])


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1.967, "1.97"),
        (40.06, "40.1"),
        (99.96, "100"),
        (1234.6, "1235"),
        (0.0, "0"),
        (-0.5, "-0.500"),
        (1.5e-6, "1.5e-06"),
    ],
)
def test_numbers_get_three_digits(value: float, text: str) -> None:
    assert figures.significant(value) == text


def test_markdown_table_to_the_letter() -> None:
    rows = [
        {"policy": "hindsight", "speedup": 1.9668, "psnr_db": None, "done": True},
        {"policy": "a|b\nc", "speedup": 2, "psnr_db": 40.06, "note": "only here"},
    ]
    assert table(rows) == (
        "| policy | speedup | psnr_db | done | note |\n"
        "| --- | ---: | ---: | --- | --- |\n"
        "| hindsight | 1.97 | – | yes | – |\n"
        "| a\\|b c | 2 | 40.1 | – | only here |"
    )
    assert table(rows, ["speedup"]) == "| speedup |\n| ---: |\n| 1.97 |\n| 2 |"
    assert table([], ["speedup"]) == "| speedup |\n| --- |"
    assert table([]) == ""


def test_importing_the_report_loads_nothing_heavy() -> None:
    heavy = {"torch", "matplotlib", "imageio", "jinja2", "PIL"}
    code = f"import sys, mixcache.report; print(sorted({heavy} & set(sys.modules)))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_a_template_that_is_given_too_little_is_an_error() -> None:
    from jinja2 import UndefinedError

    from mixcache.report.template import rendered

    with pytest.raises(UndefinedError, match="is undefined"):
        rendered("results.html.j2")
