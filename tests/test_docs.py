"""The pages: their examples run, their links lead somewhere, and they name what there is."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

import mixcache
from mixcache import POLICIES, Granularity

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
WITH_EXAMPLES = [page for page in (*PAGES, ROOT / "CONTRIBUTING.md") if "```python\n" in page.read_text()]
EXPERIMENTS = sorted((ROOT / "docs" / "experiments").glob("[!R]*.md"))
ALL_PAGES = sorted(
    path
    for folder in (".", "docs", "training", "tests", "src")
    for path in (ROOT / folder).glob("*.md" if folder == "." else "**/*.md")
    if "runs" not in path.relative_to(ROOT).parts
)
WEIGHTS = ROOT / "src" / "mixcache" / "zoo" / "shapes-wan"

FENCE = re.compile(r"^(?P<fence>`{3,})(?P<info>[^`\n]*)\n(?P<body>.*?)^(?P=fence)[ \t]*$", re.MULTILINE | re.DOTALL)
CODE_SPAN = re.compile(r"`[^`\n]+`")
LINK = re.compile(r"\[[^\]]*\]\((?P<target>[^)\s]+)\)")
HEADING = re.compile(r"^#{1,6} (?P<title>.+)$", re.MULTILINE)
POINTER = re.compile(r"\bdocs/[\w./-]*\w")


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def blocks(text: str, info: str = "python") -> list[tuple[int, str]]:
    """(line of the first line of code, code) of every fenced block whose info string is exactly `info`."""
    found = (match for match in FENCE.finditer(text) if match["info"].strip() == info)
    return [(text.count("\n", 0, match.start("body")) + 1, match["body"]) for match in found]


def links(text: str) -> list[str]:
    """Targets of the links to files and headings; addresses and links inside code are left out."""
    prose = CODE_SPAN.sub("", FENCE.sub("", text))
    targets = [match["target"] for match in LINK.finditer(prose)]
    return [target for target in targets if not re.match(r"[a-z]+:", target)]


def anchors(text: str) -> set[str]:
    """What GitHub lets a link to a heading end in."""
    found: Counter[str] = Counter()
    names = set()
    for match in HEADING.finditer(FENCE.sub("", text)):
        name = re.sub(r"[^\w\- ]", "", match["title"].strip().lower()).replace(" ", "-")
        names.add(f"{name}-{found[name]}" if found[name] else name)
        found[name] += 1
    return names


def leads_somewhere(page: Path, target: str) -> bool:
    """True if the file is there and, where the target names a heading, has it."""
    path, _, fragment = target.partition("#")
    file = page.parent / path if path else page
    return file.exists() and (not fragment or fragment in anchors(file.read_text()))


def test_blocks_and_links_are_found() -> None:
    text = "\n".join(
        [
            "[a](b.md#c) and `[d](e.md)`, [over two",
            "lines](#h)",
            "```python",
            "x = 1",
            "```",
            "```python no-run",
            "y",
            "```",
            "[f](https://g)",
        ]
    )
    assert blocks(text) == [(4, "x = 1\n")]
    assert blocks(text, "python no-run") == [(7, "y\n")]
    assert links(text) == ["b.md#c", "#h"]


def test_anchors_are_those_of_the_headings(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# `a_b` at 20 steps: no (negative)\n\n## Same\n\n```\n# code\n```\n\n## Same\n")
    assert anchors(page.read_text()) == {"a_b-at-20-steps-no-negative", "same", "same-1"}
    assert leads_somewhere(page, "#same-1")
    assert leads_somewhere(page, "page.md")
    assert not leads_somewhere(page, "page.md#code")
    assert not leads_somewhere(page, "other.md")


@pytest.mark.parametrize("page", WITH_EXAMPLES, ids=name_of)
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
def test_links_lead_to_files_and_headings(page: Path) -> None:
    assert [target for target in links(page.read_text()) if not leads_somewhere(page, target)] == []


def test_pointers_in_the_source_lead_to_files() -> None:
    named = {
        (name_of(path), pointer)
        for folder in ("src", "training")
        for path in (ROOT / folder).rglob("*.py")
        for pointer in POINTER.findall(path.read_text())
    }
    assert named
    assert sorted(pair for pair in named if not (ROOT / pair[1]).exists()) == []


def test_readme_is_short() -> None:
    lines = (ROOT / "README.md").read_text().splitlines()
    assert len(lines) <= 200
    assert [line for line in lines if len(line) > 120] == []


def test_method_is_short() -> None:
    lines = (ROOT / "docs" / "method.md").read_text().splitlines()
    assert len(lines) <= 250
    assert [line for line in lines if len(line) > 120] == []


@pytest.mark.parametrize("page", EXPERIMENTS, ids=name_of)
def test_experiment_is_dated_and_in_the_index(page: Path) -> None:
    """Its name begins with year and month, its text with the day, and the index has it, negative where it was."""
    assert re.fullmatch(r"\d{4}-\d\d-[a-z0-9-]+\.md", page.name)
    title, _, first = page.read_text().split("\n", 2)
    assert first.startswith(page.name[:7])
    rows = [line for line in (page.parent / "README.md").read_text().splitlines() if f"]({page.name})" in line]
    assert len(rows) == 1
    assert re.match(r"\| \d{4}-\d\d-\d\d \|", rows[0])
    assert rows[0].split(" | ")[0][2:] in first
    assert title.endswith("(negative)") == ("(negative)](" in rows[0])


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
