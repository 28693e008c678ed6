"""What came of all attacks: the table, the pictures side by side, the records as a file."""

from __future__ import annotations

import glob
import io as bytes_io
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import folder_paths
import numpy as np
import torch
from comfy_api.latest import io
from PIL import Image as Pillow

from sifm_core import report
from sifm_core.bench import config
from sifm_core.errors import InputError
from sifm_core.report.document import as_markdown, data, document
from sifm_core.report.drawings import attacks
from sifm_core.store import Store
from sifm_core.types import Record
from sifm_core.verdicts import CLEAN

from . import sockets
from ._attacks import Attack, Edit, Run, records
from ._cards import Seen
from ._comfy import engine_room, reporter
from ._shown import whole_picture
from ._store import home

PAPER = ("table2", "table3", "table4", "table5", "table6", "table7")
"""The engine's benchmarks that know what the paper printed."""
TITLE = "Did the immunization work?"


class SifmResultsTable(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        judges = io.Autogrow.TemplatePrefix(sockets.Verdicts.Input("judge"), prefix="judge_", min=1, max=8)
        return io.Schema(
            node_id="SIFM_ResultsTable",
            display_name="SIFM Results Table",
            category="SIFM",
            description="One row per protection: success rate with its interval, net of the unprotected pictures, and "
            "how far the edits are apart. Keeps pictures and verdicts as a run, which the sidebar shows.",
            search_aliases=["isr table", "summary", "leaderboard", "success rate", "records", "paper table"],
            inputs=[
                sockets.Attack.Input("attack", tooltip="From Attack Plan."),
                sockets.Edit.Input("edit", tooltip="From Attacker Edit."),
                io.Autogrow.Input(
                    "judges", template=judges, tooltip="One MLLM Judge each; an edit counts as failed if all agree."
                ),
                io.Combo.Input(
                    "paper",
                    options=["none", *PAPER],
                    optional=True,
                    advanced=True,
                    tooltip="Show the figures of this table of the paper beside; rows of the same name are compared.",
                ),
            ],
            outputs=[
                io.String.Output("table", tooltip="Markdown tables, one per attacker and kind of instruction."),
                sockets.Records.Output("records", tooltip="For Comparison Grid and Records Export."),
            ],
            is_input_list=True,
            is_output_node=True,
        )

    @classmethod
    def execute(
        cls,
        attack: list[Attack],
        edit: list[Edit],
        judges: dict[str, list[dict[str, list[Seen]]]],
        paper: Sequence[str] = ("none",),
    ) -> io.NodeOutput:
        answers = [[seen.verdict for part in listed for seen in part["protected"]] for listed in judges.values()]
        with engine_room():
            run = records(attack, edit, answers, home(), reporter())
        plan = None if paper[0] == "none" else config.load(paper[0])
        with Store(run.folder, create=False) as store:
            built = report.build(store, plan)
        facts = [(name, value) for name, value in report.facts(built.frame, {}, None) if value != "null"]
        built = replace(built, title=TITLE, about="", facts=facts)  # the layout is the paper's, the run is not
        elements = document(built)
        text = as_markdown(elements)
        return io.NodeOutput(text, run, ui={"text": [text], "sifm_document": data(elements), "sifm_run": [run.id]})


class SifmComparisonGrid(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SIFM_ComparisonGrid",
            display_name="SIFM Comparison Grid",
            category="SIFM",
            description="Pictures side by side with their labels, one row per picture and instruction: the source, its "
            "edit, then every protected picture and its edit. Framed: all judges say that the edit failed.",
            search_aliases=["contact sheet", "qualitative results", "figure", "image grid", "side by side"],
            inputs=[
                sockets.Records.Input("records", tooltip="From Results Table."),
                io.Int.Input("rows", default=8, min=1, max=100, tooltip="How many pictures and instructions to show."),
                io.Int.Input("side", default=192, min=64, max=1024, step=32, tooltip="Pixels per picture."),
                io.Boolean.Input("protected", default=True, tooltip="Show the protected pictures too."),
                io.String.Input(
                    "only",
                    default="",
                    optional=True,
                    advanced=True,
                    tooltip="Rows of the table to show, separated by commas, such as PhotoGE, SIFM; empty: all.",
                ),
            ],
            outputs=[io.Image.Output("image")],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, records: Run, rows: int, side: int, protected: bool, only: str = "") -> io.NodeOutput:
        shown = _columns(records.records, [name.strip() for name in only.split(",") if name.strip()], protected)
        with Store(records.folder, create=False) as store:
            png = report.grid([record for cell in attacks(shown)[:rows] for record in cell], store, side)
        with Pillow.open(bytes_io.BytesIO(png)) as sheet:
            image = torch.from_numpy(np.asarray(sheet.convert("RGB")).astype(np.float32) / 255)[None]
        return io.NodeOutput(image, ui={"images": [whole_picture(image[0].movedim(-1, 0))]})


class SifmRecordsExport(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SIFM_RecordsExport",
            display_name="SIFM Records Export",
            category="SIFM",
            description="Write every attack with its settings, metrics and verdicts into a file of the output folder.",
            search_aliases=["csv", "jsonl", "save results", "spreadsheet", "export"],
            inputs=[
                sockets.Records.Input("records", tooltip="From Results Table."),
                io.Combo.Input(
                    "format",
                    options=["jsonl", "csv"],
                    tooltip="jsonl: everything that is known; csv: a flat table for a spreadsheet.",
                ),
                io.String.Input(
                    "filename_prefix", default="SIFM/records", tooltip="Folder and name in the output folder."
                ),
            ],
            outputs=[io.String.Output("path", tooltip="Of the file, within the output folder.")],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, records: Run, format: str, filename_prefix: str) -> io.NodeOutput:
        output = folder_paths.get_output_directory()
        folder, name, _, subfolder, _ = folder_paths.get_save_image_path(filename_prefix, output)
        files = Path(folder).glob(f"{glob.escape(name)}_*.{format}")
        taken = [path.stem.removeprefix(f"{name}_").strip("_") for path in files]
        counter = max((int(number) for number in taken if number.isdigit()), default=0) + 1
        path = Path(folder, f"{name}_{counter:05}_.{format}")
        with tempfile.TemporaryDirectory() as place, Store(place) as store:
            for record in records.records:
                store.put_record(record)
            (store.export_csv if format == "csv" else store.export_jsonl)(path)
        shown = str(Path(subfolder, path.name))
        file = {"filename": path.name, "subfolder": subfolder, "type": "output"}
        return io.NodeOutput(shown, ui={"text": [f"{len(records.records)} records in {shown}"], "sifm_files": [file]})


def _columns(listed: Sequence[Record], only: Sequence[str], protected: bool) -> list[Record]:
    """The records as the engine's grid shows them: an edit each; a protected picture goes before as if it were one."""
    names = {record.method for record in listed}
    if unknown := [name for name in only if name not in names]:
        raise InputError(f"only: no row is called {unknown[0]!r}; there are {', '.join(sorted(names))}")
    shown = []
    for record in listed:
        if record.method == CLEAN:
            shown.append(replace(record, method="its edit"))
        elif not only or record.method in only:
            if protected:
                shown.append(replace(record, edited=record.protected, verdicts=()))
            shown.append(replace(record, method=f"{record.method}: edit" if protected else record.method))
    return shown
