"""What an attacker does to a protected picture before editing it."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io
from torch import Tensor

from sifm_core import purify
from sifm_core.purify import PURIFIERS, Kind

from . import sockets
from ._comfy import ManagedEditor, engine_room, reporter, to_comfy, to_engine
from ._inputs import choice_problem, seed_input

WITH_EDITOR = ("vae_round_trip", "diffpure", "gridpure", "impress")
"""Purifiers that use the editor's networks."""


class SifmPurify(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        chain = io.String.Input(
            "chain",
            default="jpeg:75,resize:0.5",
            tooltip="Names with their own setting (jpeg:75), with a strength from 0 to 1 (jpeg@0.5), or alone.",
        )
        return io.Schema(
            node_id="SIFM_Purify",
            display_name="SIFM Purify",
            category="SIFM",
            description="What an attacker does first to remove a protection: compression, scaling, noise, diffusion.",
            search_aliases=["jpeg", "diffpure", "gridpure", "impress", "adverse cleaner", "remove protection", "blur"],
            inputs=[
                io.Image.Input("image", tooltip="The protected picture; use the same on the unprotected one."),
                io.DynamicCombo.Input(
                    "purifier",
                    options=[
                        *(io.DynamicCombo.Option(name, [_strength(kind)]) for name, kind in PURIFIERS.items()),
                        io.DynamicCombo.Option("chain", [chain]),
                    ],
                    tooltip="One purifier with its strength, or several in a row.",
                ),
                seed_input(),
                sockets.Editor.Input(
                    "editor", optional=True, tooltip=f"Lends its networks to {', '.join(WITH_EDITOR)}."
                ),
                io.String.Input(
                    "upscaler",
                    default="",
                    optional=True,
                    advanced=True,
                    tooltip="For noisy_upscale: folder of a diffusers upscaler; empty: the x4 upscaler, if it is here.",
                ),
            ],
            outputs=[
                io.Image.Output("image", tooltip="In the size of the input, on the 8-bit grid."),
                io.String.Output("chain", tooltip="What was done, spelled out; fits Attacker Edit's purifier."),
            ],
        )

    @classmethod
    def validate_inputs(cls, purifier: Any = None) -> bool | str:
        return choice_problem("purifier", purifier, [*PURIFIERS, "chain"])

    @classmethod
    def execute(
        cls, image: Tensor, purifier: dict[str, Any], seed: int, editor: ManagedEditor | None = None, upscaler: str = ""
    ) -> io.NodeOutput:
        name = purifier["purifier"]
        stages = purify.parse(purifier["chain"]) if name == "chain" else (purify.at(name, purifier["strength"]),)
        picture = to_engine(image)
        room = engine_room() if editor is None or not needs_editor(stages) else editor.at_work([""], picture)
        with room as engine:
            purified = purify.apply(
                picture,
                stages,
                editor=engine,
                upscaler=upscaler or None,
                seed=seed,
                demonstration=editor is not None and editor.demonstration,
                on_step=reporter(),
            )
        return io.NodeOutput(to_comfy(to_engine(to_comfy(purified))), ",".join(map(str, stages)))


def needs_editor(stages: Any) -> bool:
    """Does one of the stages use an editor's networks?"""
    return any(stage.name in WITH_EDITOR for stage in stages)


def _strength(kind: Kind) -> io.Input:
    standard = (kind.standard - kind.mildest) / (kind.strongest - kind.mildest)
    return io.Float.Input(
        "strength",
        default=round(standard, 3),
        min=0.0,
        max=1.0,
        step=0.001,
        round=False,
        tooltip=f"0 to 1: {kind.meaning} from {kind.mildest:g} to {kind.strongest:g}; as usual at {standard:.2g}.",
    )
