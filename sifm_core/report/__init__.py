"""Records -> what people read: the paper's tables with its own figures beside, one HTML page, LaTeX, Markdown, CSV.

``columns.py`` reads the records once; ``figures.py`` and ``curves.py`` compute every figure, ``clip.py`` reads those of
Fig. 3; ``cells.py`` says what stands where in a table; ``text.py``, ``html.py`` and ``drawings.py`` only show it;
``compare.py`` sets two runs side by side, ``overview.py`` several. What counts as success is decided in
:mod:`sifm_core.verdicts`.
"""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from .. import controls, miniature
from ..bench.config import Layout, Paper, Plan
from ..bench.documents import Adopted, Provenance
from ..files import write_atomically
from ..judges.calibration import MAJORITY, UNANIMOUS, Calibration, panel
from ..store import Store
from ..types import Record
from ..verdicts import TRUTH as TRUTH
from . import clip
from .cells import BESIDE
from .clip import Clip
from .columns import Frame, frame
from .curves import Series, plots
from .document import markdown
from .drawings import grid as grid
from .figures import Agreement, Part, Predictor, agreements, headline, kinship, parts, predictors, rerouted
from .html import first_attacks, page
from .overview import together as together
from .text import as_csv, latex
from .text import terminal as terminal

__all__ = ["TRUTH", "Report", "build", "grid", "make", "page", "terminal", "together", "write"]


UNCOMPARED = "Semantic distance of prompts: not known here; `sifm bench run` of this run's folder finds it."


@dataclass(frozen=True)
class Report:
    """Every figure of a report, computed; the renderers add none."""

    title: str
    about: str
    headline: str
    frame: Frame
    parts: list[Part]
    layout: Layout
    paper: Paper
    agreements: list[Agreement]
    predictors: list[Predictor]
    plots: dict[str, Series]
    reading: list[str]
    facts: list[tuple[str, str]]
    calibrations: dict[str, Calibration] = field(default_factory=dict)
    trust: list[str] = field(default_factory=list)
    """What is known of the judges from cases whose answer is known, or how to find out; and whose kin they are."""
    clip: Clip | None = None
    """What CLIP prefers, where that was asked for."""
    beside: int = BESIDE
    """Blocks that stand side by side."""


DEMONSTRATION = "A demonstration: a toy may have worked on pictures larger than its own, which protects nothing."


def build(store: Store, plan: Plan | None = None, title: str = "Did the immunization work?") -> Report:
    """The report of a run; reads its records once, one at a time."""
    run = store.get("run", "provenance", Provenance) or {}
    run |= store.get("run", "seconds", dict[str, float]) or {}
    run["adopted"] = Counter(taken["run"] for _, taken in store.documents("adopted", Adopted))
    report = make(store.records(), run, plan, title)
    judges = report.frame.judges
    calibrations = controls.kept(store, [*judges, panel(UNANIMOUS, judges), panel(MAJORITY, judges)])
    left_out = [f"{missing}."] if (missing := store.missing()) else []
    return replace(
        report,
        reading=[*left_out, *report.reading],
        calibrations=calibrations,
        trust=[*trust(report.frame, calibrations, store.folder, plan), *report.trust],
    )


def make(
    records: Iterable[Record],
    run: Mapping[str, Any],
    plan: Plan | None = None,
    title: str = "Did the immunization work?",
) -> Report:
    """The report of records; ``run``: where they come from (:func:`sifm_core.bench.provenance`)."""
    layout, paper = (plan.layout, plan.paper) if plan else (Layout(), Paper())
    f = frame(records)
    table = parts(f, layout, paper)
    return Report(
        title=plan.title if plan else title,
        about=plan.about if plan else "",
        headline=" ".join(filter(None, (headline(table), rerouted(f)))),
        frame=f,
        parts=table,
        layout=layout,
        paper=paper,
        agreements=agreements(f) if len(f.answers) > 1 else [],
        predictors=predictors(f) if layout.kind == "predictors" else [],
        plots=plots(f, layout, table),
        reading=[DEMONSTRATION] * bool(plan and plan.settings.demonstration) + reading(f, layout),
        facts=facts(f, run, plan),
        trust=kinship(f, run.get("editors", ())),
    )


def write(report: Report, store: Store, out: Path, pictures: int = 12) -> list[str]:
    """Write report.html, .md, .tex, .csv and (where there are pictures) grid.png into a folder; returns their names.

    What :mod:`sifm_core.fig3` has written there before, stands in them too.
    """
    report = replace(report, clip=clip.beside(out))
    shown = first_attacks(report.frame.kept, pictures)
    written = {
        "report.html": page(report, store, pictures).encode(),
        "report.md": markdown(report).encode(),
        "report.tex": latex(report).encode(),
        "report.csv": as_csv(report).encode(),
    }
    if shown:
        written["grid.png"] = grid(shown, store)
    for name, content in written.items():
        write_atomically(out / name, content)
    return sorted(written)


def trust(f: Frame, calibrations: Mapping[str, Calibration], folder: Path, plan: Plan | None = None) -> list[str]:
    """Each judge's sensitivity and specificity; where they are not known, the command that finds them."""
    sentences = [one.sentence() for one in calibrations.values()]
    missing = [judge for judge in f.judges if judge not in calibrations and not judge.startswith("human:")]
    if missing and f.blocks:
        editor = next(iter(f.blocks)).editor.split(" -> ")[-1]
        words = ["sifm", "calibrate", "--editor", editor, *(w for judge in missing for w in ("--judge", judge))]
        words += ["--data", plan.settings.data] if plan and plan.settings.data != "miniature" else []
        sentences.append(
            f"Not known of {', '.join(missing)}: `{shlex.join([*words, '--run', str(folder)])}` asks about cases whose "
            "answer is known; then make the report again."
        )
    return sentences


def reading(f: Frame, layout: Layout) -> list[str]:
    """Sentences that must stand beside the table: what it is evidence for, what is missing and why."""
    names = [*f.answers, *(block.editor for block in f.blocks)]
    sentences = [miniature.EVIDENCE] if any("miniature" in name for name in names) else []
    if layout.plot == "prompts" and f.uncompared:
        sentences.append(UNCOMPARED)
    return sentences + [text if n == 1 else f"{text} ({n} times)" for text, n in f.missing.most_common(20)]


def facts(f: Frame, run: Mapping[str, Any], plan: Plan | None) -> list[tuple[str, str]]:
    """What a reader needs to do it again: settings, seeds, fingerprints, versions, hardware; unknown is "null"."""
    editors = run.get("editors", ())
    settings = {
        "benchmark": f"{plan.name} ({plan.profile}), data {plan.settings.data}" if plan else "",
        "pictures": str(len(f.images)),
        "records": str(len(f)),
        "prompts": ", ".join(sorted({block.prompts for block in f.blocks})),
        **{name: str(value) for name, value in dict(run.get("settings", {})).items()},
        "editors": ", ".join(f"{e.get('name')} ({e.get('family')}, {e.get('dtype')})" for e in editors),
        "editor fingerprints": ", ".join(str(e.get("fingerprint")) for e in editors),
        "judges": ", ".join(f.served.get(name, name) for name in run.get("judges", ())),
        "judges cost": f"$ {f.cost:.2f}" if f.cost else "",
        "metrics": ", ".join(sorted(f.definitions)),
        "CLIP": plan.settings.clip if plan else "",
        "versions": ", ".join(f"{name} {value}" for name, value in run.get("versions", {}).items()),
    }
    rows = [(name, value) for name, value in settings.items() if value]
    if run.get("adopted"):
        taken = ", ".join(f"{n} results of {name}" for name, n in run["adopted"].items())
        rows.append(("taken over with their seconds", taken))
    own = ("commit", "hardware", "seconds")
    titles = {"seconds": "seconds of this run"}
    return rows + [(titles.get(name, name), _or_null(run.get(name))) for name in own]


def _or_null(value: Any) -> str:
    return "null" if value is None else f"{value:.1f}" if isinstance(value, float) else str(value)
