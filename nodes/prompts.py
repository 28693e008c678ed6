"""Instructions that a protection was not made for."""

from __future__ import annotations

import os
from typing import Any

from comfy_api.latest import io

from sifm_core.data.prompts import TEMPLATES, from_model, from_templates
from sifm_core.errors import JudgeError

from ._inputs import choice_problem, credentials, prompt_input, prompt_problem, seed_input


class SifmUnseenPrompts(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        model = io.String.Input("model", default="llama3.1", tooltip="A language model of the server.")
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
                        io.DynamicCombo.Option("openai", [model, caption, *credentials()]),
                    ],
                    tooltip="A list of our own, or a language model, which is not shown the picture.",
                ),
            ],
            outputs=[io.String.Output("prompts", tooltip="One a line; edit them as you like. For Attack Plan.")],
            has_intermediate_output=True,
        )

    @classmethod
    def validate_inputs(cls, prompt: str | None = None, source: Any = None) -> bool | str:
        problem = choice_problem("source", source, ("templates", "openai"))
        return prompt_problem(prompt) if problem is True else problem

    @classmethod
    def execute(cls, prompt: str, category: str, count: int, seed: int, source: dict[str, Any]) -> io.NodeOutput:
        if source["source"] == "templates":
            chosen = from_templates(prompt.strip(), category, count, seed)
        else:
            about = {key: source[key] for key in ("model", "base_url", "key_variable")}
            chosen = from_model(prompt.strip(), source["caption"], lambda text: _ask(text, seed=seed, **about), count)
        text = "\n".join(chosen)
        return io.NodeOutput(text, ui={"text": [text]})


def _ask(question: str, *, model: str, base_url: str, key_variable: str, seed: int) -> str:
    """The language model's answer; JudgeError, without the key, where there is none."""
    try:
        import openai
    except ImportError:
        raise JudgeError("a language model needs the package openai: pip install openai; or use templates") from None
    key = os.environ.get(key_variable, "") or "none"
    client = openai.OpenAI(api_key=key, base_url=base_url, timeout=120, max_retries=2)
    try:
        answer = client.chat.completions.create(
            model=model, messages=[{"role": "user", "content": question}], seed=seed % 2**31
        )
        return answer.choices[0].message.content or ""
    except (openai.OpenAIError, AttributeError, IndexError) as error:
        said = str(error).replace(key, "[key]")
        raise JudgeError(f"{model} at {base_url} gave no answer ({said}); try again or use templates") from None
