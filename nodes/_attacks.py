"""From protections and instructions to the engine's records: what Attack Plan and Results Table do."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sifm_core import pipeline
from sifm_core.errors import InputError
from sifm_core.loop import LOOP
from sifm_core.store import Store, fingerprint
from sifm_core.types import Image, Measured, Metric, OnStep, Record, RecordInfo, Step, Verdict
from sifm_core.verdicts import CLEAN

from ._store import digest

TITLES = {
    "sifm": "SIFM",
    "sifm_plus": "SIFM+",
    "photoguard_encoder": "PhotoGE",
    "photoguard_diffusion": "PhotoGD",
    "editshield": "ED",
    "ace": "ACE",
    "sds": "SDS",
    "mist": "MIST",
    "semantic_attack": "SA",
    "random_noise": "noise",
}
"""Method -> what the paper's tables call it."""
FIDELITY = ("psnr", "ssim", "lpips")
"""Metrics that say how visible a protection is."""


@dataclass(frozen=True)
class Protection:
    """What saving needs to prove the budget: original and protected (B, 3, H, W), 8-bit values, the settings; mask and
    alpha (1 or B, 1, H, W), if there was one."""

    original: Image
    image: Image
    settings: Mapping[str, Any]
    seconds: float = 0.0
    history: Sequence[Mapping[str, float]] = ()
    mask: Tensor | None = None
    alpha: Tensor | None = None


@dataclass(frozen=True)
class Attack:
    """One picture (1, 3, H, W), protected or not, that is to be edited; ``kind`` "original" or "unseen"."""

    id: str
    category: str
    source: Image
    image: Image
    instruction: str
    prompt: str
    kind: str
    method: str
    purifier: str = ""
    protected_on: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)
    seconds: float = 0.0
    history: Sequence[Mapping[str, float]] = ()


@dataclass(frozen=True)
class Edit:
    """What an attacker made of a picture, (1, 3, H, W), and how."""

    image: Image
    editor: str
    prompt: str
    seed: int
    options: Mapping[str, Any]
    seconds: float


@dataclass(frozen=True)
class Run:
    """Records in the order of the plan, and the folder of the store that holds their pictures."""

    records: Sequence[Record]
    folder: Path

    @property
    def id(self) -> str:
        return self.folder.name


def plan(
    sources: Sequence[Image],
    arms: Sequence[Sequence[Protection]],
    prompts: Sequence[str],
    unseen: Sequence[str],
    ids: Sequence[str],
    categories: Sequence[str],
    chains: Sequence[str],
    titles: Sequence[str] = (),
) -> list[Attack]:
    """Every picture, unprotected and protected in every way, with every instruction, after every purifier chain.

    ``unseen``: further instructions of each picture, one a line; ``titles``: what the arms are called (see
    :func:`labels`). Raises InputError where the lists do not fit and where two pictures have one id.
    """
    if doubled := next((name for name in ids if ids.count(name) > 1), None):
        raise InputError(f"id: expected a different one for each picture, got {doubled!r} twice")
    if titles and (len(titles) != len(arms) or len({CLEAN, *titles}) <= len(arms)):
        raise InputError(f"names: expected {len(arms)} different ones, one per protection, got {', '.join(titles)}")
    names = titles or labels([arm[0].settings for arm in arms])
    on = arms[0][0].settings["editor"]
    attacks = []
    for i, source in enumerate(sources):
        about = {"id": ids[i], "category": categories[i], "source": source, "instruction": prompts[i]}
        shared = about | {"protected_on": on}
        ways: list[dict[str, Any]] = [{"image": source, "method": CLEAN}]
        for name, arm in zip(names, arms, strict=True):
            if len(arm) != len(sources) or not torch.equal(arm[i].original, source):
                raise InputError(f"{name} protects other pictures: connect the plan's image to every immunize node")
            made = {"settings": arm[i].settings, "seconds": arm[i].seconds, "history": arm[i].history}
            ways.append({"image": arm[i].image, "method": name, **made})
        further = [line.strip() for line in unseen[i].splitlines() if line.strip()]
        for prompt in dict.fromkeys([prompts[i], *further]):
            kind = "original" if prompt == prompts[i] else "unseen"
            for chain in chains:
                attacks += [Attack(prompt=prompt, kind=kind, purifier=chain, **shared, **way) for way in ways]
    return attacks


def labels(settings: Sequence[Mapping[str, Any]]) -> list[str]:
    """What each protection is called: its method, and what tells it from the others of that method."""
    flat = [{k: v for k, v in s.items() if k not in ("options", "prompt")} | dict(s["options"]) for s in settings]
    flat = [s | {"also": [other["editor"] for other in s.get("also", ())]} for s in flat]
    names = []
    for mine in flat:
        alike = [other for other in flat if other["method"] == mine["method"]]
        keys = dict.fromkeys(key for other in alike for key in other)
        told = [key for key in keys if len({_short(other.get(key)) for other in alike}) > 1]
        told = [key for key in told if key != "editor_fingerprint"] or told
        parts = [f"{key}={_short(mine.get(key))}" for key in told]
        names.append(" ".join([TITLES.get(mine["method"], mine["method"]), *parts]))
    if doubled := next((name for name in names if names.count(name) > 1), None):
        raise InputError(f"two protections are both {doubled}: give them different settings, or connect one of them")
    return names


def split(protections: Sequence[Protection]) -> list[Protection]:
    """Protections of single pictures."""
    return [
        Protection(original, image, p.settings, p.seconds / len(p.image), p.history)
        for p in protections
        for original, image in zip(p.original.split(1), p.image.split(1), strict=True)
    ]


def records(
    attacks: Sequence[Attack], edits: Sequence[Edit], answers: Sequence[Sequence[Verdict]], home: Path, on_step: OnStep
) -> Run:
    """The engine's records of the attacks, in a store of their own under ``home``: one folder per set of records.

    ``answers``: one sequence per judge, a verdict per attack. Edits are measured against the unprotected picture's edit
    by the same attacker with the same instruction and seed.
    """
    for name, listed in {"edits": edits, **{f"judge {i + 1}'s verdicts": a for i, a in enumerate(answers)}}.items():
        if len(listed) != len(attacks):
            raise InputError(f"expected one of {name} per attack, {len(attacks)}, got {len(listed)}: connect one plan")
    for attack, edit in zip(attacks, edits, strict=True):
        if edit.prompt != attack.prompt or edit.image.shape != attack.image.shape:
            raise InputError(f"the edit of {attack.id} is of another plan: connect edit, attack and judges to one plan")
    cells = [
        (a.id, e.prompt, e.editor, a.protected_on, a.purifier, e.seed) for a, e in zip(attacks, edits, strict=True)
    ]
    floor = {cell: e for cell, a, e in zip(cells, attacks, edits, strict=True) if a.method == CLEAN}
    keys = [
        fingerprint(cell=cell, method=a.method, options=dict(e.options))
        for cell, a, e in zip(cells, attacks, edits, strict=True)
    ]
    shown = [digest(picture) for a, e in zip(attacks, edits, strict=True) for picture in (a.image, e.image)]
    judges = [verdicts[0].judge if verdicts else "" for verdicts in answers]
    run = home / "runs" / fingerprint(keys=keys, pictures=shown, judges=judges)[:12]
    made = []
    with Store(run) as store:
        for i, (attack, edit, cell) in enumerate(zip(attacks, edits, cells, strict=True)):
            clean = floor.get(cell)
            metrics = _measure(clean.image, edit.image) if clean and attack.method != CLEAN else {}
            visible = _measure(attack.source, attack.image, FIDELITY) if attack.settings else {}
            settings = attack.settings
            record = Record(
                key=keys[i],
                image=attack.id,
                category=attack.category,
                prompt=attack.prompt,
                prompt_kind=attack.kind,
                editor=edit.editor,
                method=attack.method,
                seed=edit.seed,
                eps=settings.get("eps", 0.0),
                source=store.put_image(attack.source),
                protected=store.put_image(attack.image),
                edited=store.put_image(edit.image),
                metrics=metrics,
                verdicts=tuple(verdicts[i] for verdicts in answers),
                seconds={"immunize": attack.seconds, "edit": edit.seconds},
                info=RecordInfo(
                    protection=settings.get("method", ""),
                    options=dict(settings.get("options", {})),
                    loop={name: settings[name] for name in LOOP if name in settings},
                    protected_on=attack.protected_on,
                    history=[dict(step) for step in attack.history],
                    fidelity={
                        name: Measured(value=m.value, definition=m.definition, reason=m.reason)
                        for name, m in visible.items()
                    },
                    purifier=attack.purifier,
                    instruction=attack.instruction,
                    edit_seed=edit.seed,
                    edit_options=dict(edit.options),
                ),
            )
            store.put_record(record)
            made.append(record)
            on_step(Step("records", i + 1, len(attacks)))
    return Run(made, run)


def _measure(reference: Image, distorted: Image, names: Sequence[str] | None = None) -> dict[str, Metric]:
    return {name: values[0] for name, values in pipeline.measure(reference, distorted, names).items()}


def _short(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return "+".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def singles(pictures: Sequence[Image]) -> Iterator[Image]:
    """The pictures of batches, one by one."""
    for batch in pictures:
        yield from batch.split(1)
