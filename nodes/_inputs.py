"""Inputs that several nodes share, and inputs made from a method's signature."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from typing import Any, Literal, get_args, get_origin

from comfy_api.latest import io

from sifm_core import methods, purify
from sifm_core.errors import InputError
from sifm_core.judges import BACKENDS
from sifm_core.judges.models import read_models
from sifm_core.loop import LOOP, Loop, listed
from sifm_core.options import Option

from . import sockets
from ._comfy import MARKS

STARTS = {"auto": None, "yes": True, "no": False}
_LOOPBACK = re.compile(r"https?://(127\.0\.0\.1|\[::1\]|localhost)(:\d+)?(/|$)")


def prompt_input(tooltip: str) -> io.Input:
    return io.String.Input("prompt", multiline=True, default="", tooltip=tooltip)


def prompt_problem(prompt: str | None) -> bool | str:
    """True, or what is wrong with a prompt typed into its widget; one that comes through a link is None here."""
    return prompt is None or bool(prompt.strip()) or "type an instruction, such as 'make it night'"


def choice_problem(name: str, chosen: Any, known: Sequence[str]) -> bool | str:
    """True, or what is wrong with a DynamicCombo: ComfyUI does not pass on a choice that is not in its list."""
    return chosen is not None or f"{name}: expected one of {', '.join(known)}"


def model_inputs(name: str, role: str, local: str, *more: io.Input) -> list[io.Input]:
    """What a judge over a network is chosen by; ``more`` goes after the model.

    Of a provider's models the one in a ``role`` is the default, of a server's ``local``.
    """
    backend = BACKENDS[name]
    if backend.keyless:
        model = io.String.Input("model", default=local, tooltip="A model of the server, which must be able to see.")
        return [model, *more, *_credentials(backend.keys[0]), cost_input()]
    key = f"The key: {' or '.join(backend.keys)}."
    return [io.String.Input("model", default=read_models().role(name, role), tooltip=key), *more, cost_input()]


def _credentials(own: str) -> list[io.Input]:
    """Which server of OpenAI's kind, and the *name* of the key for it: a key itself never stands in a workflow."""
    found = {name for name in os.environ if name.endswith("API_KEY")}
    return [
        io.String.Input(
            "base_url",
            default="http://127.0.0.1:11434/v1",
            tooltip="Any server that speaks OpenAI's chat completions: Ollama, vLLM, LM Studio, llama.cpp.",
        ),
        io.Combo.Input(
            "key_variable",
            options=[own, *sorted(found - {own})],
            tooltip="The environment variable of the ComfyUI server that holds the key, if there is one. X_API_KEY is "
            "sent only to this machine and to the host that the server's X_BASE_URL names.",
        ),
    ]


def check_key(variable: str, base_url: str) -> None:
    """Raise InputError where the key in ``variable``, X_API_KEY, would leave this machine for a host not its own.

    Workflows come from anybody, so not they but the environment says which host is a key's own: X_BASE_URL.
    """
    if not os.environ.get(variable, "").strip() or _LOOPBACK.match(base_url.lower()):
        return
    home = variable.removesuffix("API_KEY") + "BASE_URL"
    known = (backend.address for backend in BACKENDS.values() if variable in backend.keys)
    own = os.environ.get(home, "").strip() or next(known, "")
    host = base_url.lower().split("/")[:3]
    if own.lower().split("/")[:3] != host:
        raise InputError(
            f"base_url: the key in {variable} is not sent to a host that only a workflow names, {base_url}; if that "
            f"server is to have it, start ComfyUI with the environment variable {home}={'/'.join(host)}"
        )


def cost_input() -> io.Input:
    return io.Float.Input(
        "max_cost",
        default=0.0,
        min=0.0,
        max=10_000.0,
        step=0.01,
        advanced=True,
        tooltip="US dollars that all remembered answers together may cost; 0: no limit.",
    )


def seed_input() -> io.Input:
    """A seed that stays as it is from run to run."""
    fixed = io.ControlAfterGenerate.fixed
    return io.Int.Input(
        "seed", default=0, min=0, max=2**53 - 1, control_after_generate=fixed, tooltip="Same seed, same bytes."
    )


def chain_problem(chain: str | None) -> bool | str:
    """True, or what is wrong with a purifier chain typed into its widget; one that comes through a link is None."""
    try:
        purify.parse(chain or "")
    except InputError as error:
        return str(error)
    return True


def eot_problem(eot: str | None) -> bool | str:
    """True, or what is wrong with transforms typed into their widget; ones that come through a link are None."""
    try:
        Loop(eot=eot or "")
    except InputError as error:
        return str(error)
    return True


RANGES: dict[str, dict[str, Any]] = {
    "eps": {"min": 0.004, "max": 1.0, "step": 0.001, "round": False},
    "steps": {"min": 1, "max": 10_000},
    "alpha": {"min": 0.0001, "max": 1.0, "step": 0.0001, "round": False, "advanced": True},
}
"""The loop's budget, and what its widgets take."""
HINTS = {
    "eps": "0.03 is 7 of 255 levels.",
    "alpha": "2/255 reaches the default budget in four steps.",
    "schedule": "Those that decay go down to 1%.",
    "eot": "Commas between several; empty: nothing.",
}
"""What a widget's tooltip says beside what every door says."""


def budget_inputs() -> list[io.Input]:
    """How much may change and in how many steps, in full sight; and the seed between them."""
    eps, steps, alpha = (_loop_input(name) for name in RANGES)
    return [eps, steps, seed_input(), alpha]


def marks_input() -> io.Input:
    return io.Combo.Input(
        "mask_marks",
        options=list(MARKS),
        optional=True,
        advanced=True,
        tooltip="What the mask's white means. Load Image gives the transparent part of a PNG, which the saved file "
        "keeps; an empty mask is none, one of another size is fitted.",
    )


def loop_inputs() -> list[io.Input]:
    """What else every method with a gradient can be told, folded; and a socket for a second editor."""
    return [
        sockets.Editor.Input("also", optional=True, tooltip="A second editor to protect against at the same time."),
        *(_loop_input(name) for name in LOOP if name not in RANGES),
        io.Int.Input(
            "rows", default=0, min=0, max=100_000, optional=True, advanced=True, tooltip=_sentence(methods.ROWS)
        ),
    ]


def _loop_input(name: str) -> io.Input:
    kind, default, doc = LOOP[name]
    tooltip = " ".join([doc, *([HINTS[name]] if name in HINTS else [])])
    if name in RANGES:
        number: Any = io.Int if kind is int else io.Float
        return number.Input(name, default=default, tooltip=tooltip, **RANGES[name])
    folded: dict[str, Any] = {"optional": True, "advanced": True}
    if get_origin(kind) is Sequence:
        return io.String.Input(name, default=",".join(default), tooltip=tooltip, **folded)
    if kind == bool | None:
        tooltip = tooltip.replace("default:", "auto:")
    choices = list(STARTS if kind == bool | None else get_args(kind))
    return io.Combo.Input(name, options=choices, default=choices[0], tooltip=tooltip, **folded)


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."


def loop_options(widgets: dict[str, Any]) -> dict[str, Any]:
    """The engine's settings for what stands in the loop's widgets, taken out of ``widgets``; not the socket."""
    taken: dict[str, Any] = {name: widgets.pop(name) for name in (*LOOP, "rows") if name in widgets}
    if "eot" in taken:
        taken["eot"] = list(listed(taken["eot"]))
    if "random_start" in taken:
        taken["random_start"] = STARTS[taken["random_start"]]
    return taken


def method_inputs(name: str, skip: Sequence[str] = ()) -> list[io.Input]:
    """A method's options as folded widgets, made from the signature of its `build`; an image is a socket.

    What is neither, such as a mapping, and what ``skip`` names, has no input.
    """
    inputs = (_input(key, option) for key, option in methods.options(name).items() if key not in skip)
    return [made for made in inputs if made is not None]


def method_options(name: str, widgets: dict[str, Any]) -> dict[str, Any]:
    """The engine's options for what stands in the widgets; an untouched text stays the engine's own default."""
    known = methods.options(name)
    chosen = {key: value for key, value in widgets.items() if value is not None}
    for key in [key for key, value in chosen.items() if isinstance(value, str) and _is_text(known[key].type)]:
        lines = [line.strip() for line in chosen.pop(key).splitlines() if line.strip()]
        if lines != _lines(known[key].default):
            chosen[key] = lines if get_origin(known[key].type) is Sequence else ",".join(lines)
    return chosen


def _input(name: str, option: Option) -> io.Input | None:
    about: dict[str, Any] = {"default": option.default, "tooltip": option.doc, "advanced": True, "optional": True}
    if option.type is Any:
        return io.Image.Input(name, optional=True, tooltip=option.doc) if name.endswith("_image") else None
    if get_origin(option.type) is Literal:
        return io.Combo.Input(name, options=list(get_args(option.type)), **about)
    if option.type is bool:
        return io.Boolean.Input(name, **about)
    if option.type is int:
        return io.Int.Input(name, min=0, max=1_000_000, **about)
    if option.type is float:
        return io.Float.Input(name, min=0.0, max=1e6, step=0.001, round=False, **about)
    multiline = get_origin(option.type) is Sequence
    return io.String.Input(name, multiline=multiline, **about | {"default": "\n".join(_lines(option.default))})


def _is_text(kind: Any) -> bool:
    return kind not in (Any, bool, int, float) and get_origin(kind) is not Literal


def _lines(default: Any) -> list[str]:
    """A default as the lines of a text; nothing is no line."""
    items = [default] if isinstance(default, str | int) else default
    return [str(item) for item in items if item != ""]
