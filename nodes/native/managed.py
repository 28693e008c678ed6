"""A native editor in an editor socket: ComfyUI keeps moving the very networks that the person loaded."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from sifm_core.errors import EditorError
from sifm_core.images import resize
from sifm_core.types import Image

from .._comfy import ManagedEditor
from .doctor import check
from .editor import NativeEditor
from .recipes.encoder_only import EncoderOnly

GB = 1e9


class NativeManaged(ManagedEditor):
    """As :class:`ManagedEditor`, on patchers that are there already, shared with the rest of the graph."""

    def __init__(self, editor: NativeEditor) -> None:
        self.editor: Any = editor
        self.demonstration = False
        self.device = editor.model.load_device
        self._return: Callable[[], None] = lambda: None
        editor.reading = self._reading  # type: ignore[method-assign]

    def patchers(self) -> list[Any]:
        text = [self.editor.clip.patcher] if self.editor.sees else []
        return [self.editor.model, self.editor.vae.patcher, *text]

    def settle(self) -> None:
        for patcher in self.patchers():
            if getattr(patcher.model, "model_lowvram", False):
                raise EditorError(
                    f"{type(patcher.model).__name__} is only partly on {patcher.load_device}: its layers share one "
                    "buffer there, which silently gives wrong gradients. Free memory, take a smaller or more strongly "
                    "quantised model, or start ComfyUI with --cpu, which is slow"
                )

    def fit(self, memory: int) -> None:
        """Raise EditorError where weights and ``memory`` bytes of work can never be on the device together."""
        from comfy import model_management

        weights = sum(patcher.model_size() for patcher in self.patchers())
        total = model_management.get_total_memory(self.device)
        if weights + memory > total:
            raise EditorError(
                f"{self.editor.name} needs {weights / GB:.1f} GB for its weights and about {memory / GB:.1f} GB for "
                f"gradients, and {self.device} has {total / GB:.1f} GB: lower {{rows}} or the size, take a smaller or "
                "more strongly quantised model, or choose 'encoder only'",
                rows=1,
            )

    def examine(self, image: Image, prompt: str, layers: str | Sequence[str] | None) -> str:
        """As :meth:`ManagedEditor.examine`, by the doctor; the line also says what it takes, and where."""
        editor = self.editor
        size = editor.work_size(*image.shape[-2:])
        x = resize(image[:1].to(editor.device), size)
        layers = None if isinstance(editor.recipe, EncoderOnly) else layers
        found = check(editor, x, editor.prepare([prompt], x), layers)
        if layers is not None:
            editor.measured = found.row_bytes, size[0] * size[1]
        weights = sum(patcher.model_size() for patcher in self.patchers())
        return (
            f"{editor.name} ({editor.recipe.title}, {str(editor.dtype).removeprefix('torch.')} on {editor.device}): "
            f"{found.line}; {weights / GB:.2f} GB of weights, {found.row_bytes / GB:.2f} GB a row"
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
