"""From what was made of an attack to its record: a row of the run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

from ..types import Measured, Metric, Record, RecordInfo, Verdict
from .artefacts import Artefacts, Made
from .grid import Grid, names
from .keys import Attack, Keys, Pair
from .models import Models


def record(grid: Grid, models: Models, keys: Keys, artefacts: Artefacts, a: Attack, pairs: Sequence[Pair]) -> Record:
    """The record of an attack whose metrics compare ``pairs``; what is missing of it stands in ``info["failed"]``."""
    row, made = a.row, Made(keys, artefacts)
    protected, purified, edited = made.protected(a), made.purified(a), made.edited(a)
    protection_key, edit_key = keys.protected(a), keys.edited(a, purified)
    protection, edit = artefacts.get("immunize", protection_key), artefacts.get("edit", edit_key)
    measured = {pair: keys.measured(pair) for pair in pairs}
    judged = {judge: keys.verdict(judge, a, edited) for judge in models.judges if edited}
    compared: dict[str, dict[str, Any]] = {"edit": {}, "fidelity": {}}
    for pair, key in measured.items():
        compared["fidelity" if pair.names else "edit"] = artefacts.get("measure", key)
    verdicts = []
    for judge, key in judged.items():
        why = {"state": "error", "reasons": artefacts.failed.get(key, "")}
        verdicts.append(Verdict(**(artefacts.get("verdict", key) or {"judge": models.known[judge]["name"], **why})))
    made_under = (protection_key, keys.purified(a, protected), edit_key, *measured.values(), *judged.values())
    failures = dict.fromkeys(artefacts.failed[key] for key in made_under if key in artefacts.failed)
    home, away = names(a.editor)
    info: RecordInfo = {
        "options": dict(row.options),
        "loop": dict(row.loop),
        "protection": row.method or "",
        "protected_on": home,
        "purifier": a.chain,
        "edit_seed": a.edit_seed,
        "instruction": a.row.told(a.sample),
    }
    if row.method:
        info["linf"], info["protection_key"] = protection.get("linf"), protection_key
        info["fidelity"], info["peak_memory"] = compared["fidelity"], protection.get("peak_memory")
    if key := keys.compared(a):
        unknown = Measured(value=None, definition="", reason=artefacts.failed.get(key, ""))
        info["prompt_distance"] = cast(Measured, artefacts.get("compare", key)) or unknown
    if failures:
        info["failed"] = "; ".join(failures)
    return Record(
        key=keys.record(a),
        image=a.sample.id,
        category=a.sample.category,
        prompt=a.sample.prompt,
        prompt_kind=a.sample.kind,
        editor=away,
        method=row.name,
        seed=a.seed,
        eps=row.eps(grid),
        source=a.source,
        protected=protected,
        edited=edited,
        metrics={name: Metric(**value) for name, value in compared["edit"].items()},
        verdicts=tuple(verdicts),
        seconds={phase: value["seconds"] for phase, value in (("immunize", protection), ("edit", edit)) if value},
        info=info,
    )
