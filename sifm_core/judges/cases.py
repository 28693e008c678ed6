"""What every judge checks before it answers."""

from __future__ import annotations

from sifm_core.types import Case


def case_problem(case: Case) -> str:
    """Why nobody could judge this case, or "": an empty instruction or a picture that is none."""
    if not case.prompt.strip():
        return "the instruction is empty"
    for side, x in (("source", case.source), ("edited", case.edited)):
        if x.ndim != 3 or x.shape[0] != 3:
            return f"the {side} picture must be (3, H, W), got {tuple(x.shape)}"
        if not x.isfinite().all():
            return f"the {side} picture holds values that are not numbers"
    return ""
