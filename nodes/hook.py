"""Choose which inner features SIFM disturbs."""

from __future__ import annotations

from typing import Any, get_args

from comfy_api.latest import io

from sifm_core import methods
from sifm_core.features import resolve

from . import sockets
from ._comfy import ManagedEditor
from ._inputs import choice_problem

PRESETS = ("deep", "mid", "up", "last", "down", "all")
"""The names in the editors' `layer_presets`, the default first."""


class SifmFeatureHook(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        options = methods.options("sifm")
        patterns = io.String.Input(
            "patterns",
            default="mid_block, up_blocks.0.resnets.*",
            multiline=True,
            tooltip="Module paths with wildcards, separated by commas or lines; * stays within one part of a path.",
        )
        return io.Schema(
            node_id="SIFM_FeatureHook",
            display_name="SIFM Feature Hook",
            category="SIFM",
            description="Which layers of the editor SIFM disturbs, and at which timesteps. Lists what matches.",
            search_aliases=["layers", "timesteps", "intermediate features", "unet blocks"],
            inputs=[
                sockets.Editor.Input("editor"),
                io.DynamicCombo.Input(
                    "layers",
                    options=[
                        *(io.DynamicCombo.Option(name, []) for name in PRESETS),
                        io.DynamicCombo.Option("custom", [patterns]),
                    ],
                    tooltip="A preset of the editor, or your own module paths.",
                ),
                io.String.Input("timesteps", default="10", tooltip=options["timesteps"].doc),
                io.Combo.Input(
                    "aggregation",
                    options=list(get_args(options["aggregation"].type)),
                    default=options["aggregation"].default,
                    tooltip=options["aggregation"].doc,
                    advanced=True,
                ),
            ],
            outputs=[
                sockets.Hook.Output("hook"),
                io.String.Output("matches", tooltip="The module paths that will be hooked, one per line."),
            ],
        )

    @classmethod
    def validate_inputs(cls, timesteps: str | None = None, layers: Any = None) -> bool | str:
        return choice_problem("layers", layers, (*PRESETS, "custom"))

    @classmethod
    def execute(cls, editor: ManagedEditor, layers: dict[str, Any], timesteps: str, aggregation: str) -> io.NodeOutput:
        chosen = layers["layers"]
        engine = editor.editor
        patterns = layers["patterns"].replace(",", "\n").split() if chosen == "custom" else engine.layer_presets[chosen]
        paths = resolve(engine.net, patterns)
        hook = {"layers": paths, "timesteps": timesteps.strip(), "aggregation": aggregation}
        return io.NodeOutput(hook, "\n".join(paths))
