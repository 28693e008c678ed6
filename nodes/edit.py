"""Edit a picture as an attacker would."""

from __future__ import annotations

from comfy_api.latest import io
from torch import Tensor

from sifm_core import pipeline

from . import sockets
from ._comfy import ManagedEditor, reporter, to_comfy, to_engine
from ._inputs import prompt_input, prompt_problem, seed_input


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
            ],
            outputs=[io.Image.Output("edited", tooltip="In the size of the input.")],
        )

    @classmethod
    def validate_inputs(cls, prompt: str | None = None) -> bool | str:
        return prompt_problem(prompt)

    @classmethod
    def execute(cls, image: Tensor, editor: ManagedEditor, prompt: str, seed: int, **options) -> io.NodeOutput:
        picture = to_engine(image)
        chosen = {name: value for name, value in options.items() if value}
        with editor.at_work([prompt.strip()], picture) as engine:
            edited = pipeline.edit(picture, engine, prompt=prompt, seed=seed, on_step=reporter(), **chosen)
        return io.NodeOutput(to_comfy(edited))
