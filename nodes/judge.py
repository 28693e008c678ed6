"""Ask a judge whether edits failed."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import folder_paths
from comfy_api.latest import io
from torch import Tensor

from sifm_core.errors import ImageError, InputError, JudgeError, SifmError
from sifm_core.format import percent
from sifm_core.judges import BACKENDS, REMOTE, load_judge
from sifm_core.judges.client import check_base_url
from sifm_core.judges.here import offers
from sifm_core.judges.models import family_of
from sifm_core.miniature import benchmark
from sifm_core.types import Case, Verdict
from sifm_core.verdicts import QUESTIONS

from . import sockets
from ._cards import ARMS, Seen, card
from ._clip_judge import judge_of
from ._comfy import engine_room, reporter, to_engine
from ._inputs import check_key, choice_problem, model_inputs, prompt_input, prompt_problem
from ._shown import picture
from ._store import ANNOTATIONS, digest, home
from ._text import markdown, table

KIN = (
    "This judge is of the family {family}: where a model of that family reads the prompts for the editor, it may miss "
    "what misleads the editor, or be misled with it."
)
LOCAL = "llava"
"""The model of a server of one's own that stands in the widget first."""


class SifmMllmJudge(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SIFM_MLLMJudge",
            display_name="SIFM MLLM Judge",
            category="SIFM",
            description="One judge's verdicts: does the edit miss the instruction, is it visibly degraded? "
            "The judge sees each edit alone and is not told what protected it.",
            search_aliases=[*REMOTE, "claude", "ollama", "vlm", "llm judge", "evaluate edit", "verdict"],
            inputs=[
                io.Image.Input("source", tooltip="The unprotected picture."),
                prompt_input("The instruction that the edits should follow."),
                io.Image.Input("edited", tooltip="The edit of the protected picture."),
                io.Image.Input(
                    "clean_edit",
                    optional=True,
                    tooltip="The edit of the unprotected picture: how often the editor fails by itself.",
                ),
                io.Image.Input(
                    "control_edit",
                    optional=True,
                    tooltip="The edit of a picture with plain noise of the same budget.",
                ),
                io.DynamicCombo.Input(
                    "judge",
                    options=_backends(),
                    tooltip="Who judges. The miniature's judges know the miniature's pictures and nothing else.",
                ),
                sockets.Judge.Input(
                    "chosen", optional=True, tooltip="From Editors and Judges; takes the place of the choice above."
                ),
            ],
            outputs=[
                sockets.Verdicts.Output("verdicts", tooltip="For ISR Aggregate."),
                io.String.Output("table", tooltip="The verdicts with their reasons, as a Markdown table."),
            ],
            has_intermediate_output=True,
        )

    @classmethod
    def validate_inputs(cls, prompt: str | None = None, judge: Any = None, chosen: Any = False) -> bool | str:
        problem = choice_problem("judge", judge, [backend.key for backend in _backends()])
        if (
            problem is True
            and chosen is False
            and (lacks := _lacks(judge["judge"] if isinstance(judge, dict) else judge))
        ):
            problem = f"judge: {lacks}; or choose another judge"
        return prompt_problem(prompt) if problem is True else problem

    @classmethod
    def fingerprint_inputs(cls, judge: Any = None, **inputs: Any) -> float:
        """Judges over a network are asked in every run, since one may have been away; what they said is remembered.

        People's answers change with their file.
        """
        chosen = judge["judge"] if isinstance(judge, dict) else judge
        if chosen == "human":
            file = home() / ANNOTATIONS
            return file.stat().st_mtime if file.exists() else 0.0
        known = chosen in ("miniature", "clip") and "chosen" not in inputs
        return 0.0 if known else float("nan")  # a new one: ComfyUI takes the same object for equal

    @classmethod
    def execute(
        cls,
        source: Tensor,
        prompt: str,
        edited: Tensor,
        judge: dict[str, Any],
        clean_edit: Tensor | None = None,
        control_edit: Tensor | None = None,
        chosen: dict[str, Any] | None = None,
    ) -> io.NodeOutput:
        judge = chosen or judge
        sources = to_engine(source)
        given = {"protected": edited, "clean": clean_edit, "control": control_edit}
        edits = {arm: to_engine(pictures) for arm, pictures in given.items() if pictures is not None}
        for arm, pictures in edits.items():
            if pictures.shape != sources.shape:
                expected, got = (_size(x) for x in (sources, pictures))
                raise ImageError(f"{arm} edits: expected as many and as large as the sources ({expected}), got {got}")
        cases = [Case(s, e, prompt) for pictures in edits.values() for s, e in zip(sources, pictures, strict=True)]
        with engine_room():
            answers = _ask(judge, cases)
        seen = iter(Seen(v, prompt, picture(c.source), picture(c.edited)) for c, v in zip(cases, answers, strict=True))
        found = {arm: [next(seen) for _ in pictures] for arm, pictures in edits.items()}
        rows = [_row(arm, i, each.verdict) for arm, listed in found.items() for i, each in enumerate(listed)]
        text = markdown(table(["edit of", "picture", "mismatch", "degraded", "confidence", "why"], rows))
        if family := family_of(answers[0].model_requested) if judge["judge"] == "clip" and answers else "":
            text += f"\n\n{KIN.format(family=family)}"
        titles = {arm: ARMS[arm] if len(edits) > 1 else "" for arm in ARMS if arm in edits}
        cards = [card([each], title) for arm, title in reversed(titles.items()) for each in found[arm]]
        return io.NodeOutput(found, text, ui={"sifm_cards": cards})


def _backends() -> list[io.DynamicCombo.Option]:
    """What can judge, with its settings. A key is read from the environment, so it never stands in a workflow."""
    return [
        io.DynamicCombo.Option(
            "miniature",
            [
                io.Combo.Input(
                    "model",
                    options=["conv", "patch", "renderer"],
                    tooltip="Two trained networks; the renderer knows the truth about the benchmark's pictures.",
                )
            ],
        ),
        *(io.DynamicCombo.Option(name, model_inputs(name, "strong", LOCAL)) for name in REMOTE),
        io.DynamicCombo.Option(
            "clip",
            [
                io.Clip.Input(
                    "clip",
                    tooltip="A language model that sees, as Generate Text takes it: Qwen3-VL, Gemma. Of "
                    "the family that reads the editor's prompts it may miss what misleads the editor.",
                )
            ],
        ),
        io.DynamicCombo.Option(
            "human",
            [
                io.String.Input(
                    "model",
                    default="",
                    tooltip="The name under which a person has judged a run in the sidebar; what was not judged is "
                    "unclear.",
                )
            ],
        ),
    ]


def _lacks(backend: str) -> str:
    """What is missing for a judge to be asked at all, with the cure; "" for nothing."""
    offer = next(offer for offer in offers() if offer.name == backend)
    return "" if offer.usable else f"the {backend} judges: {'; '.join(offer.missing or (offer.about,))}"


def _ask(judge: dict[str, Any], cases: list[Case]) -> list[Verdict]:
    """The judge's verdicts; all unclear, with the reason, where the judge cannot be set up.

    So what came before, often hours of work, is not lost: the judge can be asked later.
    """
    try:
        chosen = load(**judge)
    except SifmError as error:
        if not (isinstance(error, JudgeError) or judge["judge"] == "human"):
            raise
        model = judge.get("model", "")
        return [Verdict(f"{judge['judge']}:{model}", "error", reasons=str(error), model_requested=model)] * len(cases)
    if judge.get("model") == "renderer":
        cases = [replace(case, truth=_truth(case)) for case in cases]
    return chosen.judge(cases, on_step=reporter())


def _truth(case: Case) -> Any:
    """The renderer's knowledge of a benchmark picture and its instruction, or None for any other."""
    item = _benchmark().get(digest(case.source))
    try:
        return item and item.truth(case.prompt)
    except InputError:
        return None


@cache
def _benchmark() -> dict[str, Any]:
    return {digest(item.image): item for item in benchmark.load()}


def load(
    judge: str, model: str = "", base_url: str = "", max_cost: float = 0.0, clip: Any = None, **options: Any
) -> Any:
    """The judge that the widgets describe, or that a CLIP object is; paid answers are kept in ComfyUI's user folder.

    Raises InputError where a workflow would send a key of this server to a host that is not the key's own.
    """
    if judge == "clip":
        return judge_of(clip)
    if judge == "miniature":
        return load_judge(f"miniature:{model}")
    if judge == "human":
        return load_judge(f"human:{home() / ANNOTATIONS}#{model.strip().lower()}")
    address = base_url.strip()
    if BACKENDS[judge].keyless:
        check_key(options["key_variable"], check_base_url(address or BACKENDS[judge].address))
    answers = Path(folder_paths.get_user_directory(), "sifm", "judges.sqlite")
    answers.parent.mkdir(parents=True, exist_ok=True)
    return load_judge(f"{judge}:{model}", base_url=address, cache=answers, max_cost=max_cost or None, **options)


def _row(arm: str, i: int, verdict: Verdict) -> list[str]:
    silent = "unclear" if verdict.state == "ok" else verdict.state
    words = {True: "yes", False: "no", None: silent}
    answers = [words[verdict.answer(question)] for question in QUESTIONS]
    return [arm, str(i + 1), *answers, percent(verdict.confidence), verdict.reasons]


def _size(pictures: Tensor) -> str:
    return f"{len(pictures)} of {pictures.shape[-1]}x{pictures.shape[-2]}"
