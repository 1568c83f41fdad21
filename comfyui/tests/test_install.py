"""How the nodes come into ComfyUI, and what its registry reads."""

from __future__ import annotations

import runpy
import tomllib
from pathlib import Path

import pytest
from comfyui_mixcache import NODE_CLASS_MAPPINGS
from comfyui_mixcache.__main__ import main

ROOT = Path(__file__).parents[1]


def test_pip_alone_leaves_a_link_in_custom_nodes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path)]) is None
    link = tmp_path / "comfyui_mixcache_link" / "__init__.py"
    assert runpy.run_path(str(link))["NODE_CLASS_MAPPINGS"] is NODE_CLASS_MAPPINGS
    assert str(link) in capsys.readouterr().out
    assert "custom_nodes are" in str(main([str(tmp_path / "nowhere")]))


def test_the_registry_finds_what_it_asks_for() -> None:
    made = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert made["project"]["license"] == "Apache-2.0"
    assert made["project"]["dependencies"][0].startswith("mixcache")
    assert set(made["tool"]["comfy"]) >= {"PublisherId", "DisplayName"}
    assert all((ROOT / package / "__init__.py").is_file() for package in made["tool"]["setuptools"]["packages"])


@pytest.mark.parametrize("node", NODE_CLASS_MAPPINGS.values(), ids=NODE_CLASS_MAPPINGS)
def test_every_input_has_a_tooltip_and_every_node_says_what_it_does(node: type) -> None:
    inputs = node.INPUT_TYPES()
    given = {**inputs["required"], **inputs.get("optional", {})}
    assert all(settings.get("tooltip") for _, settings in given.values())
    assert node.DESCRIPTION
    assert node.CATEGORY
