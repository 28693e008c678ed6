"""Instructions that a protection was not made for."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io
from torch import Tensor

from sifm_core.data.build import asked
from sifm_core.data.prompts import TEMPLATES, from_model, from_templates
from sifm_core.errors import InputError
from sifm_core.judges import REMOTE

from ._comfy import reporter, to_engine
from ._inputs import choice_problem, model_inputs, prompt_input, prompt_problem, seed_input
from .judge import load

SOURCES = ("templates", *REMOTE)
LOCAL = "qwen2.5vl"


class SifmUnseenPrompts(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        caption = io.String.Input("caption", default="", tooltip="What the picture shows, in words; may be empty.")
        return io.Schema(
            node_id="SIFM_UnseenPrompts",
            display_name="SIFM Generate Unseen Prompts",
            category="SIFM",
            description="Instructions that differ from the one a picture is protected against: will an attacker who "
            "asks for something else be stopped too?",
            search_aliases=["generalization", "llm prompts", "attack prompts", "paraphrase", "instructions"],
            inputs=[
                prompt_input("The instruction that the protection is made for."),
                io.Combo.Input("category", options=[*TEMPLATES, "any"], tooltip="What the picture shows."),
                io.Int.Input("count", default=5, min=1, max=8, tooltip="How many; the paper has five."),
                seed_input(),
                io.DynamicCombo.Input(
                    "source",
                    options=[
                        io.DynamicCombo.Option("templates", []),
                        *(io.DynamicCombo.Option(name, model_inputs(name, "fast", LOCAL, caption)) for name in REMOTE),
                    ],
                    tooltip="A list of our own, or a language model, whose answers are remembered, so that the same is "
                    "not asked twice.",
                ),
                io.Image.Input(
                    "image",
                    optional=True,
                    tooltip="Shown to the language model, which must be able to see. Without it, the caption counts.",
                ),
            ],
            outputs=[io.String.Output("prompts", tooltip="One a line; edit them as you like. For Attack Plan.")],
            has_intermediate_output=True,
        )

    @classmethod
    def validate_inputs(cls, prompt: str | None = None, source: Any = None) -> bool | str:
        problem = choice_problem("source", source, SOURCES)
        return prompt_problem(prompt) if problem is True else problem

    @classmethod
    def execute(
        cls, prompt: str, category: str, count: int, seed: int, source: dict[str, Any], image: Tensor | None = None
    ) -> io.NodeOutput:
        instruction, given = prompt.strip(), dict(source)
        chosen, caption = given.pop("source"), given.pop("caption", "")
        if chosen == "templates":
            found = from_templates(instruction, category, count, seed)
        else:
            if image is not None and len(image) > 1:
                raise InputError(f"image: expected one picture, or a list of single ones, got a batch of {len(image)}")
            model, pixels = load(chosen, **given, seed=seed % 2**31), None if image is None else to_engine(image)[0]

            def ask(question: str) -> str:
                return asked(model, question, instruction, pixels, on_step=reporter()).text

            try:
                found = from_model(instruction, caption, ask, count)
            except InputError as error:
                raise InputError(f"{error}; try another seed or model, or templates") from None
        text = "\n".join(found)
        return io.NodeOutput(text, ui={"text": [text]})
