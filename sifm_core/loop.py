"""The settings of the loop that every method with a gradient runs in; doors make their flags and widgets from them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Annotated, Any, Literal, get_args, get_origin

from .checks import check_budget, check_choice, check_count, check_unit
from .errors import InputError
from .options import options_of

Ball = Literal["linf", "l2"]
"""What eps bounds: the largest change of a value, or the root mean square (RMS) of the changes of an image."""
Schedule = Literal["constant", "linear", "cosine"]
"""The factor on alpha: see :data:`sifm_core.pgd.SCHEDULES`."""
Update = Literal["auto", "steepest", "momentum", "adam"]
"""Along the gradient as steep as the ball allows (linf: its sign); the same along what remains of all gradients so far
(MI-FGSM, "Boosting Adversarial Attacks with Momentum", Dong et al.); or Adam's update, which EditShield's code makes.
"auto": the method's own, for most of them steepest."""


@dataclass(frozen=True, kw_only=True)
class Loop:
    """How a perturbation is looked for; see :func:`sifm_core.pgd.pgd`, and :mod:`sifm_core.transforms` for ``eot``.

    ``eps`` and ``alpha`` in [0, 1] units; ``random_start`` None and ``update`` "auto" leave it to the method. Where
    pixels may change, the mask, belongs to pictures and stands apart. What is made is checked: InputError for a value
    that no loop runs with.
    """

    eps: Annotated[float, "Budget: the most a value may change, in [0, 1]."] = 0.03
    steps: Annotated[int, "Iterations."] = 100
    alpha: Annotated[float, "Step size, in [0, 1]."] = 2 / 255
    ball: Annotated[Ball, "What eps bounds: the largest change, or the root mean square of a picture's changes."] = (
        "linf"
    )
    schedule: Annotated[Schedule, "Of the step size: constant, linear or cosine."] = "constant"
    update: Annotated[
        Update, "steepest (linf: the gradient's sign), momentum (the same of a running sum), adam, or the method's own."
    ] = "auto"
    eot: Annotated[
        Sequence[str],
        "What the protection is to survive: jpeg:50-95, resize:0.5, noise:0.02, blur:1 or none; one is drawn in each "
        "iteration.",
    ] = ()
    random_start: Annotated[bool | None, "Start from noise; default: the method's rule."] = None

    def __post_init__(self) -> None:
        if not isinstance(self.random_start, bool | None):
            raise InputError(
                f"random_start: expected True, False or None (the method's own rule), got {self.random_start!r}"
            )
        checked: dict[str, Any] = {
            "eps": check_budget(self.eps),
            "steps": check_count(self.steps, "steps"),
            "alpha": check_unit(self.alpha, "alpha"),
            "eot": listed(self.eot),
        }
        for name, option in LOOP.items():
            if get_origin(option.type) is Literal:
                check_choice(getattr(self, name), name, get_args(option.type))
        if checked["eot"]:
            from .transforms import parse  # here, since who only reads a run needs no torch

            parse(checked["eot"])
        for name, value in checked.items():
            object.__setattr__(self, name, value)

    def plain(self) -> dict[str, Any]:
        """The settings by name, as plain data."""
        return asdict(self) | {"eot": list(self.eot)}


LOOP = options_of(Loop)
"""Name -> what can be set, in the order in which it is shown."""


def listed(eot: str | Sequence[str]) -> tuple[str, ...]:
    """Transforms one by one; in a text they stand with commas between them."""
    if not isinstance(eot, str | Sequence):
        raise InputError(f"eot: expected transforms such as 'jpeg:75' or ['jpeg:50-95', 'none'], got {eot!r}")
    if isinstance(eot, str):
        return tuple(part.strip() for part in eot.split(",") if part.strip())
    return tuple(part.strip() for text in eot for part in str(text).split(","))
