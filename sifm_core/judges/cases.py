"""What every judge checks before it answers."""

from __future__ import annotations

from ..errors import ImageError
from ..images import check_image
from ..types import Case
from .redaction import encodable


def case_problem(case: Case) -> str:
    """Why nobody could judge this case, or "": an empty instruction, or a picture that is none."""
    if not case.prompt.strip():
        return "the instruction is empty"
    if encodable(case.prompt) != case.prompt:
        return "the instruction is no text that can be sent: expected UTF-8"
    try:
        check_image(case.source[None], "source")
        check_image(case.edited[None], "edited")
    except ImageError as error:
        return str(error)
    return ""
