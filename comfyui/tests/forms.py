"""The two forms of a workflow: as ComfyUI's page saves it, and as it is posted to the server."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

WIDGETS = ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO")
COLUMN, GAP, LINE = 420, 40, 26
"""Pixels of the page: from column to column, from node to node, of a line of a node."""
Kinds = dict[str, Any]
"""What the server says of its nodes, `/object_info`."""


@dataclass
class Sheet:
    """Nodes by name: kind, column on the page, inputs, where a link is `[name, slot]`."""

    nodes: dict[str, tuple[str, int, dict[str, Any]]] = field(default_factory=dict)

    def add(self, name: str, kind: str, column: int, **inputs: Any) -> None:
        self.nodes[name] = (kind, column, inputs)


def inputs_of(kind: dict[str, Any]) -> dict[str, Any]:
    """The specification of each input, in the order in which the page shows them."""
    given = kind["input"]
    return {**given.get("required", {}), **given.get("optional", {})}


def is_widget(specification: Any) -> bool:
    return isinstance(specification[0], list) or specification[0] in WIDGETS


def has_control(specification: Any) -> bool:
    """Whether the page puts a choice behind it of what follows on a run: seeds have it."""
    return len(specification) > 1 and bool(specification[1].get("control_after_generate"))


def default_of(specification: Any) -> Any:
    settings = specification[1] if len(specification) > 1 else {}
    options = specification[0] if isinstance(specification[0], list) else settings.get("options", [None])
    return settings.get("default", options[0] if options else None)


def saved(sheet: Sheet, kinds: Kinds) -> dict[str, Any]:
    """As the page saves it."""
    ids = {name: place for place, name in enumerate(sheet.nodes, start=1)}
    heights: dict[int, int] = {}
    links: list[list[Any]] = []
    nodes = []
    for name, (kind, column, given) in sheet.nodes.items():
        of = kinds[kind]
        inputs, widgets = [], []
        unknown = set(given) - set(inputs_of(of))
        if unknown:
            raise ValueError(f"{kind} has no inputs {sorted(unknown)}")
        for key, specification in inputs_of(of).items():
            value = given.get(key, default_of(specification) if is_widget(specification) else None)
            if is_widget(specification):
                widgets += [value, *(["fixed"] if has_control(specification) else [])]
                continue
            link = None
            if value is not None:
                source, slot = value
                link = len(links) + 1
                links.append([link, ids[source], slot, ids[name], len(inputs), specification[0]])
            inputs.append({"name": key, "type": specification[0], "link": link})
        size = [COLUMN - 2 * GAP, LINE * (2 + max(len(inputs), len(of["output"])) + len(widgets))]
        if kind == "CLIPTextEncode":
            size[1] += 4 * LINE
        if kind == "PreviewImage":
            size[1] += 8 * LINE
        top = heights.get(column, 0)
        heights[column] = top + size[1] + GAP
        nodes.append(
            {
                "id": ids[name],
                "type": kind,
                "pos": [column * COLUMN, top],
                "size": size,
                "flags": {},
                "order": ids[name] - 1,
                "mode": 0,
                "inputs": inputs,
                "outputs": [
                    {"name": label, "type": type_, "links": None, "slot_index": slot}
                    for slot, (label, type_) in enumerate(zip(of["output_name"], of["output"], strict=True))
                ],
                "properties": {"Node name for S&R": kind},
                "widgets_values": widgets,
            }
        )
    for link, source, slot, *_ in links:
        output = nodes[source - 1]["outputs"][slot]
        output["links"] = [*(output["links"] or []), link]
    return {
        "last_node_id": len(nodes),
        "last_link_id": len(links),
        "nodes": nodes,
        "links": links,
        "groups": [],
        "config": {},
        "extra": {},
        "version": 0.4,
    }


def posted(workflow: dict[str, Any], kinds: Kinds) -> dict[str, Any]:
    """As the page posts it: a node that is bypassed (mode 4) hands on what it gets of the same type, if anything."""
    nodes = {node["id"]: node for node in workflow["nodes"]}
    links = {link[0]: link for link in workflow["links"]}

    def source(link: int | None) -> list[Any] | None:
        if link is None:
            return None
        _, origin, slot, _, _, type_ = links[link]
        node = nodes[origin]
        if node["mode"] != 4:
            return [str(origin), slot]
        return source(next((entry["link"] for entry in node["inputs"] if entry["type"] == type_), None))

    prompt = {}
    for node in workflow["nodes"]:
        if node["mode"] == 4:
            continue
        values, inputs = iter(node["widgets_values"]), {}
        linked = {entry["name"]: entry["link"] for entry in node["inputs"]}
        for key, specification in inputs_of(kinds[node["type"]]).items():
            if is_widget(specification):
                inputs[key] = next(values)
                if has_control(specification):
                    next(values)
            elif (given := source(linked.get(key))) is not None:
                inputs[key] = given
        if list(values):
            raise ValueError(f"node {node['id']}, {node['type']}, has more values than widgets")
        prompt[str(node["id"])] = {"class_type": node["type"], "inputs": inputs}
    return prompt
