"""Instructions that a protection was not made for."""

from __future__ import annotations

import json
import os
import random
import re
from typing import Any

from comfy_api.latest import io

from sifm_core.errors import JudgeError

from ._inputs import choice_problem, credentials, prompt_input, prompt_problem, seed_input

TEMPLATES: dict[str, tuple[str, ...]] = {
    "any": (
        "turn it into a watercolor painting",
        "make it a black and white photograph",
        "make it night",
        "cover everything with snow",
        "make it look like a comic book",
        "set it on fire",
        "add heavy fog",
        "make it look like a vintage photograph",
        "add a rainbow",
        "flood the scene with water",
    ),
    "portrait": (
        "give the person a long beard",
        "make the person look very old",
        "dress the person in a suit of armor",
        "turn the person into a zombie",
        "put sunglasses on the person",
        "give the person bright blue hair",
        "turn the person into a statue of marble",
        "add a crown",
    ),
    "landscape": (
        "make it autumn",
        "turn the ground into a desert",
        "add a thunderstorm",
        "put a castle into the background",
        "let it be sunset",
        "fill the sky with hot air balloons",
        "turn it into a city of the future",
        "cover it with a thick jungle",
    ),
    "artwork": (
        "make it a pencil sketch",
        "paint it in the style of Van Gogh",
        "turn it into a mosaic",
        "make it a stained glass window",
        "turn it into pixel art",
        "make it look like carved wood",
        "change the colors to neon",
        "turn it into a photograph",
    ),
}
"""Category -> instructions that make sense for nearly every picture of it."""
_ASK = """Write {count} instructions for a text-guided image editor, such as "make it night".
They are for a picture of the category "{category}". Each must ask for something clearly different from the others and
from this one: {prompt}
At most 12 words each, one change each, nothing that needs to see the picture.
Answer with a JSON array of {count} strings and nothing else."""


class SifmUnseenPrompts(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SIFM_UnseenPrompts",
            display_name="SIFM Generate Unseen Prompts",
            category="SIFM",
            description="Instructions that differ from the one a picture is protected against: will an attacker who "
            "asks for something else be stopped too?",
            search_aliases=["generalization", "llm prompts", "attack prompts", "paraphrase", "instructions"],
            inputs=[
                prompt_input("The instruction that the protection is made for."),
                io.Combo.Input("category", options=[*TEMPLATES], tooltip="What the picture shows."),
                io.Int.Input("count", default=5, min=1, max=8, tooltip="How many; the paper has five."),
                seed_input(),
                io.DynamicCombo.Input(
                    "source",
                    options=[
                        io.DynamicCombo.Option("templates", []),
                        io.DynamicCombo.Option(
                            "openai",
                            [
                                io.String.Input("model", default="llama3.1", tooltip="A language model of the server."),
                                *credentials(),
                            ],
                        ),
                    ],
                    tooltip="A list of our own, or a language model, which is told the instruction but not shown the "
                    "picture.",
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
            offered = list(TEMPLATES[category]) + (list(TEMPLATES["any"]) if category != "any" else [])
            random.Random(f"{seed} {prompt}").shuffle(offered)
        else:
            asked = _ASK.format(count=count, category=category, prompt=json.dumps(prompt))
            offered = _ask(asked, seed=seed, **{key: value for key, value in source.items() if key != "source"})
        chosen = distinct(prompt, offered)[:count]
        if len(chosen) < count:
            raise JudgeError(f"expected {count} instructions unlike {prompt!r} and each other, got {len(chosen)}")
        text = "\n".join(chosen)
        return io.NodeOutput(text, ui={"text": [text]})


def distinct(prompt: str, offered: list[str]) -> list[str]:
    """What is offered, in order, without what shares most of its words with the prompt or with an earlier one."""
    chosen: list[str] = []
    for text in (" ".join(line.split()) for line in offered):
        if text and all(_likeness(text, other) < 0.5 for other in [prompt, *chosen]):
            chosen.append(text)
    return chosen


_COMMON = {
    *re.findall(r"\w+", "a an the it its to of in into with make turn add put give let be look like as is and on")
}
"""Words that say nothing about what is to change."""


def _likeness(one: str, other: str) -> float:
    """Share of the words that both have, 0 to 1 (Jaccard)."""
    a, b = (set(re.findall(r"\w+", text.lower())) - _COMMON for text in (one, other))
    return len(a & b) / len(a | b) if a | b else float(one == other)


def _ask(text: str, *, model: str, base_url: str, key_variable: str, seed: int) -> list[str]:
    """The language model's list; JudgeError, without the key, for anything else."""
    try:
        import openai
    except ImportError:
        raise JudgeError("a language model needs the package openai: pip install openai; or use templates") from None
    key = os.environ.get(key_variable, "") or "none"
    client = openai.OpenAI(api_key=key, base_url=base_url, timeout=120, max_retries=2)
    try:
        answer = client.chat.completions.create(
            model=model, messages=[{"role": "user", "content": text}], seed=seed % 2**31
        )
        found = json.loads(re.sub(r"^```(json)?|```$", "", (answer.choices[0].message.content or "").strip()))
    except (openai.OpenAIError, ValueError, AttributeError, IndexError) as error:
        said = str(error).replace(key, "[key]")
        raise JudgeError(
            f"{model} at {base_url} gave no list of instructions ({said}); try again or use templates"
        ) from None
    if not isinstance(found, list) or not all(isinstance(item, str) for item in found):
        raise JudgeError(f"{model} gave no list of texts; try again, another model, or templates")
    return found
