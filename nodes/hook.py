"""Choose which inner features SIFM disturbs."""

from __future__ import annotations

from typing import Any, get_args

from comfy_api.latest import io

from sifm_core import methods
from sifm_core.errors import unknown
from sifm_core.features import resolve

from . import sockets
from ._comfy import ManagedEditor
from ._inputs import choice_problem

PRESETS = ("deep", "mid", "last", "all", "up", "down", "early")
"""The names in all editors' `layer_presets`, the default first; up and down belong to U-Nets, early to transformers."""


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
                    tooltip="A preset or your own module paths. U-Nets (InstructPix2Pix, HQ-Edit) have deep, mid, "
                    "last, all, up, down; Stable Diffusion 3 has deep, mid, last, all, early.",
                ),
                io.String.Input("timesteps", default="10", tooltip=options["timesteps"].doc),
                io.Combo.Input(
                    "aggregation",
                    options=list(get_args(options["aggregation"].type)),
                    default=options["aggregation"].default,
                    tooltip=options["aggregation"].doc,
                    advanced=True,
                ),
                io.Combo.Input(
                    "entrances",
                    options=list(get_args(options["entrances"].type)),
                    default=options["entrances"].default,
                    tooltip="Of Qwen-Image-Edit and LongCat. " + options["entrances"].doc,
                    optional=True,
                    advanced=True,
                ),
            ],
            outputs=[
                sockets.Hook.Output("hook"),
                io.String.Output("matches", tooltip="The module paths that will be hooked, one per line."),
            ],
            has_intermediate_output=True,
        )

    @classmethod
    def validate_inputs(cls, timesteps: str | None = None, layers: Any = None) -> bool | str:
        return choice_problem("layers", layers, (*PRESETS, "custom"))

    @classmethod
    def execute(
        cls,
        editor: ManagedEditor,
        layers: dict[str, Any],
        timesteps: str,
        aggregation: str,
        entrances: str = "vae",
    ) -> io.NodeOutput:
        engine, chosen = editor.editor, layers["layers"]
        patterns = layers["patterns"].replace(",", "\n").split() if chosen == "custom" else [chosen]
        if chosen != "custom" and chosen not in engine.layer_presets:
            raise unknown(f"layer preset of {engine.name} ({engine.family})", chosen, engine.layer_presets)
        paths = resolve(engine.net, [path for name in patterns for path in engine.layer_presets.get(name, (name,))])
        hook = {"layers": ",".join(patterns), "timesteps": timesteps.strip(), "aggregation": aggregation}
        hook |= {} if entrances == "vae" else {"entrances": entrances}
        return io.NodeOutput(hook, "\n".join(paths), ui={"sifm_matches": list(paths)})
