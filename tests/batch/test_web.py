"""The page: what it does without a browser, and in one. Skipped where Gradio is not installed."""

from __future__ import annotations

import importlib.util
import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from chrome import CHROMIUM, MISSING, Chrome
from typer.testing import CliRunner

from mixcache import cli
from mixcache.web import page
from mixcache.web.studio import Comparison, Stopped, Studio, Wish

CAPTION = "a large red circle moving left on a plain white background"
HAS_GRADIO = importlib.util.find_spec("gradio") is not None
needs_gradio = pytest.mark.skipif(not HAS_GRADIO, reason="Gradio is not installed: pip install 'mixcache[web]'")
runner = CliRunner()


def wish(**values: Any) -> Wish:
    return Wish(**{"prompt": CAPTION, "seed": 1, "num_steps": 8} | values)


@pytest.fixture(scope="module")
def studio(tmp_path_factory: pytest.TempPathFactory) -> Studio:
    made = Studio("shapes-wan", tmp_path_factory.mktemp("films"))
    made.defaults |= {"height": 32, "width": 32, "num_frames": 5}
    return made


def stages(studio: Studio, asked: Wish) -> tuple[Comparison, list[str]]:
    """What came of it, and what was made for it."""
    seen: dict[str, int] = {}
    found = studio.compare(asked, "visitor", lambda stage, done, total: seen.update({stage: done}))
    return found, list(seen)


@pytest.mark.usefixtures("steady_times")
def test_the_plain_clip_is_kept_for_its_seed(studio: Studio) -> None:
    first, made = stages(studio, wish(num_steps=20, speedup=2.0))
    assert made == ["warm-up", "plain", "cached"]
    second, made = stages(studio, wish(num_steps=20, quality="fast"))
    assert made == ["cached"]
    assert second.plain == first.plain
    assert second.plain_seconds == first.plain_seconds
    _, made = stages(studio, wish(seed=2, num_steps=20))
    assert made == ["plain", "cached"]
    assert first.plain != first.cached
    assert first.saving > 0
    assert first.loop_speedup is not None
    assert f"{first.loop_speedup:.2f}x by the times of the cached clip's own steps, 2x wished" in page.told(first)
    assert [page.row(one)[3] for one in (first, second)] == ["2x", "fast"]
    assert all(film.read_bytes()[4:8] == b"ftyp" for film in (first.plain, first.cached, first.difference))
    assert len(first.trace) == 20
    assert page.timeline(first).count("<span title=") == 20
    assert f"**{first.speedup:.2f}x** faster" in page.told(first)


def test_long_work_can_be_stopped_by_who_began_it(studio: Studio) -> None:
    def stop_at_three(stage: str, done: int, total: int) -> None:
        if done == 3:
            studio.stop("another")
            studio.stop("visitor")
        assert done <= 3

    with pytest.raises(Stopped):
        studio.compare(wish(seed=3), "visitor", stop_at_three)
    found, made = stages(studio, wish(seed=3))
    assert made == ["plain", "cached"]
    assert found.wish.seed == 3


def test_what_was_stopped_does_not_go_on_when_the_next_begins(studio: Studio) -> None:
    made: list[list[str]] = []
    second = threading.Thread(target=lambda: made.append(stages(studio, wish(seed=6))[1]))

    def stop_and_begin_again(stage: str, done: int, total: int) -> None:
        assert done <= 2
        if done == 2:
            of_first = studio._ends["visitor"]
            studio.stop("visitor")
            second.start()
            while studio._ends["visitor"] is of_first:
                time.sleep(0.01)

    with pytest.raises(Stopped):
        studio.compare(wish(seed=5), "visitor", stop_and_begin_again)
    second.join()
    assert made == [["plain", "cached"]]


def test_one_generation_at_a_time(studio: Studio) -> None:
    order: list[str] = []

    def watched(name: str) -> None:
        studio.compare(wish(seed=4, num_steps=4), name, lambda *_: order.append(name))

    threads = [threading.Thread(target=watched, args=(name,)) for name in ("one", "two")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert order == sorted(order) or order == sorted(order, reverse=True)
    assert set(order) == {"one", "two"}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"prompt": " "}, "the prompt is empty"),
        ({"seed": -1}, "seed=-1 must be from 0"),
        ({"num_steps": 0}, "num_steps=0 must be from 1 to 1000"),
    ],
)
def test_a_wrong_wish(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        wish(**values)


def test_a_wish_that_so_few_steps_do_not_allow(studio: Studio) -> None:
    with pytest.raises(ValueError, match=r"speedup=2 with 8 steps would only break the clip"):
        stages(studio, wish(speedup=2.0))
    assert stages(studio, wish(num_steps=2))[1][-1] == "cached"  # and the next one is served


def test_a_profile_of_ones_own(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"none.json cannot be read"):
        Studio("shapes-wan", tmp_path, profile=str(tmp_path / "none.json"))


def test_fields_become_a_wish() -> None:
    assert page.wish_of(CAPTION, 3, 20, page.DEFAULT, 2.0, "high").settings == {}
    assert page.wish_of(CAPTION, 3, 20, page.SPEED, 2.0, "high").settings == {"speedup": 2.0}
    assert page.wish_of(CAPTION, 3, 20, page.QUALITY, 2.0, "fast").settings == {"quality": "fast"}
    with pytest.raises(ValueError, match=r"unknown quality 'fasst'; did you mean 'fast'"):
        page.wish_of(CAPTION, 3, 20, page.QUALITY, 2.0, "fasst")


def test_a_port_that_is_taken() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ValueError, match=rf"port {port} of 127.0.0.1 cannot be had: .*; --port names another"):
            page.check_port("127.0.0.1", port)
    page.check_port("127.0.0.1", port)


def test_who_reaches_it() -> None:
    assert page.is_private("127.0.0.1")
    assert not page.is_private("0.0.0.0")


def test_it_is_for_this_machine_unless_told_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    launched: list[dict[str, Any]] = []

    class Page:
        def launch(self, **options: Any) -> None:
            launched.append(options)

        def block_thread(self) -> None:
            pass

    monkeypatch.setattr(page, "gradio", lambda: None)
    monkeypatch.setattr(page, "check_port", lambda host, port: None)
    monkeypatch.setattr(page, "build", lambda studio: Page())
    monkeypatch.setattr("mixcache.web.studio.Studio", lambda *_, **__: None)
    private, opened = (runner.invoke(cli.app, ["web", *more]) for more in ([], ["--host", "0.0.0.0", "--port", "80"]))
    assert private.stdout == "page      http://127.0.0.1:7860 (Ctrl-C ends it)\n"
    assert private.stderr == ""
    assert opened.stderr == "warning   open to others: whoever reaches this machine can generate on it\n"
    assert [(options["server_name"], options["server_port"]) for options in launched] == [
        ("127.0.0.1", 7860),
        ("0.0.0.0", 80),
    ]


@pytest.mark.skipif(HAS_GRADIO, reason="Gradio is installed")
def test_gradio_is_not_installed() -> None:
    result = runner.invoke(cli.app, ["web"])
    assert result.exit_code == 2
    assert result.stderr == "mixcache: mixcache web needs Gradio: pip install 'mixcache[web]'\n"


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """Of a page that the command line has opened."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-c", "from mixcache.cli import main; main()", "web", "--port", str(port)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == f"page      http://127.0.0.1:{port} (Ctrl-C ends it)\n"
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()


PLAYS = """[...document.querySelectorAll('#films video')].filter(
  video => video.readyState >= 2 && video.videoWidth > 0 && video.currentTime > 0 && !video.paused).length"""
TYPE = """(text, selector) => {
  const box = document.querySelector(selector);
  box.value = text;
  box.dispatchEvent(new Event('input', {bubbles: true}));
}"""


@pytest.mark.slow
@needs_gradio
@pytest.mark.skipif(CHROMIUM is None, reason=MISSING)
def test_in_a_browser_a_prompt_becomes_clips_that_play(address: str, tmp_path: Path) -> None:
    with Chrome(tmp_path / "profile") as chrome:
        chrome.open(address)
        for part in ("#prompt textarea", "#steps input", "#go", "#stop", "#history"):
            chrome.wait_for(f"document.querySelector('{part}') !== null")
        chrome.ask(f"({TYPE})({CAPTION!r}, '#prompt textarea')")
        chrome.ask(f"({TYPE})('20', '#steps input')")
        chrome.ask("document.querySelector('#go').click()")
        chrome.wait_for("document.querySelectorAll('#films video').length === 3", seconds=240)
        chrome.wait_for(f"{PLAYS} === 3")
        assert "faster: denoised in" in chrome.ask("document.querySelector('#figures').innerText")
        assert chrome.ask("document.querySelectorAll('#timeline span[title]').length") == 20
        assert CAPTION in chrome.ask("document.querySelector('#history').innerText")
        folder = Path(os.environ.get("MIXCACHE_SCREENSHOTS", tmp_path))
        chrome.screenshot(folder / "web.png")
        assert (folder / "web.png").stat().st_size > 20_000
        # a thousand steps would take minutes
        chrome.ask(f"({TYPE})('1000', '#steps input')")
        chrome.ask("document.querySelector('#go').click()")
        chrome.wait_for("document.body.innerText.includes('plain clip -')")
        chrome.ask("document.querySelector('#stop').click()")
        chrome.wait_for("!document.body.innerText.includes('plain clip -')")
        chrome.ask(f"({TYPE})('4', '#steps input')")
        chrome.ask("document.querySelector('#go').click()")
        chrome.wait_for("document.querySelectorAll('#timeline span[title]').length === 4", seconds=60)
        assert chrome.errors == []


@pytest.mark.slow
@needs_gradio
def test_through_its_client(address: str) -> None:
    from gradio_client import Client

    client = Client(address, verbose=False)
    found = client.predict(CAPTION, 1, 12, page.SPEED, 1.5, "high", api_name="/generate")
    assert any("faster" in str(value) for value in found)
    with pytest.raises(Exception, match="with 8 steps would only break the clip"):
        client.predict(CAPTION, 1, 8, page.SPEED, 1.5, "high", api_name="/generate")
    with pytest.raises(Exception, match="the prompt is empty"):
        client.predict(" ", 1, 8, page.DEFAULT, 1.5, "high", api_name="/generate")
