"""The workflows' thumbnails: each is run on a server, on the miniature with few pictures, and what came out is shown.

``python workflows/thumbnails.py http://127.0.0.1:8188 [NAME ...]``. The artist's show a photograph under the
strengths of ``docs/strengths.png``, which ``python -m benchmarks.strengths`` makes.
"""

from __future__ import annotations

import io
import json
import sys
import time
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

from graphs import FILES
from my_model import MY_MODEL
from PIL import Image, ImageDraw, ImageFont, ImageOps

HERE = Path(__file__).parent
RUNS = {"protect_and_test": (3, 60), "test_my_image": (1, 60)}
RUNS |= {"purification_robustness": (3, 20), "paper_figure3_clip": (3, 0), "paper_figure4_pictures": (2, 15)}
OTHERS = (2, 5)
"""(pictures, iterations): enough to see what a protection does; the tables are only to show what they are about."""
SIDE, GAP, BACK = 160, 8, (24, 24, 28)
STRENGTHS = ("before", "subtle", "normal", "strong")
"""The columns of docs/strengths.png."""
ARTIST = {
    "protect_my_image": ("before", "normal"),
    "does_it_hold": ("normal",),
    "immunize_my_image": ("subtle", "normal", "strong"),
}
LIGHTS = ("#d9534f", "#e0a030", "#3fa463")

Graph = dict[str, Any]


class Server:
    def __init__(self, url: str) -> None:
        self.url = url

    def get(self, path: str, body: bytes | None = None, kind: str = "application/json") -> bytes:
        request = urllib.request.Request(self.url + path, body, {"Content-Type": kind})
        with urllib.request.urlopen(request) as answer:
            return answer.read()

    def run(self, graph: Graph) -> dict[str, Any]:
        """The outputs of its nodes, once it is over."""
        ticket = json.loads(self.get("/prompt", json.dumps({"prompt": graph}).encode()))["prompt_id"]
        while not (entry := json.loads(self.get(f"/history/{ticket}")).get(ticket)):
            time.sleep(1)
        if entry["status"]["status_str"] != "success":
            raise RuntimeError(entry["status"]["messages"][-1])
        return entry["outputs"]

    def images(self, output: dict[str, Any]) -> list[Image.Image]:
        files = [self.get("/view?" + urllib.parse.urlencode(file)) for file in output["images"]]
        return [Image.open(io.BytesIO(file)).convert("RGB") for file in files]


def reduced(name: str, pictures: int, steps: int) -> Graph:
    """The workflow on the miniature, without the unseen instructions; whatever attacks it has are shown by edits."""
    graph: Graph = json.loads((HERE / "api" / f"{name}.json").read_text())
    for node in graph.values():
        inputs, title = node["inputs"], node["_meta"]["title"]
        inputs.pop("unseen", None)
        if node["class_type"] == "LoadImage":
            node |= {"class_type": "SIFM_LoadBenchmark", "inputs": {"category": "all", "start": 0, "count": 1}}
        if node["class_type"] == "SIFM_LoadBenchmark":
            node["inputs"]["count"] = pictures
        if title == "Iterations":
            inputs["value"] = steps
        elif node["class_type"] in ("SIFM_Immunize", "SIFM_BaselineImmunize") and not isinstance(inputs["steps"], list):
            inputs["steps"] = steps
        if node["class_type"] == "SIFM_MLLMJudge":
            for key in [key for key in inputs if key.startswith("judge")]:
                del inputs[key]
            inputs |= {"judge": "miniature", "judge.model": "patch" if title == "Judge 2" else "conv"}
        if inputs.get("purifiers"):
            inputs["purifiers"] = "jpeg:75"
    tables = [i for i, node in graph.items() if node["class_type"] == "SIFM_ResultsTable"]
    for i in [i for i, node in graph.items() if node["class_type"] in ("SIFM_ComparisonGrid", "SIFM_RecordsExport")]:
        del graph[i]
    for i in tables:
        grid = {"records": [i, 1], "rows": pictures, "side": SIDE, "protected": name == "paper_figure4_pictures"}
        graph[f"grid {i}"] = {"class_type": "SIFM_ComparisonGrid", "inputs": grid}
    if name == "paper_figure3_clip":
        source = next(node["inputs"]["image"] for node in graph.values() if node["class_type"] == "SIFM_AttackerEdit")
        graph["0"] = {"class_type": "PreviewImage", "inputs": {"images": source}}
    return graph


def picture(server: Server, name: str) -> Image.Image:
    """Grids one under the other; without one, whatever pictures the graph shows, a column for each node."""
    outputs = server.run(reduced(name, *RUNS.get(name, OTHERS)))
    order = sorted((i for i in outputs if "images" in outputs[i]), key=lambda i: (len(i), i))
    rows = [server.images(outputs[i]) for i in order]
    if grids := [i for i in order if i.startswith("grid")]:
        rows = [server.images(outputs[i]) for i in grids]
    else:
        small = [[image.resize((SIDE, SIDE), Image.Resampling.NEAREST) for image in row] for row in rows]
        rows = [list(images) for images in zip(*small, strict=True)]
    width = max(sum(image.width + GAP for image in row) for row in rows) + GAP
    sheet = Image.new("RGB", (width, sum(row[0].height + GAP for row in rows) + GAP), BACK)
    y = GAP
    for row in rows:
        x = GAP
        for image in row:
            sheet.paste(image, (x, y))
            x += image.width + GAP
        y += row[0].height + GAP
    sheet.thumbnail((900, 900))
    return sheet


def photograph(name: str) -> Image.Image:
    """The photograph under the strengths that the workflow is about; the test's beside its three lights."""
    sheet = Image.new("RGB", (4 * SIDE, 3 * SIDE), BACK)
    draw, columns = ImageDraw.Draw(sheet), ARTIST[name]
    with Image.open(HERE.parent / "docs" / "strengths.png") as strengths:
        step = strengths.width // len(STRENGTHS) + 2
        shown = [strengths.crop((i * step, 0, i * step + step - GAP, 256)) for i in map(STRENGTHS.index, columns)]
    parts = len(columns) + (name == "does_it_hold")
    width, height = (sheet.width - (parts + 1) * GAP) // parts, sheet.height - 6 * GAP
    for k, (column, image) in enumerate(zip(columns, shown, strict=True)):
        x = GAP + k * (width + GAP)
        sheet.paste(ImageOps.fit(image.convert("RGB"), (width, height), Image.Resampling.LANCZOS), (x, GAP))
        draw.text((x + width // 2, sheet.height - 3 * GAP), column, "white", ImageFont.load_default(24), anchor="mm")
    if name == "does_it_hold":
        for k, colour in enumerate(LIGHTS):
            draw.circle((3 * SIDE, (k + 0.5) * height / 3 + GAP), 0.13 * height, colour)
    return sheet


def card(name: str) -> Image.Image:
    """What a workflow is about whose models nobody has here: a picture made up for it would be a lie."""
    sheet = Image.new("RGB", (4 * SIDE, 2 * SIDE), BACK)
    draw = ImageDraw.Draw(sheet)
    title, *parts = MY_MODEL[name][0], "MODEL   VAE   CLIP", "Editor from Model", "protect", "attack both"
    draw.text((2 * SIDE, 40), title, "white", ImageFont.load_default(38), anchor="mm")
    for k, part in enumerate(parts):
        middle, top = 2 * SIDE, 96 + 56 * k
        draw.rounded_rectangle((middle - 150, top, middle + 150, top + 40), 8, (60, 60, 66))
        draw.text((middle, top + 20), part, "white", ImageFont.load_default(20), anchor="mm")
        if k:
            draw.line((middle, top - 16, middle, top), (150, 150, 160), 3)
    return sheet


def main(url: str, *names: str) -> None:
    for name in names or FILES:
        draw = photograph if name in ARTIST else card if name in MY_MODEL else None
        shown = draw(name) if draw else picture(Server(url), name)
        shown.save(HERE / f"{FILES[name]}.jpg", quality=85)
        print(name, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:] or ["http://127.0.0.1:8188"])
