"""Gold controls made with an editor, and what judges said of them, kept beside a run for its report.

How the four controls are made and counted: :mod:`sifm_core.judges.calibration`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

from .errors import InputError
from .judges import parted
from .judges.calibration import Calibration, Gold, Rate, alike, counted, cross_fitted, fitted, gold_controls
from .judges.scores import named
from .store import Store
from .types import Case, Editor, Judge, OnStep, Verdict

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from .bench import Sample


def controls(
    samples: Sequence[Sample],
    editor: Editor,
    *,
    seed: int = 0,
    batch: int = 8,
    options: Mapping[str, Any] | None = None,
    on_step: OnStep | None = None,
) -> list[Gold]:
    """Four gold controls for each picture: its clean edit, itself, noise, and an edit with another instruction.

    The first sample of each picture gives the instruction; the other instruction is that of its second sample, or else
    the first one of another picture that differs. ``options`` are the editor's own. InputError where there is no other
    instruction at all.
    """
    first: dict[str, Sample] = {}
    other: dict[str, str] = {}
    for sample in samples:
        if sample.id not in first:
            first[sample.id] = sample
        elif sample.prompt != first[sample.id].prompt:
            other.setdefault(sample.id, sample.prompt)
    cases = list(first.values())
    for i, sample in enumerate(cases):
        rest = (*cases[i + 1 :], *cases[:i])
        different = next((o.prompt for o in rest if o.prompt != sample.prompt), None)
        if other.setdefault(sample.id, different or "") == "":
            raise InputError(f"{sample.id}: expected a second instruction for the wrong edit; give more pictures")
    sources = [sample.pixels() for sample in cases]
    prompts = [sample.prompt for sample in cases] + [other[sample.id] for sample in cases]
    edits = _edits(sources * 2, prompts, editor, seed, batch, dict(options or {}), on_step)
    clean = [Case(x, y, s.prompt, s.truth) for x, y, s in zip(sources, edits, cases, strict=False)]
    return gold_controls(clean, edits[len(cases) :], seed=seed)


def _edits(
    sources: Sequence[Tensor],
    prompts: Sequence[str],
    editor: Editor,
    seed: int,
    batch: int,
    options: Mapping[str, Any],
    on_step: OnStep | None,
) -> list[Tensor]:
    """Clean edits in order; pictures of one size go together."""
    import torch

    from .pipeline import edit

    sizes: dict[torch.Size, list[int]] = {}
    for i, source in enumerate(sources):
        sizes.setdefault(source.shape, []).append(i)
    edits: dict[int, Tensor] = {}
    for same in sizes.values():
        for start in range(0, len(same), batch):
            chunk = same[start : start + batch]
            pictures = torch.stack([sources[i] for i in chunk])
            edited = edit(pictures, editor, prompt=[prompts[i] for i in chunk], seed=seed, on_step=on_step, **options)
            edits |= dict(zip(chunk, edited, strict=True))
    return [edits[i] for i in range(len(sources))]


def calibrated(spec: str, judge: Judge, golds: Sequence[Gold], *, on_step: OnStep | None = None) -> list[Calibration]:
    """What the controls say of a judge; of one that gives numbers, last, by the name that has its best thresholds."""
    verdicts = judge.judge([gold.case for gold in golds], on_step=on_step)
    return known(spec, judge.name, golds, verdicts)


def known(
    spec: str,
    name: str,
    golds: Sequence[Gold],
    verdicts: Sequence[Verdict],
    more: Mapping[str, Sequence[Verdict]] | None = None,
) -> list[Calibration]:
    """The same of its verdicts; ``more``: those of asking once more, by way (see :func:`.calibration.others_of`)."""
    more = more or {}
    plain = counted(name, golds, verdicts)
    plain = replace(plain, same={way: alike(golds, verdicts, said) for way, said in more.items()})
    thresholds = fitted(golds, verdicts)
    if not thresholds:
        return [plain]
    backend, model, address = parted(spec)
    better = f"{backend}:{named(model, thresholds)}" + (f"@{address}" if address else "")
    tuned = counted(better, golds, cross_fitted(golds, verdicts))
    first = [verdict.decided(thresholds) for verdict in verdicts]
    then = {way: [verdict.decided(thresholds) for verdict in said] for way, said in more.items()}
    tuned = replace(tuned, same={way: alike(golds, first, said) for way, said in then.items()})
    return [plain, tuned] if plain.unclear < plain.n else [tuned]


# ---- beside a run


def keep(store: Store, calibration: Calibration) -> None:
    """Keep a judge's calibration in a run's store, in place of an earlier one."""
    store.put("calibration", calibration.judge, asdict(calibration))


def kept(store: Store, judges: Iterable[str]) -> dict[str, Calibration]:
    """The calibrations that a run's store holds of these judges."""
    documents = {name: store.get("calibration", name, Calibration) for name in judges}
    return {name: _calibration(value) for name, value in documents.items() if value is not None}


def _calibration(value: dict[str, Any]) -> Calibration:
    groups = ("sensitivity", "specificity", "by_kind")
    rates = {g: {name: Rate(**rate) for name, rate in value[g].items()} for g in groups}
    same = {way: {axis: Rate(**rate) for axis, rate in row.items()} for way, row in value.get("same", {}).items()}
    return Calibration(**value | rates | {"same": same})
