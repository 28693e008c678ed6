"""Edit a picture as an attacker would."""

from __future__ import annotations

import time
from typing import Any

from comfy_api.latest import io
from torch import Tensor

from sifm_core import pipeline, purify
from sifm_core.types import Image

from . import sockets
from ._attacks import Edit
from ._comfy import ManagedEditor, reporter, to_comfy, to_engine
from ._inputs import chain_problem, prompt_input, prompt_problem, seed_input
from ._store import editor_id, recall


class SifmAttackerEdit(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        default = {"default": 0.0, "min": 0.0, "max": 30.0, "step": 0.1, "optional": True, "advanced": True}
        return io.Schema(
            node_id="SIFM_AttackerEdit",
            display_name="SIFM Attacker Edit",
            category="SIFM",
            description="What the editor makes of a picture. Use one seed for the clean and the protected picture.",
            search_aliases=["edit image", "attack", "instruct pix2pix", "img2img"],
            inputs=[
                io.Image.Input("image"),
                sockets.Editor.Input("editor"),
                prompt_input("The attacker's instruction."),
                seed_input(),
                io.Int.Input(
                    "steps",
                    default=0,
                    min=0,
                    max=1000,
                    optional=True,
                    advanced=True,
                    tooltip="Denoising steps; 0: the editor's own.",
                ),
                io.Float.Input(
                    "guidance_scale", tooltip="How closely to follow the text; 0: the editor's own.", **default
                ),
                io.Float.Input(
                    "image_guidance_scale", tooltip="How closely to follow the picture; 0: the editor's own.", **default
                ),
                io.String.Input(
                    "purifier",
                    default="",
                    optional=True,
                    advanced=True,
                    tooltip="What the attacker does to the picture first, such as jpeg:75,resize:0.5; empty: nothing.",
                ),
            ],
            outputs=[
                io.Image.Output("edited", tooltip="In the size of the input."),
                sockets.Edit.Output("edit", tooltip="For Results Table."),
            ],
        )

    @classmethod
    def validate_inputs(cls, prompt: str | None = None, purifier: str | None = None) -> bool | str:
        problem = prompt_problem(prompt)
        return chain_problem(purifier) if problem is True else problem

    @classmethod
    def execute(
        cls, image: Tensor, editor: ManagedEditor, prompt: str, seed: int, purifier: str = "", **options: Any
    ) -> io.NodeOutput:
        picture, prompt = to_engine(image), prompt.strip()
        chosen = {name: value for name, value in options.items() if value}
        stages = purify.parse(purifier)

        def compute() -> tuple[Image, dict[str, Any]]:
            start = time.perf_counter()
            with editor.at_work([prompt], picture) as engine:
                shared: dict[str, Any] = {"editor": engine, "seed": seed, "demonstration": editor.demonstration}
                attacked = purify.apply(picture, stages, on_step=reporter(), **shared)
                edited = pipeline.edit(attacked, prompt=prompt, on_step=reporter(), **shared, **chosen)
            return edited, {"seconds": time.perf_counter() - start}

        uses = {
            "picture": picture,
            "prompt": prompt,
            "seed": seed,
            "options": chosen,
            "editor": editor_id(editor.editor),
            **({"demonstration": True} if editor.demonstration else {}),
        }
        edited, about = recall("edit", uses | {"purifier": [list(stage) for stage in stages]}, compute)
        shown = to_comfy(edited)
        made = Edit(shown.movedim(-1, 1), editor.editor.name, prompt, seed, chosen, about["seconds"] / len(shown))
        return io.NodeOutput(shown, made)
