"""What a run's documents hold, as far as whoever reads them relies on it; plain data, see :mod:`sifm_core.store`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypedDict

from ..types import Metric, Verdict


class Made(TypedDict):
    """A picture that was made: what a run keeps of it, and relies on."""

    image: str
    seconds: float


class Protected(Made, total=False):
    """The same of a protection; of noise no history."""

    linf: float | None
    peak_memory: Metric | None
    history: list[dict[str, float | None]]


class Known(TypedDict):
    """What keys and provenance need to know of a model that is named."""

    name: str
    family: str
    fingerprint: str
    settings: dict[str, Any]
    dtype: str
    hardware: str


class Failed(TypedDict):
    """Why something could not be made."""

    phase: str
    reason: str


class Rate(TypedDict):
    """Units of work (pictures, of the mean method's operations) that took so many seconds, and units that are left."""

    units: float
    seconds: float
    left: float | None


class Planned(TypedDict, total=False):
    """What readers rely on of a run's plan (:meth:`Keys.plan`)."""

    counts: dict[str, int]
    judges: list[str]
    steps: int


class Adopted(TypedDict):
    """Which run something was taken over from."""

    kind: str
    run: str


class Provenance(TypedDict, total=False):
    """Where figures come from (:func:`sifm_core.bench.provenance`)."""

    versions: dict[str, str]
    commit: str | None
    hardware: str | None
    editors: list[dict[str, Any]]
    judges: list[str]
    settings: dict[str, Any]


SHAPES: Mapping[str, Any] = {
    "immunize": Protected,
    "purify": Made,
    "edit": Made,
    "compare": Metric,
    "measure": dict[str, Metric],
    "verdict": Verdict,
    "model": Known,
    "failed": Failed,
    "rate": Rate,
    "adopted": Adopted,
}
"""Of each kind of document of a run; what has another shape counts as not there, and is made anew."""
