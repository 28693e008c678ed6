"""SIFM for ComfyUI: immunize pictures against text-guided editing, and measure honestly whether it worked.

This file is only what ComfyUI loads; the engine is `sifm_core`, the nodes are in `nodes/`.
"""

WEB_DIRECTORY = "./web"


async def comfy_entrypoint():
    """The pack's extension; called by ComfyUI once, when it starts."""
    import sys
    from pathlib import Path

    from comfy_api.latest import ComfyExtension

    root = str(Path(__file__).parent)
    if root not in sys.path:
        sys.path.append(root)  # makes `sifm_core` importable; last, so that nothing of ComfyUI's is shadowed
    from .nodes import node_list

    class SifmExtension(ComfyExtension):
        async def on_load(self):
            from server import PromptServer

            from .nodes import _shown, _store
            from .nodes.routes import register

            register(PromptServer.instance.routes)
            for tidy in (_store.tidy, _shown.tidy):
                tidy()

        async def get_node_list(self):
            return node_list()

    return SifmExtension()
