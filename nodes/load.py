"""Load an editor to protect against."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import folder_paths
from comfy import model_management
from comfy_api.latest import io

from sifm_core.editors import BUILTIN, load_editor

from . import sockets
from ._comfy import ManagedEditor, engine_room


class SifmLoadEditor(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SIFM_LoadEditor",
            display_name="SIFM Load Editor",
            category="SIFM",
            description="Load the text-guided editor to protect against. Nothing is downloaded.",
            search_aliases=["instruct pix2pix", "ip2p", "load diffusers", "editor loader", "miniature"],
            inputs=[
                io.Combo.Input(
                    "editor",
                    options=[*BUILTIN, *(name for name in _folders() if name not in BUILTIN)],
                    default="miniature-ip2p",
                    tooltip="miniature-ip2p comes with the pack; the others are diffusers folders in models/diffusers, "
                    "or repositories in the Hugging Face cache.",
                ),
                io.String.Input(
                    "folder",
                    default="",
                    optional=True,
                    advanced=True,
                    tooltip="Path of a diffusers folder elsewhere; takes the place of the choice above.",
                ),
                io.Combo.Input(
                    "dtype",
                    options=["auto", "float32", "bfloat16", "float16"],
                    optional=True,
                    advanced=True,
                    tooltip="Of the networks; perturbation and gradient sums are float32 in any case.",
                ),
                io.Boolean.Input(
                    "checkpointing",
                    default=False,
                    optional=True,
                    advanced=True,
                    tooltip="Compute inner results again on the way back instead of keeping them: far less memory for "
                    "about a third more time. (ComfyUI itself takes networks off the device where memory is short.)",
                ),
                io.Boolean.Input(
                    "t5",
                    default=True,
                    optional=True,
                    advanced=True,
                    tooltip="Stable Diffusion 3's largest text encoder, over half of its weights; off leaves it out.",
                ),
                io.Boolean.Input(
                    "demonstration",
                    default=False,
                    optional=True,
                    advanced=True,
                    tooltip="Let a miniature work on a picture larger than its own drawings: it is stained and not "
                    "protected, and the saved file is called a demonstration.",
                ),
            ],
            outputs=[sockets.Editor.Output("editor")],
        )

    @classmethod
    def validate_inputs(cls, folder: str = "") -> bool | str:
        if folder and not Path(folder).expanduser().joinpath("model_index.json").is_file():
            return f"{folder} has no model_index.json: expected the folder of a diffusers pipeline"
        return True

    @classmethod
    def fingerprint_inputs(cls, editor: str, folder: str = "", **_: Any) -> list[tuple[str, int, int]]:
        """Changes when a file of the editor does, so that a new model under an old name is loaded again."""
        files = sorted(Path(_source(editor, folder)).expanduser().glob("*/*"))
        return [(str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files]

    @classmethod
    def execute(
        cls,
        editor: str,
        folder: str = "",
        dtype: str = "auto",
        checkpointing: bool = False,
        t5: bool = True,
        demonstration: bool = False,
    ) -> io.NodeOutput:
        if dtype == "auto":
            fast = model_management.should_use_bf16(model_management.get_torch_device())
            dtype = "bfloat16" if fast else "float32"
        options: dict[str, Any] = {} if t5 else {"t5": False}
        with engine_room():
            loaded = load_editor(
                _source(editor, folder),
                device=model_management.unet_offload_device(),
                dtype=dtype,
                checkpointing=checkpointing,
                **options,
            )
        loaded.name = folder or editor  # as chosen, wherever ComfyUI found it
        return io.NodeOutput(ManagedEditor(loaded, demonstration))


def _source(editor: str, folder: str) -> str:
    """Folder or hub id of the chosen editor; a folder in models/diffusers goes before a built-in hub id of its name."""
    return folder or str(_folders().get(editor) or BUILTIN.get(editor, editor))


def _folders() -> dict[str, Path]:
    """The diffusers pipelines in ComfyUI's model folders, by name."""
    places = [Path(place) for place in folder_paths.get_folder_paths("diffusers")]
    return {index.parent.name: index.parent for place in places for index in sorted(place.glob("*/model_index.json"))}
