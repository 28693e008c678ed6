"""Do judges and people agree? The paper's Table I."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import chain, combinations, product
from statistics import fmean

from comfy_api.latest import io

from sifm_core.errors import InputError
from sifm_core.stats import agreement, cohen_kappa, krippendorff_alpha, prevalence
from sifm_core.types import Verdict

from . import sockets
from ._text import percent, table

AXES: dict[str, Callable[[Verdict], bool | None]] = {
    "mismatch": lambda verdict: verdict.semantic_mismatch,
    "degradation": lambda verdict: verdict.perceptual_degradation,
    "edit failed": lambda verdict: verdict.success,
}
"""Title -> what a verdict says; None: unclear."""


class SifmConsistencyReport(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        def raters(name: str, least: int) -> io.Autogrow.TemplatePrefix:
            return io.Autogrow.TemplatePrefix(sockets.Verdicts.Input(name), prefix=f"{name}_", min=least, max=8)

        return io.Schema(
            node_id="SIFM_ConsistencyReport",
            display_name="SIFM Consistency Report",
            category="SIFM",
            description="How often judges agree with each other and with people, and how much of it is more than "
            "chance: Table I of the paper.",
            search_aliases=["agreement", "kappa", "krippendorff", "human study", "inter-rater", "table 1"],
            inputs=[
                io.Autogrow.Input("models", template=raters("model", 1), tooltip="Verdicts of MLLM Judge nodes."),
                io.Autogrow.Input(
                    "people",
                    template=raters("person", 1),
                    tooltip="Verdicts of MLLM Judge nodes whose judge is human; or the miniature's renderer.",
                ),
            ],
            outputs=[io.String.Output("table", tooltip="A Markdown table.")],
            is_input_list=True,
            is_output_node=True,
        )

    @classmethod
    def execute(
        cls, models: dict[str, list[dict[str, list[Verdict]]]], people: dict[str, list[dict[str, list[Verdict]]]]
    ) -> io.NodeOutput:
        groups = [[_answers(listed) for listed in raters.values()] for raters in (people, models)]
        if len({len(answers) for group in groups for answers in group}) > 1:
            raise InputError("the raters answered different edits: connect all of them to the same plan")
        text = report(*groups)
        return io.NodeOutput(text, ui={"text": [text]})


def report(people: Sequence[Sequence[Verdict]], models: Sequence[Sequence[Verdict]]) -> str:
    """Agreement of pairs of raters, averaged as in the paper, and Krippendorff's alpha of all, as Markdown."""
    pairs = {
        "human to human": list(combinations(people, 2)),
        "model to model": list(combinations(models, 2)),
        "human to model": list(product(people, models)),
    }
    rows = []
    for name, some in pairs.items():
        cells = []
        for says in AXES.values():
            labels = [[[says(v) for v in rater] for rater in pair] for pair in some]
            raw, kappa = _mean([agreement(*both) for both in labels]), _mean([cohen_kappa(*both) for both in labels])
            cells += [percent(raw), _number(kappa)]
        rows.append([name, *cells, str(sum(_both(pair) for pair in some))])
    everyone = [*people, *models]
    alpha = [x for f in AXES.values() for x in (_number(krippendorff_alpha(_labels(everyone, f))), "")]
    shares = [x for f in AXES.values() for x in (percent(prevalence([*chain(*_labels(everyone, f))])), "")]
    head = ["raters", *(cell for axis in AXES for cell in (axis, "kappa")), "pairs"]
    return table(head, [*rows, ["all: alpha", *alpha, ""], ["all: share of yes", *shares, ""]])


def _answers(listed: Sequence[dict[str, list[Verdict]]]) -> list[Verdict]:
    """Every arm's verdicts in the graph's order."""
    return [verdict for part in listed for arm in part.values() for verdict in arm]


def _labels(raters: Sequence[Sequence[Verdict]], says: Callable[[Verdict], bool | None]) -> list[list[bool | None]]:
    return [[says(verdict) for verdict in rater] for rater in raters]


def _both(pair: Sequence[Sequence[Verdict]]) -> int:
    """Edits that both raters of a pair gave a clear answer to."""
    return sum(a.success is not None and b.success is not None for a, b in zip(*pair, strict=True))


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return fmean(known) if known else None


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
