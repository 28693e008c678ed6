"""Save a protected picture without losing what protects it."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import folder_paths
import torch
from comfy.cli_args import args
from comfy_api.latest import io, ui

from sifm_core import pipeline
from sifm_core.images import Picture, load_image, save_png, verify_budget
from sifm_core.types import Image

from . import sockets
from ._attacks import Protection
from ._comfy import to_comfy
from ._store import hash_of


class SifmSaveProtected(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SIFM_SaveProtected",
            display_name="SIFM Save Protected Image",
            category="SIFM",
            description="Write a lossless PNG, read it back and check that the file keeps the perturbation budget.",
            search_aliases=["save image", "save png", "export protected", "verify budget"],
            inputs=[
                sockets.Protection.Input("protection", tooltip="From one of the immunize nodes."),
                io.String.Input(
                    "filename_prefix", default="SIFM/protected", tooltip="Folder and name in the output folder."
                ),
            ],
            outputs=[io.Image.Output("image", tooltip="The picture as read back from the file.")],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, protection: Protection, filename_prefix: str) -> io.NodeOutput:
        files, read = written(protection, filename_prefix, _graph(cls.hidden))
        ui = {"images": [file.result for file in files], "text": [f"{file.shown}: {file.said}" for file in files]}
        return io.NodeOutput(to_comfy(read), ui=ui)


class Written(NamedTuple):
    """A file of the output folder, what ComfyUI calls it, and what is said of it."""

    path: Path
    result: ui.SavedResult
    shown: str
    said: str


def written(protection: Protection, prefix: str, metadata: Mapping[str, str]) -> tuple[list[Written], Image]:
    """Write each picture with its alpha and settings, and check the budget in the file; the files, and what is in them.

    Raises BudgetError where a file is outside the budget.
    """
    settings, masks, alphas = protection.settings, protection.mask, protection.alpha
    if settings.get("demonstration"):  # before ComfyUI counts the files of the name
        place, name = os.path.split(os.path.normpath(prefix))
        prefix = os.path.join(place, f"demonstration_{name}")
    height, width = protection.image.shape[-2:]
    folder, name, counter, subfolder, _ = folder_paths.get_save_image_path(
        prefix, folder_paths.get_output_directory(), width, height
    )
    files, read = [], []
    for i, (image, original) in enumerate(zip(protection.image.split(1), protection.original.split(1), strict=True)):
        path = Path(folder, f"{name.replace('%batch_num%', str(i))}_{counter + i:05}_.png")
        about = pipeline.public(settings) | {"original": hash_of(original), "protected": hash_of(image)}
        like = None if alphas is None else Picture(original, alphas[i % len(alphas)][None], None, Path(), "RGBA")
        save_png(image, path, like=like, metadata={"sifm": about, **metadata})
        mask, ball = None if masks is None else masks[i % len(masks)], settings.get("ball", "linf")
        most = verify_budget(path, original, settings["eps"], ball, mask)
        read.append(load_image(path))
        what = "largest change" if ball == "linf" else "change (RMS)"
        said = f"{what} {255 * most:.3g} of 255, from the picture as ComfyUI read it"
        result = ui.SavedResult(path.name, subfolder, io.FolderType.output)
        files.append(Written(path, result, str(Path(subfolder, path.name)), said))
    return files, torch.cat(read)


def _graph(hidden: Any) -> dict[str, str]:
    """The graph that made the picture, as ComfyUI's own save node writes it."""
    if args.disable_metadata or hidden is None:
        return {}
    graph = {"prompt": hidden.prompt} if hidden.prompt else {}
    return {key: json.dumps(value) for key, value in (graph | (hidden.extra_pnginfo or {})).items()}
