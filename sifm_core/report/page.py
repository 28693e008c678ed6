"""Records -> the ISR table (terminal, Markdown), one self-contained HTML page, and one PNG grid of the pictures."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import TYPE_CHECKING, Any

from PIL import Image as Pil
from PIL import ImageDraw, ImageFont
from torch import Tensor

from . import miniature
from .images import perturbation_view, png_bytes, resize, to_uint8
from .isr import CLEAN, Isr, breakdown
from .judges import consensus
from .metrics import DEFAULT, METRICS
from .store import Store
from .types import Record, Verdict

if TYPE_CHECKING:
    from rich.table import Table

TRUTH = "miniature:renderer"
"""The renderer's ground truth: shown beside the judges, never part of their consensus."""
MAX_SIDE = 320
"""Pixels; larger pictures are shown smaller on the page."""
PIXEL_ART = 128
"""Pixels; smaller pictures are enlarged without smoothing."""


@dataclass(frozen=True)
class Line:
    """One row of the table: all records of one method.

    ``kind``: "floor" (nothing done to the picture), "control" (noise) or "method". ``judges``: each judge's own rate;
    ``truth``: that of the renderer, or None. ``metrics`` and ``fidelity`` are means over the pictures that have the
    value (None: none has); ``seconds`` the protection's mean time; ``failed`` the reasons of what could not be done.
    """

    name: str
    kind: str
    isr: Isr
    judges: Mapping[str, Isr]
    truth: Isr | None
    metrics: Mapping[str, float | None]
    fidelity: Mapping[str, float | None]
    seconds: float
    failed: tuple[str, ...] = ()


def answer(record: Record, judge: str | None = None) -> bool | None:
    """Did the edit fail, in the eyes of one judge, or (None) of all together but the ground truth? None: unclear."""
    if judge is None:
        return consensus(_judges(record))
    verdict = next((v for v in record.verdicts if v.judge == judge), None)
    if verdict is None or verdict.state != "ok":
        return None
    # The renderer knows what is where; where it says nothing on degradation, its mismatch counts.
    return verdict.semantic_mismatch if verdict.perceptual_degradation is None else verdict.success


def lines(records: Sequence[Record]) -> list[Line]:
    """The table in the order of the records; net ISR pairs rows with the clean one by picture, prompt and seed."""
    groups: dict[str, list[Record]] = {}
    for record in records:
        groups.setdefault(record.method, []).append(record)
    asked = list(dict.fromkeys(v.judge for r in records for v in r.verdicts))
    rates = {judge: breakdown(records, partial(answer, judge=judge)) for judge in (None, *asked)}
    return [
        Line(
            name=name,
            kind=_kind(group[0]),
            isr=rates[None][name],
            judges={judge: rates[judge][name] for judge in asked if judge != TRUTH},
            truth=rates[TRUTH][name] if TRUTH in asked else None,
            metrics=_means({key: metric.value for key, metric in r.metrics.items()} for r in group),
            fidelity=_means(
                {key: metric["value"] for key, metric in r.info.get("fidelity", {}).items()} for r in group
            ),
            seconds=sum(r.seconds.get("immunize", 0.0) for r in group) / len(group),
            failed=tuple(dict.fromkeys(str(r.info["failed"]) for r in group if r.info.get("failed"))),
        )
        for name, group in groups.items()
    ]


def headline(table: Sequence[Line]) -> str:
    """One honest sentence: what the strongest method stopped, and what the strongest control did at the same budget."""
    best = _strongest([line for line in table if line.kind == "method"])
    if best is None:
        return "No method was compared with the unprotected pictures, so nothing can be said."
    control = _strongest([line for line in table if line.kind == "control"])
    said = f"{best.name} made {_net_count(best)} edits fail that work on the unprotected picture"
    if control is None:
        return f"{said}. No control was run, so noise may do the same."
    said += f"; the strongest control, {control.name}, {_net_count(control)}"
    if (best.isr.net or 0) <= (control.isr.net or 0):
        return f"{said}. That is no more than noise does, so nothing is shown."
    return f"{said}. The 95% interval of that share is {_range(best.isr.net_low, best.isr.net_high)}."


def _strongest(some: Sequence[Line]) -> Line | None:
    return max((line for line in some if line.isr.net is not None), key=lambda line: line.isr.net or 0, default=None)


def _kind(record: Record) -> str:
    protection = record.info.get("protection", "")
    return "floor" if not protection else "control" if protection == "random_noise" else "method"


def _judges(record: Record) -> list[Verdict]:
    return [v for v in record.verdicts if v.judge != TRUTH]


def _means(rows: Iterable[Mapping[str, float | None]]) -> dict[str, float | None]:
    values: dict[str, list[float]] = {}
    for row in rows:
        for name, value in row.items():
            values.setdefault(name, []).extend([] if value is None else [value])
    return {name: sum(some) / len(some) if some else None for name, some in values.items()}


# ---- the table as text


def rates(table: Sequence[Line]) -> dict[str, list[str]]:
    """Did the edits fail? The columns as text: title -> one cell per line."""
    found = {
        "attacked picture": [line.name for line in table],
        "ISR": [f"{percent(line.isr.rate)} ({line.isr.successes}/{line.isr.n})" for line in table],
        "95%": [_range(line.isr.low, line.isr.high) for line in table],
        "unclear": [str(line.isr.unclear) for line in table],
        "net ISR": [_net(line) for line in table],
    }
    for judge in table[0].judges if table else ():
        found[judge] = [percent(line.judges[judge].rate) for line in table]
    if any(line.truth for line in table):
        found["ground truth"] = [percent(line.truth.rate) if line.truth else "–" for line in table]
    return found


def distances(table: Sequence[Line]) -> dict[str, list[str]]:
    """How far from the clean edit, how visible, how long? The columns as text: title -> one cell per line."""
    found = {"attacked picture": [line.name for line in table]}
    for name in DEFAULT:
        if any(name in line.metrics for line in table):
            found[metric_title(name)] = [number(line.metrics.get(name)) for line in table]
    found["visible PSNR"] = [number(line.fidelity.get("psnr"), 1) for line in table]
    found["s/picture"] = ["–" if line.kind == "floor" else number(line.seconds, 1) for line in table]
    return found


def terminal(table: Sequence[Line]) -> list[Table]:
    """Both tables for a terminal of 80 columns."""
    from rich import box
    from rich.table import Table

    shown = []
    for cells in (rates(table), distances(table)):
        part = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
        for i, title in enumerate(cells):
            short = title if title[-1] in "↓↑" else title.split(":")[-1].replace(" ", "\n")
            part.add_column(short, justify="right" if i else "left", no_wrap=True)
        for line, row in zip(table, zip(*cells.values(), strict=True), strict=True):
            part.add_row(*row, style="bold" if line.kind == "method" else "")
        shown.append(part)
    return shown


def markdown(records: Sequence[Record], run: Mapping[str, Any]) -> str:
    """The headline, the table and where it comes from, as Markdown."""
    table = lines(records)
    parts = [
        headline(table),
        *map(_markdown_table, (rates(table), distances(table))),
        *reading(records),
        "\n".join(f"- {name}: {value}" for name, value in facts(records, run)),
    ]
    return "\n\n".join(parts) + "\n"


def _markdown_table(cells: Mapping[str, Sequence[str]]) -> str:
    rows = [list(cells), ["---" if i == 0 else "---:" for i in range(len(cells))], *zip(*cells.values(), strict=True)]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def reading(records: Sequence[Record]) -> list[str]:
    """Sentences that must stand beside the table: what it is evidence for, what is missing and why."""
    said = []
    if any("miniature" in name for r in records for name in (r.editor, *(v.judge for v in r.verdicts))):
        said.append(miniature.EVIDENCE)
    missing: dict[str, None] = {}
    for record in records:
        for name, metric in record.metrics.items():
            if metric.value is None:
                missing[f"{name.upper()}: {metric.reason}."] = None
        for verdict in record.verdicts:
            if verdict.state != "ok":
                missing[f"{verdict.judge} gave no answer ({verdict.state}): {verdict.reasons}"] = None
    return said + list(missing)


def facts(records: Sequence[Record], run: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What a reader needs to do it again: settings, seeds, fingerprints, versions, hardware, time."""
    settings = dict(run.get("settings", {}))
    editor = run.get("editor", {})
    served = {v.judge: v.model_served for r in records for v in r.verdicts if v.model_served}
    found = {
        "pictures": str(len({r.image for r in records})),
        "prompts": ", ".join(sorted({r.prompt_kind for r in records})),
        **{name: str(value) for name, value in settings.items()},
        "editor": f"{editor.get('name', '')} ({editor.get('family', '')})",
        "editor fingerprint": str(editor.get("fingerprint", "")),
        "judges": ", ".join(served.get(name, name) for name in run.get("judges", ())),
        "metrics": ", ".join(sorted({m.definition for r in records for m in r.metrics.values()})),
        "versions": ", ".join(f"{name} {value}" for name, value in run.get("versions", {}).items()),
        "hardware": str(run.get("hardware", "")),
        "seconds of this run": str(run.get("seconds", "")),
    }
    return [(name, value) for name, value in found.items() if value]


def percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.0f}%"


def number(value: float | None, digits: int = 3) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def metric_title(name: str) -> str:
    """The metric's name with an arrow to where edits differ more, which is better for the defender."""
    title = {"vifp": "VIFp", "fsimc": "FSIMc"}.get(name, name.upper())
    return f"{title} {'↓' if METRICS[name].better == 'lower' else '↑'}"


def _range(low: float | None, high: float | None) -> str:
    return "–" if low is None or high is None else f"{100 * low:.0f}–{100 * high:.0f}%"


def _net_count(line: Line) -> str:
    return f"{round((line.isr.net or 0) * line.isr.pairs)} of {line.isr.pairs}"


def _net(line: Line) -> str:
    return "–" if line.isr.net is None else f"{percent(line.isr.net)} ({_net_count(line).replace(' of ', '/')})"


# ---- the page


def page(records: Sequence[Record], store: Store, run: Mapping[str, Any]) -> str:
    """One HTML page that needs nothing else: table, pictures with verdicts, curves, provenance."""
    from jinja2 import Environment, PackageLoader, select_autoescape

    table = lines(records)
    pictures = _Pictures(store, eps=max((r.eps for r in records), default=0.0))
    environment = Environment(
        loader=PackageLoader("sifm_core"),
        autoescape=select_autoescape(),
        trim_blocks=True,
        lstrip_blocks=True,
    )
    said = reading(records)
    return environment.get_template("report.html").render(
        title="Did the immunization work?",
        headline=headline(table),
        evidence=[note for note in said if note == miniature.EVIDENCE],
        notes=[note for note in said if note != miniature.EVIDENCE],
        failures=list(dict.fromkeys(reason for line in table for reason in line.failed)),
        table=table,
        judges=list(table[0].judges) if table else [],
        truth=any(line.truth for line in table),
        metrics=[name for name in DEFAULT if any(name in line.metrics for line in table)],
        fidelity=list(dict.fromkeys(name for line in table for name in line.fidelity)),
        bar=lambda line: bar(line.isr, next((x.isr.rate for x in table if x.name == CLEAN), None)),
        cells=[_cell(cell, pictures) for cell in _cells(records)],
        gain=f"{pictures.gain:.0f}",
        curves=_curves(records),
        facts=facts(records, run),
        percent=percent,
        number=number,
        metric_title=metric_title,
        range=_range,
        net=_net,
    )


class _Pictures:
    """Pictures of the store as data URIs; equal ones are encoded once."""

    def __init__(self, store: Store, eps: float) -> None:
        self.store = store
        self.gain = 0.5 / eps if eps else 1.0
        self.uri = cache(self._uri)

    def _uri(self, image: str, against: str = "") -> str:
        x = self.store.get_image(image)
        if against:
            x = perturbation_view(x, self.store.get_image(against), self.gain)
        return "data:image/png;base64," + base64.b64encode(png_bytes(_small(x))).decode()

    def pixelated(self, image: str) -> bool:
        return max(self.store.get_image(image).shape[-2:]) <= PIXEL_ART


def _small(x: Tensor) -> Tensor:
    scale = MAX_SIDE / max(x.shape[-2:])
    return x if scale >= 1 else resize(x, (round(x.shape[-2] * scale), round(x.shape[-1] * scale)))


def _cells(records: Sequence[Record]) -> list[list[Record]]:
    """Records of one attack (picture, prompt, seed), all methods."""
    cells: dict[tuple[str, str, int], list[Record]] = {}
    for record in records:
        cells.setdefault((record.image, record.prompt, record.seed), []).append(record)
    return list(cells.values())


def _cell(records: Sequence[Record], pictures: _Pictures) -> dict[str, Any]:
    first = records[0]
    unseen = "" if first.prompt_kind == "original" else f"{first.prompt_kind} prompt"
    about = [first.category, first.image, f"seed {first.seed}", unseen]
    return {
        "prompt": first.prompt,
        "about": " · ".join(filter(None, about)),
        "source": pictures.uri(first.source),
        "pixelated": pictures.pixelated(first.source),
        "cards": [_card(record, pictures) for record in records],
    }


VERDICTS = {
    True: ("failed", "✗", "edit failed"),
    False: ("works", "✓", "edit works"),
    None: ("unclear", "?", "unclear"),
}
"""Consensus -> style, mark, words."""


def _card(record: Record, pictures: _Pictures) -> dict[str, Any]:
    state, mark, words = VERDICTS[answer(record)]
    changed = bool(record.protected) and record.protected != record.source
    return {
        "name": record.method,
        "state": state if record.edited else "missing",
        "mark": mark,
        "verdict": words,
        "failed": record.info.get("failed", ""),
        "edit": pictures.uri(record.edited) if record.edited else "",
        "attacked": pictures.uri(record.protected) if changed else "",
        "delta": pictures.uri(record.protected, record.source) if changed else "",
        "details": [(v.judge, _said(v), v.reasons) for v in record.verdicts],
        "metrics": " · ".join(f"{metric_title(name)[:-2]} {number(m.value)}" for name, m in record.metrics.items()),
    }


def _said(verdict: Verdict) -> str:
    if verdict.state != "ok":
        return verdict.state
    mismatch = ["mismatch"] if verdict.semantic_mismatch else []
    degraded = ["degraded"] if verdict.perceptual_degradation else []
    return " and ".join(mismatch + degraded) or "fine"


# ---- small drawings


def bar(rate: Isr, floor: float | None) -> str:
    """A rate with its interval on a line from 0 to 100%, and the clean floor dashed, as inline SVG."""
    if rate.rate is None or rate.low is None or rate.high is None:
        return ""
    words = f"{percent(rate.rate)}, interval {_range(rate.low, rate.high)}"
    dashed = "" if floor is None else f'<path class="floor" d="M{100 * floor:.2f} 0V16"/>'
    low, high = 100 * rate.low, 100 * rate.high
    return (
        f'<svg viewBox="0 0 100 16" preserveAspectRatio="none" role="img" aria-label="{words}">'
        f'<rect class="track" y="4" width="100" height="8"/>'
        f'<rect class="fill" y="4" width="{100 * rate.rate:.2f}" height="8"/>{dashed}'
        f'<path class="whisker" d="M{low:.2f} 8H{high:.2f}M{low:.2f} 5V11M{high:.2f} 5V11"/></svg>'
    )


def curve(title: str, series: Sequence[Sequence[float]]) -> str:
    """Lines over the iterations, each from left to right, on one scale from the least to the greatest value."""
    values = [value for line in series for value in line]
    low, high = min(values), max(values)
    paths = "".join(
        '<polyline points="'
        + " ".join(
            f"{300 * i / max(len(line) - 1, 1):.1f},{95 - 90 * (value - low) / (high - low or 1):.1f}"
            for i, value in enumerate(line)
        )
        + '"/>'
        for line in series
    )
    said = html.escape(title)
    words = f"{said} from {series[0][0]:.4g} to {series[0][-1]:.4g} in {len(series[0])} iterations"
    return (
        f"<figure><figcaption>{said}<span>{series[0][0]:.4g} → {series[0][-1]:.4g}</span></figcaption>"
        f'<svg viewBox="0 0 300 100" preserveAspectRatio="none" role="img" aria-label="{words}">{paths}</svg>'
        "</figure>"
    )


def _curves(records: Sequence[Record]) -> dict[str, list[str]]:
    """Method -> one drawing per logged value, one line per batch (the pictures of a batch share their history)."""
    histories: dict[str, list[list[Mapping[str, float]]]] = {}
    for record in records:
        history = record.info.get("history")
        if history and history not in histories.setdefault(record.method, []):
            histories[record.method].append(history)
    return {
        method: [
            curve(name, [[step[name] for step in history] for history in some])
            for name in some[0][0]
            if all(step.get(name) is not None for history in some for step in history)
        ]
        for method, some in histories.items()
        if some
    }


def grid(records: Sequence[Record], store: Store, side: int = 128) -> bytes:
    """One PNG: a line per attack, the source and then the edit of every method; framed where all judges say failed."""
    cells = _cells(records)
    names = ["source", *(record.method for record in cells[0])] if cells else []
    gap, head, foot = 10, 28, 24
    size = (gap + max(len(names), 1) * (side + gap), head + len(cells) * (side + foot + gap))
    sheet, font = Pil.new("RGB", size, "white"), ImageFont.load_default(13)
    draw = ImageDraw.Draw(sheet)
    for column, name in enumerate(names):
        draw.text((gap + column * (side + gap) + side / 2, head / 2), name, "#1d1e22", font, anchor="mm")
    for row, cell in enumerate(cells):
        top = head + row * (side + foot + gap)
        shown = [(cell[0].source, False), *((record.edited, answer(record)) for record in cell)]
        for column, (image, failed) in enumerate(shown):
            left = gap + column * (side + gap)
            if image:
                sheet.paste(_fit(store.get_image(image), side), (left, top))
            if failed:
                draw.rectangle((left - 4, top - 4, left + side + 3, top + side + 3), outline="#4b3fae", width=3)
        draw.text((gap, top + side + foot / 2), f"“{cell[0].prompt}”", "#1d1e22", font, anchor="lm")
    out = io.BytesIO()
    sheet.save(out, "PNG")
    return out.getvalue()


def _fit(x: Tensor, side: int) -> Pil.Image:
    """The picture within side x side; small ones are enlarged without smoothing."""
    small = Pil.fromarray(to_uint8(x))
    scale = side / max(small.size)
    how = Pil.Resampling.NEAREST if scale >= 1 else Pil.Resampling.LANCZOS
    return small.resize((round(small.width * scale), round(small.height * scale)), how)
