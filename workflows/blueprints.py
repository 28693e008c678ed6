"""The subgraph blueprints: several nodes as one, for graphs that have other things to do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from layout import Graph, Out


def with_checkpoint(g: Graph) -> dict[str, Any]:
    g.group("Protect")
    loaded = g.add("CheckpointLoaderSimple", ckpt_name="instruct-pix2pix-00-22000.safetensors")
    g.column()
    wires = {"model": loaded.MODEL, "vae": loaded.VAE, "clip": loaded.CLIP}
    editor = g.add("SIFM_EditorFromModel", **wires)
    g.column(640)
    done = g.add("SIFM_ProtectImage", editor=editor.editor, against="instruct-pix2pix")
    inputs = [[(done, "image")], [(loaded, "ckpt_name")], [(done, "strength")], [(done, "words")]]
    about = "Protects a picture against editing with a checkpoint of yours, and saves it with its certificate."
    return g.blueprint("Protect Image from my checkpoint", about, inputs, [done.image])


def and_test(g: Graph) -> dict[str, Any]:
    g.group("Protect")
    done = g.add("SIFM_ProtectImage", against="instruct-pix2pix")
    g.column(760)
    held = g.add("SIFM_DoesItHold", image=done.image, editor=done.editor, against="instruct-pix2pix")
    about = "Protects a picture, saves it with its certificate, and attacks it as others may: does it hold?"
    inputs = [[(done, "image"), (held, "source")], [(done, "against")], [(done, "strength")]]
    return g.blueprint("Protect Image and test it", about, inputs, [done.image, Out(held, "report")])


BLUEPRINTS: dict[str, Callable[[Graph], dict[str, Any]]] = {
    "Protect Image from my checkpoint": with_checkpoint,
    "Protect Image and test it": and_test,
}
"""File in ``subgraphs/`` -> how it is made."""
