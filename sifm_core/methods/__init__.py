"""The immunization methods, one file per paper.

A method module has either ``build(editor, x, cond, *, ...) -> GradFn``, whose keyword arguments are its configuration
(``x`` the clean image at the editor's working size, ``cond`` its prepared prompts); or, when it needs no gradient,
``perturb(x, *, eps, seed, ...) -> Image``. ``PROVENANCE`` says where it comes from. Where they apply: ``RANDOM_START =
True`` when its loss has no gradient at the clean picture, ``UPDATE`` where the loop is not to move along the steepest
direction, ``PROMPTLESS = True`` when it can do without an instruction, ``PRESETS`` with what its paper sets, ``BEYOND``
with the editor families on which the paper never ran it, beside :data:`NEWER`. To add one: write the file, put
:func:`configured` on its function, list it in :data:`METHODS`.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any, Literal, NamedTuple, ParamSpec, TypeVar, get_args, get_origin

from ..checks import check_choice
from ..errors import InputError, unknown
from ..loop import LOOP, Ball, Loop, Update
from ..options import Option, options_of
from ..types import Editor

METHODS: dict[str, str] = {
    "sifm": "sifm_core.methods.sifm",
    "sifm_plus": "sifm_core.methods.sifm_plus",
    "photoguard_encoder": "sifm_core.methods.photoguard_encoder",
    "photoguard_diffusion": "sifm_core.methods.photoguard_diffusion",
    "editshield": "sifm_core.methods.editshield",
    "mist": "sifm_core.methods.mist",
    "ace": "sifm_core.methods.ace",
    "sds": "sifm_core.methods.sds",
    "semantic_attack": "sifm_core.methods.semantic_attack",
    "random_noise": "sifm_core.methods.random_noise",
}

EQUAL_BUDGET: dict[str, Any] = {name: option.default for name, option in LOOP.items() if option.default}
"""What the SIFM paper's tables give every method (section V-A), in [0, 1]; the step size is the engine's default."""
NEWER = ("flux-kontext", "flux2", "flux2-kv", "qwen-image-edit", "qwen-image-2.1")
"""Families of editors that none of the methods' papers ran on."""
ROWS = (
    "how many rows of one batch (pictures x timesteps x prompts) the network runs at once; 0: the editor's rule, which "
    "looks at size and number type alone"
)
"""What the option of that name does, for methods that sum over timesteps."""
PART_NORMS = "log each term's gradient norm too, for one more backward pass per timestep and further term"
"""What the option of that name does, for methods whose loss has several terms."""

P = ParamSpec("P")
R = TypeVar("R")


def get_method(name: str) -> ModuleType:
    """The method's module. Raises InputError with near names for a name that is not in the table."""
    if name not in METHODS:
        raise unknown("method", name, METHODS)
    return importlib.import_module(METHODS[name])


def options(name: str) -> dict[str, Option]:
    """What can be set on a method, in the order of its signature; the seed and the budget belong to the caller."""
    module = get_method(name)
    known = options_of(getattr(module, "build", None) or module.perturb)
    return {option: about for option, about in known.items() if option not in ("seed", "eps")}


class About(NamedTuple):
    """One sentence; where it comes from ("" when it does not say); families where it goes beyond its paper."""

    summary: str
    provenance: str
    beyond: tuple[str, ...]


def about(name: str) -> About:
    """Where a method comes from and where it stands."""
    module = get_method(name)
    summary = (module.__doc__ or "").strip().partition("\n")[0]
    beyond = (*getattr(module, "BEYOND", ()), *NEWER) if "paper" in getattr(module, "PRESETS", {}) else ()
    return About(summary, getattr(module, "PROVENANCE", ""), beyond)


def problem(name: str) -> str:
    """What keeps a listed method from being used, in one line; "" when nothing does."""
    try:
        about(name), options(name), presets(name)
    except Exception as error:  # whatever a module of somebody else's raises
        return f"{type(error).__name__}: {error}".splitlines()[0]
    return ""


def presets(name: str) -> dict[str, dict[str, Any]]:
    """Named settings of the loop and of the method: "equal_budget" for every one, "paper" where there is a paper.

    Each holds all of :data:`EQUAL_BUDGET` and the method's own options where they differ from their defaults, in the
    engine's units.
    """
    own = getattr(get_method(name), "PRESETS", {})
    return {key: EQUAL_BUDGET | preset for key, preset in {"equal_budget": {}, **own}.items()}


def configure(name: str, preset: str, given: Mapping[str, Any]) -> tuple[Loop, dict[str, Any]]:
    """The loop, and the method's own options, as a preset says with what is given (is not None) over it.

    ``given`` holds settings of either kind. Raises InputError, with near names for an unknown preset.
    """
    known = presets(name)
    settings = known[check_choice(preset, f"preset of {name}", known)]
    settings = settings | {key: value for key, value in given.items() if value is not None}
    return Loop(**{key: settings.pop(key) for key in LOOP if key in settings}), settings


def rows_of(name: str, editor: Editor, size: tuple[int, int], rows: int = 0) -> int | None:
    """How many rows of the network a method runs at once at the working ``size``; None for one that has no such option.

    ``rows``: the option, 0 for the rule.
    """
    if "rows" not in options(name):
        return None
    from .batches import at_once

    return at_once(editor, size, rows, getattr(get_method(name), "KEEPS", 1))


def entrances_of(name: str, editor: Editor, chosen: Mapping[str, Any]) -> str | None:
    """Through which of an editor's entrances a method's gradient comes back with these options; None where one is all.

    Methods that cannot choose go through the latent.
    """
    if len(editor.entrances) == 1:
        return None
    own = getattr(get_method(name), "entered", None)
    return "vae" if own is None else own(editor, **chosen)


def check_method(method: str, chosen: Mapping[str, Any]) -> dict[str, Any]:
    """The chosen options of a method as a dict; :class:`InputError` with near names for an unknown method or option."""
    known = options(method)
    for name in chosen:
        if name not in known:
            raise unknown(f"option of {method}", name, known)
    return dict(chosen)


def check_options(method: str, chosen: Mapping[str, Any]) -> dict[str, Any]:
    """:func:`check_method`, and each value is of the kind that the method annotates; InputError for one that is not."""
    from pydantic import TypeAdapter, ValidationError

    known = options(method)
    for name, value in check_method(method, chosen).items():
        if known[name].type is Any:
            continue
        try:
            TypeAdapter(known[name].type).validate_python(value)
        except ValidationError:
            kind = known[name].type
            wanted = kind.__name__ if isinstance(kind, type) else str(kind)
            raise InputError(f"option {name} of {method}: expected {wanted}, got {value!r}") from None
    return dict(chosen)


def ball_of(method: str, ball: str) -> Ball:
    """What bounds a method's changes: the loop's ball, or linf where it has no loop."""
    return "linf" if ball == "linf" or not hasattr(get_method(method), "build") else "l2"


def random_start(name: str, chosen: Mapping[str, Any]) -> bool:
    """Whether PGD must start from noise under these options: by the method's own rule, else its ``RANDOM_START``."""
    module = get_method(name)
    rule = getattr(module, "random_start", None)
    return bool(rule(**chosen)) if rule else bool(getattr(module, "RANDOM_START", False))


def promptless(name: str) -> bool:
    """Whether a method takes an empty prompt to mean that no instruction is known."""
    return bool(getattr(get_method(name), "PROMPTLESS", False))


def update(name: str) -> Update:
    """How PGD moves where nothing else is said: by the method's own ``UPDATE``, else along the steepest direction."""
    found: Update = getattr(get_method(name), "UPDATE", "steepest")
    return found


def configured(function: Callable[P, R]) -> Callable[P, R]:
    """For ``build`` and ``perturb``: refuses values that a Literal annotation does not list, and leaves inference mode.

    Tensors made in inference mode could never be part of a gradient.
    """

    @functools.wraps(function)
    def checked(*args: P.args, **kwargs: P.kwargs) -> R:
        import torch  # here, since who reads a table of methods needs none of it

        for name, option in options_of(function).items():
            if get_origin(option.type) is Literal and kwargs.get(name, option.default) not in get_args(option.type):
                raise unknown(name, str(kwargs[name]), get_args(option.type))
        with torch.inference_mode(False):
            return function(*args, **kwargs)

    return checked
