"""Do judges and people agree? The paper's Table I."""

from __future__ import annotations

from collections.abc import Sequence

from comfy_api.latest import io

from sifm_core.consistency import cells, consistency

from . import sockets
from ._attacks import Attack
from ._cards import Seen, card, told
from ._text import markdown, shown, table

Listed = dict[str, list[dict[str, list[Seen]]]]
"""A growing input of verdicts behind a plan: its name -> one dict of arms per item of the list."""


class SifmConsistencyReport(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        def raters(name: str) -> io.Autogrow.TemplatePrefix:
            return io.Autogrow.TemplatePrefix(sockets.Verdicts.Input(name), prefix=f"{name}_", min=1, max=8)

        return io.Schema(
            node_id="SIFM_ConsistencyReport",
            display_name="SIFM Consistency Report",
            category="SIFM",
            description="How often judges agree with each other and with people, and how much of it is more than "
            "chance: Table I of the paper.",
            search_aliases=["agreement", "kappa", "krippendorff", "human study", "inter-rater", "table 1"],
            inputs=[
                io.Autogrow.Input("models", template=raters("model"), tooltip="Verdicts of MLLM Judge nodes."),
                io.Autogrow.Input(
                    "people",
                    template=raters("person"),
                    tooltip="Verdicts of MLLM Judge nodes whose judge is human; or the miniature's renderer.",
                ),
                sockets.Attack.Input(
                    "attack",
                    optional=True,
                    tooltip="From Attack Plan: edits of one picture depend on each other, which widens the intervals.",
                ),
            ],
            outputs=[io.String.Output("table", tooltip="A Markdown table, with the paper's figures beside.")],
            is_input_list=True,
            is_output_node=True,
        )

    @classmethod
    def execute(cls, models: Listed, people: Listed, attack: Sequence[Attack] = ()) -> io.NodeOutput:
        seen = {name: _answers(listed) for name, listed in {**people, **models}.items()}
        raters = {name: [each.verdict for each in listed] for name, listed in seen.items()}
        samples = len(next(iter(raters.values())))
        pictures = [a.id for a in attack] or [str(i) for i in range(samples)]
        agreements = consistency(raters, people, pictures)
        answers = [str(agreement.answers) for row in agreements.values() for agreement in row.values()]
        columns = cells(agreements) | {"answers": answers}
        elements = table(list(columns), list(zip(*columns.values(), strict=True)))
        cards = [card(each) for each in zip(*seen.values(), strict=True) if _differ(each)]
        return io.NodeOutput(markdown(elements), ui=shown(elements, sifm_cards=cards))


def _answers(listed: Sequence[dict[str, list[Seen]]]) -> list[Seen]:
    """Every arm's verdicts in the graph's order."""
    return [each for part in listed for arm in part.values() for each in arm]


def _differ(seen: Sequence[Seen]) -> bool:
    """Do two raters that gave an answer see this edit differently?"""
    return len({told(each.verdict)["word"] for each in seen} - {"unclear"}) > 1
