"""A native editor in an editor socket: ComfyUI keeps moving the very networks that the person loaded."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from sifm_core.errors import EditorError
from sifm_core.images import resize
from sifm_core.methods.entrances import Entrances
from sifm_core.types import Image

from .._comfy import GRADIENT_BYTES_PER_PIXEL, ManagedEditor
from .doctor import check, measured
from .editor import NativeEditor

GB = 1e9
SPARED = 0.25
"""What blocks that are run twice keep, at most, of what they else would, as long as it is not measured."""


class NativeManaged(ManagedEditor):
    """As :class:`ManagedEditor`, on patchers that are there already, shared with the rest of the graph."""

    borrowed = True

    def __init__(self, editor: NativeEditor) -> None:
        self.editor: Any = editor
        self.demonstration = False
        self.device = editor.model.load_device
        self._return: Callable[[], None] = lambda: None
        editor.reading = self._reading  # type: ignore[method-assign]

    def patchers(self) -> list[Any]:
        text = [self.editor.clip.patcher] if self.editor.sees else []
        return [self.editor.model, self.editor.vae.patcher, *text]

    def working(self, image: Image) -> int:
        """As :meth:`ManagedEditor.working`; once measured, what was measured."""
        editor, (height, width) = self.editor, self.editor.work_size(*image.shape[-2:])
        every = super().working(image)
        if editor.measured is None:
            return every
        pixels = len(image) * height * width
        return every - pixels * GRADIENT_BYTES_PER_PIXEL + pixels * editor.measured.encoder // editor.measured.pixels

    def settle(self) -> None:
        for patcher in self.patchers():
            spared = self.editor.sparing and patcher is self.editor.model
            if getattr(patcher.model, "model_lowvram", False) and not spared:
                raise EditorError(
                    f"{type(patcher.model).__name__} is only partly on {patcher.load_device}, where no gradient comes "
                    "through it: free memory, lower the size, take a smaller or more strongly quantised model, or "
                    "start ComfyUI with --cpu, which is slow"
                )

    def fit(self, memory: int) -> tuple[int, bool]:
        """As :meth:`ManagedEditor.fit`; what does not fit is run sparingly: each block twice, for its inputs alone.

        On a GPU weights then stay off it, too, as far as they must. Raises EditorError where even so there is no room.
        """
        from comfy import model_management

        editor, total = self.editor, model_management.get_total_memory(self.device)
        sizes = {patcher: patcher.model_size() for patcher in self.patchers()}
        known = [m for m in model_management.current_loaded_models if m.model is not None and m.device == self.device]
        held = sum(model.model_loaded_memory() for model in known)
        room = min(total, model_management.get_free_memory(self.device) + held)
        weights = sum(sizes.values())
        blocks = len(editor.network.blocks(editor.net))
        sparing = int(memory * (SPARED if editor.measured is None else editor.measured.spared)) if blocks else memory
        resident = weights - sizes[editor.model] if blocks and self.device.type != "cpu" else weights
        if resident + sparing > room:
            raise EditorError(
                f"{editor.name} needs {weights / GB:.1f} GB for its weights and about {memory / GB:.1f} GB for "
                f"gradients, and {self.device} has {room / GB:.1f} of {total / GB:.1f} GB: close what else uses it, "
                "lower {rows} or the size, take a smaller or more strongly quantised model, or choose 'encoder only'",
                rows=1,
            )
        whole = weights + sparing <= room
        editor.sparing = editor.sparing or not whole or (editor.measured is not None and weights + memory > room)
        return sparing if editor.sparing else memory, whole

    def examine(
        self, image: Image, prompt: str, layers: str | Sequence[str] | None, entrances: Entrances = "vae"
    ) -> str:
        """As :meth:`ManagedEditor.examine`, by the doctor; the line also says what it takes, and where."""
        editor = self.editor
        size = editor.work_size(*image.shape[-2:])
        x = resize(image[:1].to(editor.device), size)
        if layers is not None:
            editor.check_runs()
        cond = editor.prepare([prompt], x)
        if layers is not None and editor.measured is None:
            with editor.resting():
                editor.sparing = False
            editor.measured = measured(editor, x, cond, layers)
            with editor.resting():
                editor.bring()  # now that it is known how much room there must be
        found = check(editor, x, cond, layers, entrances)
        weights, off = (sum(size(p) for p in self.patchers()) for size in (_weights, _off))
        row = "" if layers is None else f", {editor.measured.row / GB:.2f} GB a row"
        spared = f"; for want of memory each block is run twice, {off / GB:.2f} GB of weights are off the device"
        where = f"{str(editor.dtype).removeprefix('torch.')} on {editor.device}"
        where += "" if editor.vae.device == editor.device else f", autoencoder on {editor.vae.device}"
        return (
            f"{editor.name} ({editor.recipe.title}, {where}): "
            f"{found.line}; {weights / GB:.2f} GB of weights{row}{spared if editor.sparing else ''}"
        )

    @contextmanager
    def loaded(self, load: Callable[[], None]) -> Iterator[None]:
        self.editor.bring = load
        with super().loaded(load), self.editor.learning():
            yield

    @contextmanager
    def _reading(self) -> Iterator[None]:
        try:
            yield  # core's CLIP brings itself in
        finally:
            self._return()


def _weights(patcher: Any) -> int:
    return int(patcher.model_size())


def _off(patcher: Any) -> int:
    return int(patcher.model_size() - patcher.loaded_size())
