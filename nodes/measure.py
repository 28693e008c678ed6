"""How far two pictures are apart."""

from __future__ import annotations

from comfy_api.latest import io
from torch import Tensor

from sifm_core import pipeline
from sifm_core.types import Metric

from . import sockets
from ._comfy import engine_room, to_engine
from ._text import number, table


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
        rows = [[name, *map(_value, values), values[0].definition] for name, values in metrics.items()]
        pictures = [f"picture {i + 1}" for i in range(len(reference))] if len(reference) > 1 else ["value"]
        values = {name: [m.value for m in listed] for name, listed in metrics.items()}
        return io.NodeOutput(metrics, table(["metric", *pictures, "definition"], rows), ui={"sifm_metrics": [values]})


def _value(metric: Metric) -> str:
    return metric.reason if metric.value is None else number(metric.value)
