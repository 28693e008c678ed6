"""Load an editor to protect against."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from comfy import model_management
from comfy_api.latest import io

from sifm_core.editors import load_editor

from . import _editors, sockets
from ._comfy import ManagedEditor, engine_room


class SifmLoadEditor(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        here = _editors.at_hand()
        absent = _editors.absent(here)
        return io.Schema(
            node_id="SIFM_LoadEditor",
            display_name="SIFM Load Editor",
            category="SIFM",
            description="Load the text-guided editor to protect against. Nothing is downloaded.",
            search_aliases=["instruct pix2pix", "ip2p", "load diffusers", "editor loader", "miniature"],
            inputs=[
                io.Combo.Input(
                    "editor",
                    options=[*here, *absent],
                    default="miniature-ip2p",
                    tooltip="The miniatures come with the pack; the others are diffusers folders in models/diffusers, "
                    "or repositories in the Hugging Face cache. What is not here says where it comes from.",
                    extra_dict={"sifm_absent": absent},
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
    def validate_inputs(cls, editor: str | None = None, folder: str | None = "") -> bool | str:
        if folder and not Path(folder).expanduser().joinpath("model_index.json").is_file():
            return f"{folder} has no model_index.json: expected the folder of a diffusers pipeline"
        return folder is None or bool(folder) or editor is None or not (wrong := _editors.problem(editor)) or wrong

    @classmethod
    def fingerprint_inputs(cls, editor: str, folder: str = "", **_: Any) -> list[tuple[str, int, int]]:
        """Changes when a file of the editor does, so that a new model under an old name is loaded again."""
        return _editors.files(_editors.source(editor, folder))

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
        options: dict[str, Any] = {} if t5 else {"t5": False}
        return io.NodeOutput(load(editor, folder, dtype, checkpointing, demonstration, **options))


def load(
    editor: str,
    folder: str = "",
    dtype: str = "auto",
    checkpointing: bool = False,
    demonstration: bool = False,
    **options: Any,
) -> ManagedEditor:
    """The editor of a name in the list, or of a folder, as it flows through a socket."""
    if dtype == "auto":
        fast = model_management.should_use_bf16(model_management.get_torch_device())
        dtype = "bfloat16" if fast else "float32"
    with engine_room():
        loaded = load_editor(
            _editors.source(editor, folder),
            device=model_management.unet_offload_device(),
            dtype=dtype,
            checkpointing=checkpointing,
            **options,
        )
    loaded.name = folder or editor  # as chosen, wherever ComfyUI found it
    return ManagedEditor(loaded, demonstration)
