"""The pages: their examples run, their links lead somewhere, and they name what there is."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

import mixcache
from mixcache import POLICIES, Granularity

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
ALL_PAGES = sorted(
    path
    for folder in (".", "docs", "training", "tests", "src")
    for path in (ROOT / folder).glob("*.md" if folder == "." else "**/*.md")
    if "runs" not in path.relative_to(ROOT).parts
)
WEIGHTS = ROOT / "src" / "mixcache" / "zoo" / "shapes-wan"

FENCE = re.compile(r"^(?P<fence>`{3,})(?P<info>[^`\n]*)\n(?P<body>.*?)^(?P=fence)[ \t]*$", re.MULTILINE | re.DOTALL)
CODE_SPAN = re.compile(r"`[^`\n]+`")
LINK = re.compile(r"\[[^\]\n]*\]\((?P<target>[^)\s]+)\)")


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def blocks(text: str, info: str = "python") -> list[tuple[int, str]]:
    """(line of the first line of code, code) of every fenced block whose info string is exactly `info`."""
    found = (match for match in FENCE.finditer(text) if match["info"].strip() == info)
    return [(text.count("\n", 0, match.start("body")) + 1, match["body"]) for match in found]


def links(text: str) -> list[str]:
    """Targets of the links to files, without their fragment; addresses and links inside code are left out."""
    prose = CODE_SPAN.sub("", FENCE.sub("", text))
    targets = [match["target"].partition("#")[0] for match in LINK.finditer(prose)]
    return [target for target in targets if target and not re.match(r"[a-z]+:", target)]


def test_blocks_and_links_are_found() -> None:
    text = "\n".join(
        ["[a](b.md#c) and `[d](e.md)`", "```python", "x = 1", "```", "```python no-run", "y", "```", "[f](https://g)"]
    )
    assert blocks(text) == [(3, "x = 1\n")]
    assert blocks(text, "python no-run") == [(6, "y\n")]
    assert links(text) == ["b.md"]


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page.read_text())], ids=name_of)
def test_examples_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = blocks(page.read_text())
    if not WEIGHTS.is_dir() and any("zoo" in body for _, body in code):
        pytest.skip(f"the weights of the built-in model are not there: {name_of(WEIGHTS)}")
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, Any] = {"__name__": "__main__"}
    for line, body in code:
        # blank lines in front, so that a traceback shows the line of the page
        exec(compile("\n" * (line - 1) + body, str(page), "exec"), namespace)


@pytest.mark.parametrize("page", ALL_PAGES, ids=name_of)
def test_links_lead_to_files(page: Path) -> None:
    assert [target for target in links(page.read_text()) if not (page.parent / target).exists()] == []


@pytest.mark.parametrize("name", mixcache.__all__)
def test_public_name_is_mentioned(name: str) -> None:
    text = "\n".join(page.read_text() for page in PAGES)
    code = [*CODE_SPAN.findall(FENCE.sub("", text)), *(match["body"] for match in FENCE.finditer(text))]
    assert any(re.search(rf"\b{name}\b", span) for span in code)


@pytest.mark.parametrize("granularity", list(Granularity), ids=str)
def test_granularity_is_among_the_words(granularity: Granularity) -> None:
    assert re.search(rf"^\| `{granularity}` \| \w+", (ROOT / "docs" / "words.md").read_text(), re.MULTILINE)


@pytest.mark.parametrize("name", POLICIES)
def test_policy_is_explained(name: str) -> None:
    """A heading with its name, and a sentence under it."""
    text = (ROOT / "docs" / "method.md").read_text()
    section = re.search(rf"^### `{name}`\n\n(?P<first>[A-Z].*)$", text, re.MULTILINE)
    assert section is not None
    assert len(section["first"].split()) >= 5
