"""Save a protected picture without losing what protects it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import folder_paths
import torch
from comfy.cli_args import args
from comfy_api.latest import io, ui

from sifm_core import pipeline
from sifm_core.images import load_image, save_png, verify_budget

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
        height, width = protection.image.shape[-2:]
        folder, name, counter, subfolder, _ = folder_paths.get_save_image_path(
            filename_prefix, folder_paths.get_output_directory(), width, height
        )
        saved, read = [], []
        settings, masks = protection.settings, protection.mask
        for i, (image, original) in enumerate(
            zip(protection.image.split(1), protection.original.split(1), strict=True)
        ):
            shown = "demonstration_" if settings.get("demonstration") else ""
            file = f"{shown}{name.replace('%batch_num%', str(i))}_{counter + i:05}_.png"
            about = pipeline.public(settings) | {"original": hash_of(original), "protected": hash_of(image)}
            save_png(image, Path(folder, file), metadata={"sifm": about, **_graph(cls.hidden)})
            mask = None if masks is None else masks[i % len(masks)]
            verify_budget(Path(folder, file), original, settings["eps"], settings.get("ball", "linf"), mask)
            read.append(load_image(Path(folder, file)))
            saved.append(ui.SavedResult(file, subfolder, io.FolderType.output))
        return io.NodeOutput(to_comfy(torch.cat(read)), ui=ui.SavedImages(saved))


def _graph(hidden: Any) -> dict[str, str]:
    """The graph that made the picture, as ComfyUI's own save node writes it."""
    if args.disable_metadata or hidden is None:
        return {}
    graph = {"prompt": hidden.prompt} if hidden.prompt else {}
    return {key: json.dumps(value) for key, value in (graph | (hidden.extra_pnginfo or {})).items()}
