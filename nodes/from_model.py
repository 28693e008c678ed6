"""An editor from what is loaded already: MODEL, VAE and CLIP."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from sifm_core.errors import InputError

from . import sockets
from ._comfy import engine_room
from .native.editor import NativeEditor, Sampling
from .native.gradients import resident, resident_in
from .native.managed import NativeManaged
from .native.recipes import RECIPES, recipe_of


class SifmEditorFromModel(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        from comfy.samplers import SAMPLER_NAMES, SCHEDULER_NAMES

        folded: dict[str, Any] = {"optional": True, "advanced": True}

        def usual(kind: Any, name: str, tooltip: str, *, step: float, **rest: Any) -> io.Input:
            zero = type(step)(0)
            told = f"{tooltip}; 0: as usual with this recipe."
            made: io.Input = kind(name, default=zero, min=zero, step=step, tooltip=told, **rest)
            return made

        return io.Schema(
            node_id="SIFM_EditorFromModel",
            display_name="SIFM Editor from Model",
            category="SIFM",
            description="Protect against the very model that is loaded in this graph, with its LoRAs and your sampler.",
            search_aliases=[
                "checkpoint",
                "single file",
                "lora",
                "gguf",
                "fp8",
                "kontext",
                "qwen edit",
                "flux 2",
                "sdxl",
            ],
            inputs=[
                io.Model.Input("model", tooltip="From any loader, with LoRAs and patches as you use them."),
                io.Vae.Input("vae", tooltip="The VAE with which this model is used."),
                io.Clip.Input("clip", optional=True, tooltip="Reads the instructions; or connect conditionings."),
                io.Conditioning.Input(
                    "positive",
                    optional=True,
                    tooltip="An instruction that is encoded already, in place of what prompts say.",
                ),
                io.Conditioning.Input("negative", optional=True, tooltip="In place of the empty text."),
                io.Combo.Input(
                    "recipe",
                    options=["auto", *RECIPES],
                    tooltip="How the picture enters the model; auto: as the models of its class are usually run.",
                ),
                usual(io.Float.Input, "cfg", "How closely to follow the text", max=100.0, step=0.1),
                usual(io.Int.Input, "steps", "Of the attacker's sampler", max=1000, step=1),
                usual(io.Float.Input, "denoise", "How much of the schedule the attacker runs", max=1.0, step=0.01),
                io.Combo.Input(
                    "sampler_name", options=SAMPLER_NAMES, default="euler", tooltip="The attacker's.", **folded
                ),
                io.Combo.Input(
                    "scheduler", options=SCHEDULER_NAMES, default="simple", tooltip="The attacker's.", **folded
                ),
                usual(io.Int.Input, "size", "Longer side at which pictures are edited", max=8192, step=8, **folded),
                io.Mask.Input("mask", optional=True, tooltip="For inpainting: white is what the attacker repaints."),
                io.Sampler.Input("sampler", optional=True, tooltip="In place of sampler_name."),
                io.Sigmas.Input("sigmas", optional=True, tooltip="In place of steps, denoise and scheduler."),
            ],
            outputs=[sockets.Editor.Output("editor")],
        )

    @classmethod
    def execute(
        cls,
        model: Any,
        vae: Any,
        recipe: str,
        cfg: float,
        steps: int,
        denoise: float,
        sampler_name: str = "euler",
        scheduler: str = "simple",
        size: int = 0,
        clip: Any = None,
        positive: Any = None,
        negative: Any = None,
        mask: Any = None,
        sampler: Any = None,
        sigmas: Any = None,
    ) -> io.NodeOutput:
        from comfy.samplers import sampler_object

        with engine_room():
            chosen = recipe_of(model.model, recipe)
            if chosen.needs_mask and mask is None:
                raise InputError("mask: expected what the attacker repaints, got none: connect a MASK")
            sampling = Sampling(
                sampler or sampler_object(sampler_name),
                scheduler,
                steps or chosen.steps,
                cfg or chosen.cfg,
                denoise or chosen.denoise,
                None if sigmas is None else sigmas.clone(),
            )
            model, vae = resident(model), resident_in(vae, "first_stage_model")
            editor = NativeEditor(
                chosen, model, vae, clip, sampling, positive=positive, negative=negative, size=size, mask=mask
            )
        return io.NodeOutput(NativeManaged(editor))
