"""Does it hold? A picture attacked as others may attack it: a light, the weakest cases, and the pictures."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any, get_args

import folder_paths
from comfy_api.latest import io
from torch import Tensor

from sifm_core import holding
from sifm_core.errors import ImageError
from sifm_core.files import write_atomically
from sifm_core.format import percent, span
from sifm_core.holding import Attack, Holds
from sifm_core.methods.sifm_plus import Subject
from sifm_core.report.document import Cell, Element, Heading, Items, Table, Text
from sifm_core.report.holds import page

from . import sockets
from ._cards import told
from ._comfy import ManagedEditor, reporter, to_engine
from ._shown import picture
from ._text import markdown
from ._text import shown as shown_as
from .judge import load as load_judge
from .protect import against_input, against_problem, at_hand, demonstration_input

MOST = 24
"""Cells, each an instruction with a way and a seed, whose pictures are shown."""
NO_LIGHT = "No light: nobody judged the edits."
UNJUDGED = f"{NO_LIGHT} Look at the pictures and judge for yourself, or connect judge_1 and judge_2."
"""What the engine says of that, with what a graph has for it."""


class SifmDoesItHold(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        judge = {"optional": True, "tooltip": "From Editors and Judges. Without any you judge by looking yourself."}
        return io.Schema(
            node_id="SIFM_DoesItHold",
            display_name="Does It Hold?",
            category="SIFM",
            description="Attack a protected picture with instructions, uploads and mild cleaning: a light that is "
            "green only with evidence, the weakest cases, and the pictures.",
            search_aliases=["test protection", "is my picture safe", "self test", "check cloak", "does glaze work"],
            inputs=[
                io.Image.Input("image", tooltip="The protected picture."),
                io.Image.Input(
                    "source", optional=True, tooltip="Its original, of the same size; without it nothing is ever green."
                ),
                against_input("The editor that attacks, which has to be on this computer."),
                sockets.Editor.Input(
                    "editor", optional=True, tooltip="An editor of your graph; in place of 'against'."
                ),
                io.String.Input(
                    "words",
                    display_name="what they may ask",
                    default="",
                    multiline=True,
                    optional=True,
                    placeholder="what they may ask, one a line (may stay empty)",
                    tooltip="What attackers ask, one a line. Empty: sixteen instructions are drawn from a list.",
                ),
                sockets.Judge.Input("judge_1", **judge),
                sockets.Judge.Input("judge_2", **judge),
                io.Combo.Input(
                    "subject",
                    options=["any", *(name for name in get_args(Subject) if name not in ("any", "auto", "miniature"))],
                    optional=True,
                    advanced=True,
                    tooltip="What the picture shows: which instructions are drawn.",
                ),
                demonstration_input(),
            ],
            outputs=[io.String.Output("report", tooltip="The light and what it rests on, as Markdown.")],
            is_output_node=True,
        )

    @classmethod
    def validate_inputs(
        cls, against: str | None = None, editor: Any = False, demonstration: bool | None = False
    ) -> bool | str:
        return against_problem(against, editor, demonstration)

    @classmethod
    def execute(
        cls,
        image: Tensor,
        against: str,
        source: Tensor | None = None,
        editor: ManagedEditor | None = None,
        words: str = "",
        judge_1: dict[str, Any] | None = None,
        judge_2: dict[str, Any] | None = None,
        subject: str = "any",
        demonstration: bool = False,
    ) -> io.NodeOutput:
        if len(image) != 1:
            raise ImageError(f"image: expected one picture, got a batch of {len(image)}; test them one by one")
        managed, protected = editor or at_hand(against, demonstration), to_engine(image)
        original = None if source is None else to_engine(source)
        asked = [line.strip() for line in words.splitlines() if line.strip()]
        judges = [load_judge(**judge) for judge in (judge_1, judge_2) if judge]
        with managed.at_work(asked or [""], protected) as engine:
            found = holding.holds(
                protected,
                engine,
                source=original,
                instructions=asked,
                subject=subject,
                judges=judges or None,
                demonstration=demonstration or managed.demonstration,
                on_step=reporter(),
            )
        first, *rest = (UNJUDGED if line.startswith(NO_LIGHT) else line for line in found.words())
        head = ("editor", "what happened before", "edits that fail", "95%", "judged", "unclear")
        rows = [
            tuple(
                map(
                    Cell,
                    (
                        r.editor,
                        r.way,
                        percent(r.rate.rate),
                        span(r.rate.low, r.rate.high),
                        str(r.rate.n),
                        str(r.rate.unclear),
                    ),
                )
            )
            for r in found.rows
        ]
        elements: list[Element] = [Heading(first), Items(rest)]
        if judges:
            elements.append(Table(head, tuple(rows)))
        elements.append(Text([f"All of it, on a page of its own: `{_write(found)}` in ComfyUI's output folder."]))
        if (more := sum(attack.kind == "protected" for attack in found.attacks) - MOST) > 0:
            elements.append(Text([f"{more} more edits were tried and are not shown here."]))
        ui = shown_as(elements, sifm_light=[str(found.light or "")], sifm_cards=_cards(found, protected, original))
        return io.NodeOutput(markdown(elements), ui=ui | {"sifm_demonstration": [found.demonstration]})


def _cards(found: Holds, protected: Tensor, original: Tensor | None) -> list[dict[str, Any]]:
    """The first cells, if judged the weakest, each with the edit of the original beside that of the protected one."""
    before = picture((protected if original is None else original)[0])
    clean = {attack.cell: attack for attack in found.attacks if attack.kind == "original"}
    cells = [attack for attack in found.attacks if attack.kind == "protected"]

    def card(attack: Attack, method: str) -> dict[str, Any]:
        place = f"{attack.instruction} ({attack.way}, seed {attack.seed})"
        about = {"prompt": place, "source": before, "edited": picture(attack.edited[0]), "method": method}
        return about | {"failed": attack.failed, "said": [told(verdict) for verdict in attack.verdicts]}

    pairs = ((clean.get(attack.cell), attack) for attack in itertools.islice(cells, MOST))
    return [
        card(attack, method)
        for pair in pairs
        for attack, method in zip(pair, ("unprotected", "protected"), strict=True)
        if attack is not None
    ]


def _write(found: Holds) -> str:
    """The page of the test in the output folder; its name there."""
    output = folder_paths.get_output_directory()
    folder, name, _, subfolder, _ = folder_paths.get_save_image_path("SIFM/holds", output)
    number = 1 + max((int(file.stem.split("_")[1]) for file in Path(folder).glob("holds_?????_.html")), default=0)
    path = Path(folder, f"{name}_{number:05}_.html")
    write_atomically(path, page(found).encode())
    return str(Path(subfolder, path.name))
