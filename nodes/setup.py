"""One switch for what a table runs on: the miniature, or the editor and judges of the paper."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from sifm_core.errors import InputError
from sifm_core.judges.here import offers
from sifm_core.judges.models import read_models

from . import _editors, sockets
from .load import load

MINIATURES = {"instruct-pix2pix": "miniature-ip2p", "hq-edit": "miniature-hq-edit", "sd3-medium": "miniature-sd3"}
"""Editor of the paper -> the built-in one that stands for it."""
STAGES = ("miniature", "paper")


class SifmSetup(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SIFM_Setup",
            display_name="SIFM Editors and Judges",
            category="SIFM",
            description="What a comparison runs on, editors and judges alike: the embedded miniature, on any computer, "
            "or what the paper has. What is missing for it is said before anything starts.",
            search_aliases=["setup", "miniature or paper", "reproduce paper", "switch", "models", "judges"],
            inputs=[
                io.Combo.Input(
                    "run_on",
                    options=list(STAGES),
                    tooltip="miniature: editor and judges that come with the pack; its figures say nothing about real "
                    "editors. paper: the editors below and two Gemini judges, which need a key.",
                ),
                io.Combo.Input("editor", options=list(MINIATURES), tooltip="The paper's editor."),
                io.Combo.Input(
                    "other_editor",
                    options=["none", *MINIATURES],
                    optional=True,
                    advanced=True,
                    tooltip="A second one, for transfer.",
                ),
                io.String.Input(
                    "judge_models",
                    default=", ".join(_judges()),
                    optional=True,
                    advanced=True,
                    tooltip="Two Gemini models that judge on the paper's editors. The paper's own end on 1 December "
                    "2026; these take their place.",
                ),
            ],
            outputs=[
                sockets.Editor.Output("editor"),
                sockets.Editor.Output("other_editor", tooltip="The same as the first where there is no other."),
                sockets.Judge.Output("judge_1", tooltip="For MLLM Judge."),
                sockets.Judge.Output("judge_2", tooltip="For MLLM Judge."),
            ],
        )

    @classmethod
    def validate_inputs(
        cls, run_on: str = "miniature", editor: str = "", other_editor: str = "none", judge_models: str = ""
    ) -> bool | str:
        if run_on not in STAGES:
            return f"run_on: expected {' or '.join(STAGES)}, got {run_on!r}"
        if run_on == "miniature":
            return True
        named = [name for name in (editor, other_editor) if name != "none"]
        missing = [wrong for name in dict.fromkeys(named) if (wrong := _editors.problem(name))]
        gemini = next(offer for offer in offers() if offer.name == "gemini")
        if not gemini.usable:
            cures = ["in the terminal from which ComfyUI starts"] if any("not set" in m for m in gemini.missing) else []
            missing.append(" ".join([f"the Gemini judges: {'; '.join(gemini.missing)}", *cures]))
        if len(_models(judge_models)) != 2:
            missing.append("judge_models: expected two models with a comma between")
        return not missing or f"{'; '.join(missing)}. Or choose run_on: miniature, which needs nothing"

    @classmethod
    def execute(cls, run_on: str, editor: str, other_editor: str = "none", judge_models: str = "") -> io.NodeOutput:
        names = [editor, editor if other_editor == "none" else other_editor]
        if run_on == "miniature":
            names = [MINIATURES[name] for name in names]
            judges: list[dict[str, Any]] = [{"judge": "miniature", "model": model} for model in ("conv", "patch")]
        else:
            models = _models(judge_models) or list(_judges())
            if len(models) != 2:
                raise InputError("judge_models: expected two models with a comma between")
            judges = [{"judge": "gemini", "model": model} for model in models]
        loaded = {name: load(name) for name in dict.fromkeys(names)}
        return io.NodeOutput(*(loaded[name] for name in names), *judges)


def _judges() -> tuple[str, ...]:
    return tuple(read_models().role("gemini", role) for role in ("strong", "fast"))


def _models(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]
