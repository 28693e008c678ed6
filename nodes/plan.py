"""Which attacks a comparison consists of."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

from comfy_api.latest import io
from torch import Tensor

from sifm_core.errors import InputError
from sifm_core.purify import parse

from . import sockets
from ._attacks import Protection, plan, singles, split
from ._comfy import to_comfy, to_engine
from ._inputs import chain_problem


class SifmAttackPlan(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        arms = io.Autogrow.TemplatePrefix(sockets.Protection.Input("protection"), prefix="protection_", min=1, max=24)
        text = {"force_input": True, "optional": True}
        return io.Schema(
            node_id="SIFM_AttackPlan",
            display_name="SIFM Attack Plan",
            category="SIFM",
            description="One attack per picture, protection and instruction, as lists, the unprotected picture among "
            "them: the nodes behind run once per attack, and Results Table puts everything together.",
            search_aliases=["compare methods", "sweep", "grid", "ablation", "benchmark", "xy plot"],
            inputs=[
                io.Image.Input("image", tooltip="The unprotected pictures."),
                io.String.Input("prompt", force_input=True, tooltip="The instruction of each picture, or one for all."),
                io.Autogrow.Input(
                    "protections",
                    template=arms,
                    tooltip="From the immunize nodes; each is a row of the table, named by its method and by the "
                    "settings in which it differs.",
                ),
                io.String.Input(
                    "unseen",
                    tooltip="Further instructions of each picture, one a line, that the protection has not seen.",
                    **text,
                ),
                io.String.Input("category", tooltip="Of each picture, for the records.", **text),
                io.String.Input("id", tooltip="Of each picture, for the records; one for all is numbered.", **text),
                io.String.Input(
                    "purifiers",
                    default="",
                    multiline=True,
                    optional=True,
                    advanced=True,
                    tooltip="What the attacker does first, one chain a line, such as jpeg:75,resize:0.5; 'none' is a "
                    "line without purification. Empty: none.",
                ),
                io.String.Input(
                    "names",
                    default="",
                    multiline=True,
                    optional=True,
                    advanced=True,
                    tooltip="What the rows of the table are called, one a line, in the order of the protections.",
                ),
            ],
            outputs=[
                io.Image.Output("image", is_output_list=True, tooltip="What is attacked."),
                io.String.Output("prompt", is_output_list=True, tooltip="The attacker's instruction."),
                io.Image.Output("source", is_output_list=True, tooltip="The unprotected picture, for the judges."),
                io.String.Output("purifier", is_output_list=True, tooltip="For Attacker Edit."),
                sockets.Attack.Output("attack", is_output_list=True, tooltip="For Results Table."),
            ],
            is_input_list=True,
        )

    @classmethod
    def validate_inputs(cls, purifiers: list[str] | None = None, protections: Any = None) -> bool | str:
        problems = [chain_problem(chain) for chain in _chains(purifiers or [""])]
        return next((problem for problem in problems if problem is not True), True)

    @classmethod
    def execute(
        cls,
        image: list[Tensor],
        prompt: list[str],
        protections: dict[str, list[Protection]],
        unseen: Sequence[str] = (),
        category: Sequence[str] = (),
        id: Sequence[str] = (),
        purifiers: Sequence[str] = ("",),
        names: Sequence[str] = ("",),
    ) -> io.NodeOutput:
        sources = list(singles([to_engine(batch) for batch in image]))
        n = len(sources)
        attacks = plan(
            sources,
            [split(arm) for arm in protections.values()],
            [text.strip() for text in _each(prompt, n, "prompt")],
            _each(unseen or [""], n, "unseen"),
            _ids(id, n),
            _each(category or [""], n, "category"),
            _chains(purifiers),
            [name.strip() for name in names[0].splitlines() if name.strip()],
        )
        shown = cache(to_comfy)  # the attacks of a picture share its memory
        columns: list[list[Any]] = [
            [shown(attack.image) for attack in attacks],
            [attack.prompt for attack in attacks],
            [shown(attack.source) for attack in attacks],
            [attack.purifier for attack in attacks],
            attacks,
        ]
        return io.NodeOutput(*columns)


def _each(values: Sequence[str], n: int, name: str) -> list[str]:
    """One value per picture."""
    if len(values) not in (1, n):
        raise InputError(f"{name}: expected one or {n} (one per picture), got {len(values)}")
    return list(values) * n if len(values) == 1 else list(values)


def _ids(given: Sequence[str], n: int) -> list[str]:
    """One id per picture; one for all of them, or none, is numbered."""
    if len(given) <= 1 and len(given) < n:
        return [f"{next(iter(given), 'picture')} {i + 1}" for i in range(n)]
    return _each(given, n, "id")


def _chains(widget: Sequence[str]) -> list[str]:
    """The chains of the widget's lines in the engine's own spelling; one empty chain where there is none."""
    lines = [line.strip() for line in widget[0].splitlines() if line.strip()]
    try:
        return list(dict.fromkeys(",".join(map(str, parse("" if c == "none" else c))) for c in lines)) or [""]
    except InputError:
        return lines  # as typed, for `validate_inputs` to say what is wrong
