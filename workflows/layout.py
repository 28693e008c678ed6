"""Graphs described in Python -> the workflow that ComfyUI's editor loads, laid out, and its API format.

What inputs a node has is taken from a server's ``/object_info``, so that a workflow follows its nodes:
``python workflows/graphs.py http://127.0.0.1:8188`` writes all of them again.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

PAD, HEAD, GAP, BETWEEN = 24, 76, 72, 90
"""Pixels: inside a group, its title with that of its first node, between nodes, between groups."""
ROW, WIDGET, REST, MULTILINE, ADVANCED = 20, 24, 26, 36, 30
"""Pixels: a socket, a widget, what every node has beside, what a text box has more, the line of Nodes 2.0 below which
expert settings are."""
CURVE, PREVIEW = 118, 240
"""Pixels of an immunize node's loss curve, and of the live preview that it shows while it works."""
ZOOM = 0.62
"""At which a workflow opens, on its first group: notes and settings can be read there."""
EXTRA = {
    "SIFM_ProtectImage": 760,
    "SIFM_DoesItHold": 700,
    "SIFM_Immunize": CURVE + PREVIEW,
    "SIFM_SaveProtected": 330,
    "LoadImage": 330,
    "SIFM_ISRAggregate": 640,
}
EXTRA |= {
    "SIFM_EditorFromModel": 44,
    "SIFM_ResultsTable": 640,
    "SIFM_ConsistencyReport": 520,
    "SIFM_ClipScore": 420,
    "SIFM_MLLMJudge": 300,
}
"""Pixels of what a node shows beyond sockets and widgets: a curve, a picture, a table."""
SHOWN = {"PreviewImage": 420, "PreviewAny": 320, "SIFM_ComparisonGrid": 620}
"""Height of nodes that show something."""
PROPERTIES = {"PrimitiveFloat": {"min": 0, "max": 1, "step": 0.005, "precision": 3}}
"""What the front end asks of its own nodes: without it a budget of 0.03 reads 0.0."""
VIRTUAL = ("MarkdownNote",)
"""Nodes of the editor alone, which no server knows."""


class Out(NamedTuple):
    """An output of a node."""

    node: Node
    name: str


@dataclass(eq=False)
class Node:
    """A node; its outputs are its attributes: ``editor.editor``."""

    kind: str
    title: str
    given: dict[str, Any]
    height: int | None = None
    id: int = 0
    place: list[int] = field(default_factory=list)
    size: list[int] = field(default_factory=list)

    def __getattr__(self, name: str) -> Out:
        if name.startswith("_"):
            raise AttributeError(name)
        return Out(self, name)


@dataclass
class Group:
    """A titled frame with columns of nodes, the first under a note."""

    title: str
    columns: list[list[Node]]
    widths: list[int]


class Graph:
    """Groups from left to right. Nodes come into the column that was opened last."""

    def __init__(self, info: Mapping[str, Any]) -> None:
        self.info, self.groups = info, list[Group]()
        self.form: dict[str, list[Any]] = {}

    def group(self, title: str, note: str = "", width: int = 360) -> None:
        """Open a group; ``note`` (Markdown), if there is one, stands above its first column.

        What is marked as code is set in italics: Nodes 2.0 draws code blue on blue.
        """
        note = note.replace("`", "*")
        self.groups.append(Group(title, [[]], [width]))
        if not note:
            return
        lines = sum(1 + len(line) * 7 // (width - 30) for line in note.splitlines())
        self.add("MarkdownNote", "Note", text=note, height=max(90, 44 + 21 * lines))

    def column(self, width: int = 360) -> None:
        """Open another column in the group."""
        self.groups[-1].columns.append([])
        self.groups[-1].widths.append(width)

    def add(self, kind: str, title: str = "", height: int | None = None, **given: Any) -> Node:
        """A node whose inputs are what is given (an :class:`Out`, a value, a list for a growing input) or defaults.

        A setting of a chosen option is spelled with two underscores: ``method__pattern="block8"``.
        """
        inputs = {name.replace("__", "."): value for name, value in given.items()}
        for name in [name for name, value in inputs.items() if isinstance(value, list)]:
            prefix = self._inputs(kind)[name][1]["template"]["prefix"]
            inputs |= {f"{name}.{prefix}{i}": item for i, item in enumerate(inputs.pop(name))}
        shown = self.info[kind]["display_name"] if kind in self.info else kind
        node = Node(kind, title or shown, inputs, height)
        self.groups[-1].columns[-1].append(node)
        return node

    def app(self, inputs: Sequence[tuple[Node, str]], outputs: Sequence[Node]) -> None:
        """Open as a form with these settings and results; the graph is behind it."""
        self.form = {"inputs": list(inputs), "outputs": list(outputs)}

    def _extra(self) -> dict[str, Any]:
        view: dict[str, Any] = {"ds": {"scale": ZOOM, "offset": [170, 210]}, "sifm_opens_here": True}
        if not self.form:
            return view
        inputs = [[node.id, name] for node, name in self.form["inputs"]]
        return view | {
            "linearMode": True,
            "linearData": {"inputs": inputs, "outputs": [n.id for n in self.form["outputs"]]},
        }

    def ui(self) -> dict[str, Any]:
        """The format of the editor, version 0.4."""
        nodes = self._nodes()
        self._place()
        links: list[list[Any]] = []
        slots = {node: self._slots(node) for node in nodes}
        for node in nodes:
            for i, slot in enumerate(slots[node]):
                if isinstance(source := node.given.get(slot["name"]), Out):
                    slot["link"] = len(links) + 1
                    out = self._output(source)
                    links.append(
                        [slot["link"], source.node.id, out, node.id, i, self._outputs(source.node.kind)[out][1]]
                    )
        return {
            "id": "00000000-0000-0000-0000-000000000000",
            "revision": 0,
            "last_node_id": len(nodes),
            "last_link_id": len(links),
            "nodes": [self._node(node, slots[node], links, i) for i, node in enumerate(nodes)],
            "links": links,
            "groups": [self._frame(i, group) for i, group in enumerate(self.groups, 1)],
            "config": {},
            "extra": self._extra(),
            "version": 0.4,
        }

    def blueprint(
        self, title: str, about: str, inputs: Sequence[Sequence[tuple[Node, str]]], outputs: Sequence[Out]
    ) -> dict[str, Any]:
        """The nodes as one, with these inputs, settings among them, and outputs: a subgraph blueprint of ComfyUI.

        An input is all those of nodes that it feeds, and called as the first of them.
        """
        inner = self.ui()
        names = ("id", "origin_id", "origin_slot", "target_id", "target_slot", "type")
        links = [dict(zip(names, link, strict=True)) for link in inner["links"]]
        nodes = {node["id"]: node for node in inner["nodes"]}

        def join(*ends: Any) -> int:
            links.append(dict(zip(names, (len(links) + 1, *ends), strict=True)))
            return len(links)

        def port(side: str, name: str, kind: str, joined: list[int], place: list[float]) -> dict[str, Any]:
            id = str(uuid.uuid5(uuid.NAMESPACE_URL, f"sifm:{title}:{side}:{name}"))
            return {"id": id, "name": name, "type": kind, "linkIds": joined, "pos": place}

        right = max(node["pos"][0] + node["size"][0] for node in inner["nodes"]) + 2 * PAD
        ins, outs, slots = [], [], []
        for i, fed in enumerate(inputs):
            joined, found = [], []
            for node, name in fed:
                j, slot = next((j, s) for j, s in enumerate(nodes[node.id]["inputs"]) if s["name"] == name)
                slot["link"] = join(-10, i, node.id, j, slot["type"])
                joined.append(slot["link"])
                found.append(slot)
            first = found[0]
            ins.append(port("in", first["name"], first["type"], joined, [-5.0 * PAD, ROW * (i + 1.0)]))
            slots.append({key: first[key] for key in ("name", "type", "widget") if key in first} | {"link": None})
        for i, out in enumerate(outputs):
            k = self._output(out)
            about_out = nodes[out.node.id]["outputs"][k]
            link = join(out.node.id, k, -20, i, about_out["type"])
            about_out["links"] = [*(about_out["links"] or ()), link]
            outs.append(port("out", out.name, about_out["type"], [link], [right + 1.0 * PAD, ROW * (i + 1.0)]))
        id = str(uuid.uuid5(uuid.NAMESPACE_URL, f"sifm:{title}"))
        whole = {"id": id, "version": 1, "revision": 0, "name": title, "description": about, "category": "SIFM"}
        whole |= {
            "state": {"lastGroupId": 0, "lastNodeId": len(nodes), "lastLinkId": len(links), "lastRerouteId": 0},
            "config": {},
            "inputNode": {"id": -10, "bounding": [-8 * PAD, 0, 6 * PAD, ROW * (len(ins) + 2)]},
            "outputNode": {"id": -20, "bounding": [right, 0, 6 * PAD, ROW * (len(outs) + 2)]},
            "inputs": ins,
            "outputs": outs,
            "widgets": [],
            "nodes": inner["nodes"],
            "groups": [],
            "links": links,
            "extra": {},
        }
        shown = [fed[0] for fed, slot in zip(inputs, slots, strict=True) if "widget" in slot]
        node = {
            "id": len(nodes) + 1,
            "type": id,
            "pos": [0, 0],
            "size": [360, ROW * (len(ins) + len(outs) + 4)],
            "flags": {},
            "order": 0,
            "mode": 0,
            "inputs": slots,
            "outputs": [{"name": out["name"], "type": out["type"], "links": None} for out in outs],
            "title": title,
            "properties": {"proxyWidgets": [[str(n.id), name] for n, name in shown]},
            "widgets_values": [],
        }
        return {
            "revision": 0,
            "last_node_id": len(nodes) + 1,
            "last_link_id": 0,
            "nodes": [node],
            "links": [],
            "version": 0.4,
            "definitions": {"subgraphs": [whole]},
            "extra": {},
        }

    def api(self) -> dict[str, Any]:
        """The format of ``POST /prompt``."""
        prompt = {}
        for node in self._nodes():
            if node.kind in VIRTUAL:
                continue
            inputs: dict[str, Any] = {}
            for name, spec in self._expanded(node):
                value = node.given.get(name)
                if isinstance(value, Out):
                    inputs[name] = [str(value.node.id), self._output(value)]
                elif _is_widget(spec):
                    inputs[name] = self._value(node, name, spec)
                elif value is not None:
                    raise TypeError(f"{node.kind}.{name} is a socket, got {value!r}: an output that a node itself has?")
            prompt[str(node.id)] = {"inputs": inputs, "class_type": node.kind, "_meta": {"title": node.title}}
        return prompt

    # ---- what a node has

    def _nodes(self) -> list[Node]:
        nodes = [node for group in self.groups for column in group.columns for node in column]
        for i, node in enumerate(nodes, 1):
            node.id = i
        return nodes

    def _inputs(self, kind: str) -> dict[str, Any]:
        if kind in VIRTUAL:
            return {"text": ["STRING", {"multiline": True}]}
        order, specs = self.info[kind]["input_order"], self.info[kind]["input"]
        names = [(part, name) for part in ("required", "optional") for name in order.get(part, ())]
        return {name: [*specs[part][name], {}][:2] for part, name in names}

    def _expanded(self, node: Node) -> Iterator[tuple[str, Any]]:
        """The node's inputs by name; a chosen option's own follow it, a growing input has one place to spare."""
        for name, spec in self._inputs(node.kind).items():
            if spec[0] == "COMFY_AUTOGROW_V3":
                template = spec[1]["template"]
                taken = sum(given.startswith(f"{name}.") for given in node.given)
                kind = next(iter(template["input"]["required"].values()))
                for i in range(min(taken + 1, template["max"])):
                    yield f"{name}.{template['prefix']}{i}", [kind[0], {"forceInput": True, "grown": True}]
                continue
            yield name, spec
            if spec[0] == "COMFY_DYNAMICCOMBO_V3":
                options = spec[1]["options"]
                chosen = next(option for option in options if option["key"] == self._value(node, name, spec))
                for part in ("required", "optional"):
                    for inner, inner_spec in chosen["inputs"].get(part, {}).items():
                        yield f"{name}.{inner}", [*inner_spec, {}][:2]
        for name in node.given:
            if name.split(".")[0] not in self._inputs(node.kind):
                raise KeyError(f"{node.kind} has no input {name}")

    def _value(self, node: Node, name: str, spec: Any) -> Any:
        if name in node.given and not isinstance(node.given[name], Out):
            return node.given[name]
        about = spec[1]
        options = spec[0] if isinstance(spec[0], list) else about.get("options")
        first = options[0]["key"] if options and isinstance(options[0], dict) else options[0] if options else ""
        return about.get("default", first)

    def _outputs(self, kind: str) -> list[tuple[str, str]]:
        if kind in VIRTUAL:
            return []
        return list(zip(self.info[kind]["output_name"], self.info[kind]["output"], strict=True))

    def _output(self, out: Out) -> int:
        names = [name for name, _ in self._outputs(out.node.kind)]
        if out.name not in names:
            raise KeyError(f"{out.node.kind} has no output {out.name}: {', '.join(names)}")
        return names.index(out.name)

    # ---- the editor's format

    def _slots(self, node: Node) -> list[dict[str, Any]]:
        """Sockets, then the sockets of widgets, as the editor lists them."""
        if node.kind in VIRTUAL:
            return []
        optional = {*self.info[node.kind]["input"].get("optional", ())}
        sockets, widgets = [], []
        for name, spec in self._expanded(node):
            slot: dict[str, Any] = {
                "name": name,
                "type": "COMBO" if isinstance(spec[0], list) else spec[0],
                "link": None,
            }
            if name in optional or (spec[1].get("grown") and not name.endswith("_0")):
                slot["shape"] = 7
            if spec[1].get("grown"):
                slot["label"] = name.split(".")[1]
            (widgets if _is_widget(spec) else sockets).append(slot)
            if _is_widget(spec):
                slot["widget"] = {"name": name}
        if node.kind == "LoadImage":
            widgets.append({"name": "upload", "type": "IMAGEUPLOAD", "link": None, "widget": {"name": "upload"}})
        return sockets + widgets

    def _widgets(self, node: Node) -> list[tuple[Any, bool]]:
        """(value, is it a text box) of each widget, with those that the editor adds."""
        found = []
        for name, spec in self._expanded(node):
            if not _is_widget(spec):
                continue
            about = spec[1]
            found.append((self._value(node, name, spec), bool(about.get("multiline"))))
            if about.get("control_after_generate"):
                found.append(("fixed", False))
        return [*found, ("image", False)] if node.kind == "LoadImage" else found

    def _node(self, node: Node, slots: list[dict[str, Any]], links: list[list[Any]], order: int) -> dict[str, Any]:
        made: dict[str, Any] = {
            "id": node.id,
            "type": node.kind,
            "pos": node.place,
            "size": node.size,
            "flags": {},
            "order": order,
            "mode": 0,
            "inputs": slots,
            "outputs": [
                {"name": name, "type": kind, "links": [x[0] for x in links if x[1:3] == [node.id, i]] or None}
                for i, (name, kind) in enumerate(self._outputs(node.kind))
            ],
            "properties": {}
            if node.kind in VIRTUAL
            else {"Node name for S&R": node.kind, **PROPERTIES.get(node.kind, {})},
            "widgets_values": [value for value, _ in self._widgets(node)],
        }
        if node.title != self.info.get(node.kind, {}).get(
            "display_name"
        ):  # else the editor's, in the person's language
            made["title"] = node.title
        return made | ({"color": "#432", "bgcolor": "#653"} if node.kind in VIRTUAL else {})

    # ---- layout

    def _place(self) -> None:
        x = 0
        for group in self.groups:
            x += PAD
            for width, column in zip(group.widths, group.columns, strict=True):
                y = 0
                for node in column:
                    node.place, node.size = [x, y], [width, self._height(node)]
                    y += node.size[1] + GAP
                x += width + PAD
            x += BETWEEN

    def _height(self, node: Node) -> int:
        if height := node.height or SHOWN.get(node.kind):
            return height
        sockets = sum("widget" not in slot for slot in self._slots(node))
        rows = max(sockets, len(self._outputs(node.kind)))
        extra = EXTRA.get(node.kind, 0)
        if node.kind == "SIFM_BaselineImmunize":
            extra = CURVE + PREVIEW * (node.given["method"] != "random_noise")
        seen = [
            (name, spec)
            for name, spec in self._expanded(node)
            if _is_widget(spec) and not self._is_folded(node, name, spec)
        ]
        seeds = sum(bool(spec[1].get("control_after_generate")) for _, spec in seen) + (node.kind == "LoadImage")
        boxes = sum(bool(spec[1].get("multiline")) for _, spec in seen)
        folded = any(self._is_folded(node, name, spec) for name, spec in self._expanded(node) if _is_widget(spec))
        return rows * ROW + (len(seen) + seeds) * WIDGET + boxes * MULTILINE + REST + folded * ADVANCED + extra

    def _is_folded(self, node: Node, name: str, spec: Any) -> bool:
        """Is it an expert setting that the editor shows on demand? One that is linked is always in sight."""
        return (
            node.kind.startswith("SIFM_")
            and bool(spec[1].get("advanced"))
            and not isinstance(node.given.get(name), Out)
        )

    def _frame(self, number: int, group: Group) -> dict[str, Any]:
        nodes = [node for column in group.columns for node in column]
        left, right = nodes[0].place[0], max(node.place[0] + node.size[0] for node in nodes)
        bottom = max(node.place[1] + node.size[1] for node in nodes)
        box = [left - PAD, -HEAD, right - left + 2 * PAD, bottom + HEAD + PAD]
        return {"id": number, "title": group.title, "bounding": box, "color": "#3f789e", "flags": {}}


def _is_widget(spec: Sequence[Any]) -> bool:
    about = spec[1]
    plain = ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO", "COMFY_DYNAMICCOMBO_V3")
    return not about.get("forceInput") and (isinstance(spec[0], list) or spec[0] in plain)
