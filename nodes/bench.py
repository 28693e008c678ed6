"""From benchmark pictures to a success rate with its controls."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

import folder_paths
from comfy_api.latest import io

from sifm_core import data
from sifm_core.errors import InputError
from sifm_core.format import figure, percent, span
from sifm_core.miniature import EVIDENCE, benchmark
from sifm_core.rates import Isr, isr
from sifm_core.types import Metric
from sifm_core.verdicts import consensus

from . import sockets
from ._cards import ARMS, Seen, card
from ._comfy import to_comfy
from ._text import markdown, shown, table

T = TypeVar("T")


class SifmLoadBenchmark(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SIFM_LoadBenchmark",
            display_name="SIFM Load Benchmark",
            category="SIFM",
            description="Pictures with instructions, as lists: the rest of the graph runs once per picture.",
            search_aliases=["dataset", "miniature", "test images", "prompts", "benchmark"],
            inputs=[
                io.Combo.Input(
                    "category",
                    options=["all", *benchmark.COUNTS],
                    tooltip="Of the embedded miniature benchmark: 100 small drawn pictures.",
                ),
                io.Int.Input("start", default=0, min=0, max=1_000_000, tooltip="The first picture to take, from 0."),
                io.Int.Input(
                    "count", default=4, min=1, max=1_000_000, tooltip="How many pictures; fewer where the list ends."
                ),
                io.String.Input(
                    "manifest",
                    default="",
                    optional=True,
                    advanced=True,
                    tooltip="A benchmark of your own: a manifest.jsonl (see `sifm data`) in ComfyUI's input folder.",
                ),
            ],
            outputs=[
                io.Image.Output("image", is_output_list=True),
                io.String.Output(
                    "prompt", is_output_list=True, tooltip="The instruction that belongs to each picture."
                ),
                io.String.Output("category", is_output_list=True),
                io.String.Output("id", is_output_list=True),
                io.String.Output(
                    "unseen",
                    is_output_list=True,
                    tooltip="Five further instructions of each picture, one a line, for Attack Plan.",
                ),
            ],
        )

    @classmethod
    def validate_inputs(cls, manifest: str | None = None) -> bool | str:
        return not manifest or _manifest(manifest).is_file() or f"{manifest}: no such file in ComfyUI's input folder"

    @classmethod
    def fingerprint_inputs(cls, manifest: str = "", **inputs: Any) -> float:
        return _manifest(manifest).stat().st_mtime if manifest else 0.0

    @classmethod
    def execute(cls, category: str, start: int, count: int, manifest: str = "") -> io.NodeOutput:
        items: Sequence[data.Item | benchmark.Item]
        if manifest:
            listed = data.read(_manifest(manifest))
            items = checked = data.check(_part(listed, [item.category for item in listed], category, start, count))
            pixels = [item.pixels() for item in checked]
        else:
            ids = benchmark.ids()
            chosen = _part(ids, [name.split("-")[0] for name in ids], category, start, count)
            items = drawn = benchmark.load(ids=chosen)
            pixels = [item.image for item in drawn]
        columns = [[getattr(item, key) for item in items] for key in ("instruction", "category", "id")]
        return io.NodeOutput(
            [to_comfy(picture[None]) for picture in pixels], *columns, ["\n".join(item.unseen) for item in items]
        )


def _part(known: Sequence[T], categories: Sequence[str], category: str, start: int, count: int) -> list[T]:
    """``count`` of what is known of a category, from its ``start``-th."""
    named = [item for item, own in zip(known, categories, strict=True) if category in ("all", own)]
    if start >= len(named):
        raise InputError(
            f"start: the list {category!r} has {len(named)} pictures, so at most {len(named) - 1}, got {start}"
        )
    return named[start : start + count]


def _manifest(name: str) -> Path:
    """The file of that name in ComfyUI's input folder, or one that does not exist when it would lie outside."""
    folder = Path(folder_paths.get_input_directory()).resolve()
    path = (folder / name).resolve()
    return path if path.is_relative_to(folder) else folder / "outside"


class SifmIsrAggregate(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        judges = io.Autogrow.TemplatePrefix(sockets.Verdicts.Input("judge"), prefix="judge_", min=1, max=8)
        return io.Schema(
            node_id="SIFM_ISRAggregate",
            display_name="SIFM ISR Aggregate",
            category="SIFM",
            description="Immunization success rate: the share of edits that every judge calls mismatched or degraded, "
            "with its interval, the unprotected floor and the noise control.",
            search_aliases=["success rate", "consensus", "results", "confidence interval", "statistics"],
            inputs=[
                io.Autogrow.Input(
                    "judges", template=judges, tooltip="One MLLM Judge each; an edit counts if all agree."
                ),
                sockets.Metrics.Input("metrics", optional=True, tooltip="Protected edit against unprotected edit."),
                sockets.Metrics.Input(
                    "control_metrics", optional=True, tooltip="Control edit against unprotected edit."
                ),
            ],
            outputs=[
                io.String.Output("table", tooltip="A Markdown table."),
                io.Float.Output("isr", tooltip="Of the protected pictures, 0 to 1; NaN when no edit could be judged."),
            ],
            is_input_list=True,
            is_output_node=True,
        )

    @classmethod
    def execute(
        cls,
        judges: dict[str, list[dict[str, list[Seen]]]],
        metrics: Sequence[dict[str, list[Metric]]] = (),
        control_metrics: Sequence[dict[str, list[Metric]]] = (),
    ) -> io.NodeOutput:
        answers = [_joined(listed) for listed in judges.values()]
        if len({tuple((arm, len(verdicts)) for arm, verdicts in answer.items()) for answer in answers}) > 1:
            raise InputError("the judges answered different edits: connect the same pictures to every MLLM Judge")
        cases = {arm: list(zip(*(answer[arm] for answer in answers), strict=True)) for arm in ARMS if arm in answers[0]}
        verdicts = {arm: [[each.verdict for each in seen] for seen in listed] for arm, listed in cases.items()}
        successes = {arm: [consensus(said) for said in listed] for arm, listed in verdicts.items()}
        clean = successes.get("clean")
        rates = {arm: isr(values, clean=None if arm == "clean" else clean) for arm, values in successes.items()}
        distances = {"protected": _means(metrics), "control": _means(control_metrics)}
        names = list(dict.fromkeys(name for means in distances.values() for name in means))
        rows = [
            [ARMS[arm], *_cells(rate), *(figure(name, distances.get(arm, {}).get(name)) for name in names)]
            for arm, rate in rates.items()
        ]
        judged_by = {verdict.judge for listed in verdicts.values() for answers in listed for verdict in answers}
        drawn = all(judge.startswith("miniature:") for judge in judged_by)
        head = ["edit of", "ISR", "95%", "net ISR", "95%", "judged", "unclear", *names]
        elements = table(head, rows, *([EVIDENCE] if drawn else []))
        records = [
            {
                "arm": arm,
                "picture": i,
                "success": consensus(answers),
                "verdicts": [asdict(verdict) for verdict in answers],
            }
            for arm, listed in verdicts.items()
            for i, answers in enumerate(listed)
        ]
        result = {
            "rates": {arm: rate.as_dict() for arm, rate in rates.items()},
            "metrics": distances,
            "records": records,
        }
        rate = rates["protected"].rate
        cards = [card(seen, ARMS[arm]) for arm in reversed(cases) for seen in cases[arm]]
        ui = shown(elements, sifm_isr=[result], sifm_cards=cards)
        return io.NodeOutput(markdown(elements), math.nan if rate is None else rate, ui=ui)


def _joined(parts: Iterable[dict[str, list[Any]]]) -> dict[str, list[Any]]:
    """Dicts of lists, one per list item of the graph, as one dict of longer lists; only keys that all of them have."""
    parts = list(parts)
    return {key: [x for part in parts for x in part[key]] for key in parts[0] if all(key in part for part in parts)}


def _means(metrics: Sequence[dict[str, list[Metric]]]) -> dict[str, float]:
    """The mean of each metric over the pictures that have a value."""
    values = (
        {name: [m.value for m in listed if m.value is not None] for name, listed in _joined(metrics).items()}
        if metrics
        else {}
    )
    return {name: statistics.fmean(listed) for name, listed in values.items() if listed}


def _cells(rate: Isr) -> list[str]:
    shares = percent(rate.rate), span(rate.low, rate.high), percent(rate.net), span(rate.net_low, rate.net_high)
    return [*shares, str(rate.n), str(rate.unclear)]
