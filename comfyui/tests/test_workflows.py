"""The example workflows: as they lie in the folder, they are valid for the real server."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from browser import Refused, Server
from forms import Kinds, inputs_of, posted
from safetensors.torch import load_file
from workflows import node

WORKFLOWS = sorted((Path(__file__).parents[1] / "workflows").glob("*.json"))
FILES = ("unet_name", "clip_name", "clip_name1", "clip_name2", "vae_name", "ckpt_name")
"""Inputs that are names of files, which are not on this machine."""


@pytest.fixture(scope="module")
def kinds(server: Server) -> Kinds:
    return server.get("/object_info")


def test_there_is_one_of_each() -> None:
    names = {path.stem for path in WORKFLOWS}
    assert names == {"wan21", "wan22-two-experts", "hunyuan-video", "ltx-video", "tiny"}


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_nodes_links_and_values_are_those_of_the_server(path: Path, kinds: Kinds) -> None:
    workflow = json.loads(path.read_text())
    nodes = {entry["id"]: entry for entry in workflow["nodes"]}
    for link, origin, slot, target, place, type_ in workflow["links"]:
        assert kinds[nodes[origin]["type"]]["output"][slot] == type_
        assert nodes[target]["inputs"][place]["link"] == link
        assert inputs_of(kinds[nodes[target]["type"]])[nodes[target]["inputs"][place]["name"]][0] == type_
    assert any(entry["type"] == "MixCache" for entry in nodes.values())
    posted(workflow, kinds)


@pytest.mark.parametrize("path", [path for path in WORKFLOWS if path.stem != "tiny"], ids=lambda path: path.stem)
def test_all_that_a_workflow_lacks_are_its_weights(path: Path, server: Server, kinds: Kinds) -> None:
    with pytest.raises(Refused) as refused:
        server.queue(posted(json.loads(path.read_text()), kinds))
    answer = json.loads(str(refused.value))
    errors = [error for entry in answer["node_errors"].values() for error in entry["errors"]]
    assert errors
    assert {error["type"] for error in errors} == {"value_not_in_list"}
    assert {error["extra_info"]["input_name"] for error in errors} <= set(FILES)


def test_the_tiny_one_runs_and_bypassed_has_the_bits_of_none(server: Server, kinds: Kinds) -> None:
    workflow = json.loads(next(path for path in WORKFLOWS if path.stem == "tiny").read_text())
    ids = {(entry["type"], entry["pos"][1]): str(entry["id"]) for entry in workflow["nodes"]}
    plain, cached = (ids[key] for key in sorted(key for key in ids if key[0] == "KSampler"))

    def small(prompt: dict[str, Any]) -> dict[str, Any]:
        loader = next(entry for entry in prompt.values() if entry["class_type"] == "TinyWan")
        loader["inputs"] |= {"side": 48, "frames": 5}
        for name, sampler in (("a", plain), ("b", cached)):
            prompt[name] = node("SaveLatent", samples=[sampler, 0], filename_prefix=name)
        return prompt

    def latents(outputs: dict[str, Any]) -> tuple[torch.Tensor, ...]:
        return tuple(load_file(server.file(outputs[name], "latents"))["latent_tensor"] for name in "ab")

    outputs = server.run(small(posted(workflow, kinds)))
    first, second = latents(outputs)
    assert not torch.equal(first, second)
    assert any("dB" in words for output in outputs.values() for words in output.get("text", ()))
    for entry in workflow["nodes"]:
        if entry["type"].startswith("MixCache"):
            entry["mode"] = 4
    prompt = {
        key: entry
        for key, entry in small(posted(workflow, kinds)).items()
        if entry["class_type"] not in ("PreviewImage", "TinyDecode")
    }
    first_again, bypassed = latents(server.run(prompt))
    assert torch.equal(first_again, first)
    assert torch.equal(bypassed, first)
