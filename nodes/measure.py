"""How far two pictures are apart."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

from comfy_api.latest import io
from torch import Tensor

from sifm_core import pipeline
from sifm_core.errors import InputError
from sifm_core.fig3 import preferences
from sifm_core.format import NONE, figure, number
from sifm_core.metrics.clip_score import MODEL

from . import sockets
from ._attacks import singles
from ._comfy import engine_room, to_engine
from ._text import markdown, shown, table


class SifmPairwiseMetrics(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SIFM_PairwiseMetrics",
            display_name="SIFM Pairwise Metrics",
            category="SIFM",
            description="PSNR, SSIM, VIFp, FSIM and LPIPS of two pictures; the order matters for VIFp.",
            search_aliases=["psnr", "ssim", "lpips", "vif", "fsim", "image similarity", "compare"],
            inputs=[
                io.Image.Input("reference", tooltip="The edit of the unprotected picture, or an original."),
                io.Image.Input("distorted", tooltip="The edit of the protected picture, or a protected picture."),
            ],
            outputs=[
                sockets.Metrics.Output("metrics"),
                io.String.Output("table", tooltip="A Markdown table; a value that cannot be computed says why."),
            ],
            has_intermediate_output=True,
        )

    @classmethod
    def execute(cls, reference: Tensor, distorted: Tensor) -> io.NodeOutput:
        with engine_room():
            metrics = pipeline.measure(to_engine(reference), to_engine(distorted))
        rows = [
            [name, *(m.reason if m.value is None else figure(name, m.value) for m in values), values[0].definition]
            for name, values in metrics.items()
        ]
        pictures = [f"picture {i + 1}" for i in range(len(reference))] if len(reference) > 1 else ["value"]
        values = {name: [m.value for m in listed] for name, listed in metrics.items()}
        elements = table(["metric", *pictures, "definition"], rows)
        return io.NodeOutput(metrics, markdown(elements), ui={"sifm_metrics": [values]})


class SifmClipScore(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SIFM_ClipScore",
            display_name="SIFM CLIP Score",
            category="SIFM",
            description="How well two pictures fit a text in CLIP's eyes: why CLIP is no judge of edits (Fig. 3).",
            search_aliases=["clip similarity", "text image alignment", "clip score"],
            inputs=[
                io.Image.Input("source", tooltip="The picture before the edit."),
                io.Image.Input("edited", tooltip="The edit."),
                io.String.Input(
                    "text",
                    multiline=True,
                    default="",
                    tooltip="What the edit should show, such as 'a man who wears a crown'; or the instruction.",
                ),
                io.String.Input(
                    "model",
                    default=MODEL,
                    optional=True,
                    advanced=True,
                    tooltip="Folder of a CLIP model, or its name in the Hugging Face cache. Nothing is downloaded.",
                ),
            ],
            outputs=[
                io.String.Output("table", tooltip="A Markdown table; without the model it says why it is empty."),
                io.Float.Output("source_score", tooltip="Cosine similarity; NaN without the model."),
                io.Float.Output("edited_score", tooltip="Cosine similarity; NaN without the model."),
            ],
            is_input_list=True,
            is_output_node=True,
        )

    @classmethod
    def execute(
        cls, source: list[Tensor], edited: list[Tensor], text: list[str], model: Sequence[str] = (MODEL,)
    ) -> io.NodeOutput:
        before, after = (list(singles([to_engine(batch) for batch in listed])) for listed in (source, edited))
        texts = text * len(before) if len(text) == 1 else text
        if not len(before) == len(after) == len(texts):
            raise InputError(
                f"expected as many edits and texts as sources, {len(before)}, got {len(after)} and {len(texts)}"
            )
        with engine_room():
            pairs = [(a[0], b[0], c) for a, b, c in zip(before, after, texts, strict=True)]
            scored = preferences(pairs, model=model[0])
        rows = [
            [p.text, number(p.unedited.value, 4), number(p.edited.value, 4), _PREFERRED[p.prefers_unedited]]
            for p in scored
        ]
        why = dict.fromkeys(m.reason for p in scored for m in (p.unedited, p.edited) if m.value is None)
        elements = table(["text", "unedited", "edited", "CLIP prefers"], rows, *why)
        scores = [[math.nan if m.value is None else m.value for m in (p.unedited, p.edited)] for p in scored]
        means = [statistics.fmean(column) for column in zip(*scores, strict=True)]
        return io.NodeOutput(markdown(elements), *means, ui=shown(elements))


_PREFERRED = {True: "the unedited picture", False: "the edit", None: NONE}
