"""Protect pictures: SIFM and the baselines."""

from __future__ import annotations

import inspect
from typing import Any

from comfy_api.latest import io
from torch import Tensor

from sifm_core import methods, pipeline
from sifm_core.images import perturbation_view, resize
from sifm_core.types import Image

from . import sockets
from ._attacks import Protection
from ._comfy import MARKS, ManagedEditor, reporter, to_comfy, to_engine, to_masks
from ._inputs import (
    budget_inputs,
    choice_problem,
    eot_problem,
    loop_inputs,
    loop_options,
    marks_input,
    method_inputs,
    method_options,
    prompt_input,
    prompt_problem,
)
from ._store import editor_id, hash_of, recall

BASELINES = [name for name in methods.METHODS if name != "sifm" and not methods.problem(name)]
TAKEN = tuple(inspect.signature(pipeline.immunize).parameters)
"""Names that belong to the loop: an option of the same name keeps its default."""
ROWS = "rows"
"""An option of several methods with one widget for all, the last one, so that saved graphs keep their places."""
ENCODER_ALONE = ("photoguard_encoder", "editshield")
"""Methods that never run the noise predictor."""
HOOKED = ("layers", "timesteps", "aggregation", "entrances")
"""SIFM's options that the Feature Hook node sets."""


class SifmImmunize(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SIFM_Immunize",
            display_name="SIFM Immunize",
            category="SIFM",
            description="Change a picture slightly, so that the editor's inner features fail the instruction.",
            search_aliases=["immunize", "protect image", "cloak", "adversarial", "anti edit", "photoguard", "glaze"],
            inputs=[
                *_common_inputs(),
                sockets.Hook.Input(
                    "hook", optional=True, tooltip="Layers and timesteps; without it the editor's deep layers."
                ),
                *method_inputs("sifm", skip=(*HOOKED, ROWS)),
                *loop_inputs(),
                marks_input(),
            ],
            outputs=_outputs(),
            has_intermediate_output=True,
        )

    @classmethod
    def validate_inputs(cls, prompt: str | None = None, eot: str | None = None) -> bool | str:
        problem = prompt_problem(prompt)
        return eot_problem(eot) if problem is True else problem

    @classmethod
    def execute(
        cls,
        image: Tensor,
        editor: ManagedEditor,
        prompt: str,
        seed: int,
        mask: Tensor | None = None,
        hook: dict[str, Any] | None = None,
        also: ManagedEditor | None = None,
        mask_marks: str = MARKS[0],
        **rest: Any,
    ) -> io.NodeOutput:
        loop = {"seed": seed, "mask_marks": mask_marks, **loop_options(rest)}
        return _immunize(
            image, editor, prompt, "sifm", method_options("sifm", rest) | (hook or {}), mask=mask, also=also, **loop
        )


class SifmBaselineImmunize(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SIFM_BaselineImmunize",
            display_name="SIFM Baseline Immunize",
            category="SIFM",
            description="Protect a picture with another method, or with plain noise of the same budget as a control.",
            search_aliases=["photoguard", "encoder attack", "random noise control", "baseline", "protect image"],
            inputs=[
                *_common_inputs(),
                io.DynamicCombo.Input(
                    "method",
                    options=[
                        io.DynamicCombo.Option(name, method_inputs(name, skip=(*TAKEN, ROWS))) for name in BASELINES
                    ],
                    tooltip="Each method shows its own settings. random_noise needs neither gradient nor prompt.",
                ),
                *loop_inputs(),
                marks_input(),
            ],
            outputs=_outputs(),
            has_intermediate_output=True,
        )

    @classmethod
    def validate_inputs(cls, prompt: str | None = None, method: Any = None, eot: str | None = None) -> bool | str:
        known = choice_problem("method", method, BASELINES)
        needed = known is not True or not methods.promptless(method["method"])
        problems = (known, prompt_problem(prompt) if needed else True, eot_problem(eot))
        return next((problem for problem in problems if problem is not True), True)

    @classmethod
    def execute(
        cls,
        image: Tensor,
        editor: ManagedEditor,
        prompt: str,
        seed: int,
        method: dict[str, Any],
        mask: Tensor | None = None,
        also: ManagedEditor | None = None,
        mask_marks: str = MARKS[0],
        **rest: Any,
    ) -> io.NodeOutput:
        name = method["method"]
        options = method_options(name, {key: value for key, value in method.items() if key != "method"})
        loop = {"seed": seed, "mask_marks": mask_marks, **loop_options(rest)}
        return _immunize(image, editor, prompt, name, options, mask=mask, also=also, **loop)


def _common_inputs() -> list[io.Input]:
    return [
        io.Image.Input("image", tooltip="One picture or a batch; 8-bit values, any size."),
        sockets.Editor.Input("editor", tooltip="The editor to protect against."),
        prompt_input("An instruction that an attacker might give."),
        *budget_inputs(),
        io.Mask.Input("mask", optional=True, tooltip="Where pixels may change; black stays as it is."),
    ]


def _outputs() -> list[io.Output]:
    return [
        io.Image.Output("protected", tooltip="On the 8-bit grid and inside the budget."),
        io.Image.Output(
            "perturbation",
            tooltip="Amplified: grey is unchanged, black and white are the budget's ends (l2: the largest change).",
        ),
        sockets.Protection.Output("protection", tooltip="For Save Protected Image."),
    ]


def _immunize(
    image: Tensor,
    editor: ManagedEditor,
    prompt: str,
    method: str,
    options: dict[str, Any],
    *,
    eps: float,
    mask: Any,
    also: ManagedEditor | None,
    mask_marks: str = MARKS[0],
    **rest: Any,
) -> io.NodeOutput:
    original = to_engine(image)
    rows = rest.pop(ROWS, 0)
    if rows and ROWS in methods.options(method):
        options = options | {ROWS: rows}
    others = [] if also is None else [also]
    demonstration = any(managed.demonstration for managed in (editor, *others))
    mask, alpha = to_masks(image, mask, mask_marks)

    def compute() -> tuple[Image, dict[str, Any]]:
        with editor.at_work([prompt.strip(), *options.get("prompts", ())], original, others) as engine:
            size = engine.work_size(*original.shape[-2:])
            fitted: dict[str, Any] = {
                k: resize(to_engine(v), size) if isinstance(v, Tensor) else v for k, v in options.items()
            }
            layers = options.get("layers", "deep") if method == "sifm" else "deep"
            looked = None if method in ENCODER_ALONE else layers
            learns = hasattr(methods.get_method(method), "build")
            entrances = options.get("entrances", "vae")
            findings = [each.examine(original, prompt, looked, entrances) for each in (editor, *others) if learns]
            done = pipeline.immunize(
                original,
                engine,
                prompt=prompt,
                method=method,
                eps=eps,
                mask=mask,
                also=[other.editor for other in others],
                demonstration=demonstration,
                on_step=reporter(original, eps),
                **rest,
                **fitted,
            )
        settings = {**done.settings, "options": {k: _plain(v) for k, v in done.settings["options"].items()}}
        curve = {"loss": [s.loss for s in done.history], "log": [dict(s.log) for s in done.history]}
        sizes = {"linf": done.linf, "rms": done.rms, "rounding": done.rounding}
        said = {"doctor": [finding for finding in findings if finding]}
        return done.image, said | {"settings": settings, "curve": curve, "seconds": done.seconds, **sizes}

    uses = {"picture": original, "mask": mask, "prompt": prompt.strip(), "method": method, "eps": eps, **rest}
    uses |= {"demonstration": True} if demonstration else {}
    ids = [editor_id(managed.editor) for managed in (editor, *others)]
    protected, about = recall("immunize", uses | {"options": options, "editors": ids}, compute)
    settings, curve = about["settings"] | {"editor": editor.editor.name}, about["curve"]
    settings["also"] = [
        known | {"editor": other.editor.name} for known, other in zip(settings["also"], others, strict=True)
    ]
    history = [{"loss": loss, **log} for loss, log in zip(curve["loss"], curve["log"], strict=True)]
    return io.NodeOutput(
        to_comfy(protected),
        to_comfy(perturbation_view(protected, original, gain=0.5 / eps if settings["ball"] == "linf" else None)),
        Protection(original, protected, settings, about["seconds"], history, mask, alpha),
        ui={
            "sifm_curve": [{"method": method, **curve}],
            **{f"sifm_{name}": [about[name]] for name in ("linf", "rms", "rounding", "seconds")},
            "sifm_doctor": about.get("doctor", []),
        },
    )


def _plain(value: Any) -> Any:
    """A target picture by its hash."""
    return hash_of(value) if isinstance(value, Tensor) else value
