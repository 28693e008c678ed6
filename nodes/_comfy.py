"""What the nodes need of ComfyUI: tensor layout, gradients, memory management, progress.

A prompt runs in ``torch.inference_mode``: no gradient exists there, and whatever is created or moved there stays unfit
for one. So the engine works in :func:`engine_room`, on clones of its inputs, with parameters that :func:`heal` has
looked at. ComfyUI itself is imported inside the functions that need it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from sifm_core.errors import ImageError, SifmError
from sifm_core.images import perturbation_view, resize, to_uint8
from sifm_core.methods.entrances import Entrances
from sifm_core.types import Editor, Image, OnStep, Step

PREVIEW_SIDE = 256
"""Smaller pictures are enlarged to this many pixels for the live preview, so that single pixels can be seen."""
GRADIENT_BYTES_PER_PIXEL = 16 * 1024
"""Activations that a backward pass keeps: Stable Diffusion 1.5's VAE encoder counts 12 KiB a pixel in fp32."""
TIMESTEPS = 10
"""Rows that a picture has by default."""


@contextmanager
def engine_room() -> Iterator[None]:
    """Where tensors are normal tensors and gradients flow, inside a prompt; errors speak of widgets."""
    try:
        with torch.inference_mode(False), torch.enable_grad():
            yield
    except SifmError as error:
        error.speak(_widget)
        raise


def _widget(name: str, value: Any) -> str:
    """How a setting that the engine advises is made in ComfyUI."""
    elsewhere = {
        "local_files_only": "`hf download` in a terminal: nodes fetch nothing",
        "offload": "start ComfyUI with --lowvram",
        "device": "start it with --cpu",
    }
    node = dict.fromkeys(("dtype", "checkpointing", "editor", "demonstration"), " in Load Editor")
    node["aggregation"] = " in Feature Hook"
    shown = ("no", "yes")[value] if isinstance(value, bool) else value
    return elsewhere.get(name) or f"{name} {shown}{node.get(name, '')}"


def to_engine(image: Tensor) -> Image:
    """ComfyUI's (B, H, W, C) -> the engine's (B, 3, H, W) on the 8-bit grid, a normal tensor; alpha is dropped."""
    with engine_room():
        pixels = image.clone().detach().float().cpu().movedim(-1, 1)[:, :3]
        return pixels.clamp(0, 1).mul(255).round().div(255).expand(-1, 3, -1, -1).contiguous()


MARKS = ("where to protect", "what to leave alone", "what is transparent")
"""What a mask may mean; Load Image's own is what is transparent, or what was painted in its mask editor."""


def to_masks(image: Tensor, mask: Tensor | None, marks: str = MARKS[0]) -> tuple[Tensor | None, Tensor | None]:
    """(where pixels may change, alpha) of ComfyUI's IMAGE and MASK, each (1 or B, 1, H, W) in [0, 1] or None.

    An empty mask is none, as Load Image gives it for a picture without alpha; one of another size is resized. Fully
    transparent pixels stay as they are. The alpha is that of an image with four channels, or what the mask says.
    """
    with engine_room():
        alpha = image[..., 3:4].clone().float().cpu().movedim(-1, 1).clamp(0, 1) if image.shape[-1] == 4 else None
        chosen = None
        if mask is not None and bool(mask.any()):
            given = mask.clone().float().cpu().reshape(-1, 1, *mask.shape[-2:]).clamp(0, 1)
            chosen = resize(given, (image.shape[1], image.shape[2]))
            if marks == MARKS[2]:
                alpha, chosen = 1 - chosen, None
            elif marks == MARKS[1]:
                chosen = 1 - chosen
        if alpha is not None and bool((alpha >= 1).all()):
            alpha = None
        if alpha is not None:
            seen = (alpha > 0).float()
            chosen = seen if chosen is None else seen * chosen
        if chosen is not None and not bool(chosen.any()):
            raise ImageError("mask: nothing is left to protect: everything is masked or transparent")
        return chosen, alpha


def to_comfy(image: Image) -> Tensor:
    """The engine's (B, 3, H, W) -> ComfyUI's (B, H, W, 3), float32 on the CPU."""
    return image.detach().float().cpu().movedim(1, -1).contiguous()


def unfit(tensor: Tensor) -> bool:
    """Whether no gradient passes: made or moved in inference mode, perhaps moved on outside of it, which hides that."""
    try:
        return tensor.is_inference() or tensor._version < 0
    except RuntimeError:  # "Inference tensors do not track version counter", though it says that it is none
        return True


def heal(module: nn.Module) -> None:
    """Replace parameters and buffers that were moved under inference mode by normal tensors, in place."""

    @functools.cache
    def fresh(tensor: Tensor) -> Tensor:
        clone = tensor.detach().clone()
        return nn.Parameter(clone, requires_grad=False) if isinstance(tensor, nn.Parameter) else clone

    with engine_room():
        for part in module.modules():
            own: tuple[dict[str, Any], dict[str, Any]] = (part._parameters, part._buffers)
            for tensors in own:
                for name, tensor in tensors.items():
                    if tensor is not None and unfit(tensor):
                        tensors[name] = fresh(tensor)


class _Part(nn.Module):
    """One network as ComfyUI's memory management wants it: a module whose `device` can be set."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network


class ManagedEditor:
    """What flows through an editor socket: an engine editor whose networks ComfyUI moves, each on its own.

    ``editor`` must have been loaded on the offload device. ``demonstration``: a toy may work on real pictures.
    """

    def __init__(self, editor: Any, demonstration: bool = False) -> None:
        from comfy import model_management
        from comfy.model_patcher import ModelPatcher

        self.editor, self.demonstration = editor, demonstration
        self.device, offload = model_management.get_torch_device(), model_management.unet_offload_device()
        patchers = {
            name: ModelPatcher(_Part(network), self.device, offload) for name, network in editor.networks().items()
        }
        self._text = [patcher for name, patcher in patchers.items() if name.startswith("text_encoder")]
        self._rest = [patcher for name, patcher in patchers.items() if not name.startswith("text_encoder")]
        self._return: Callable[[], None] = lambda: None
        editor.reading = self._reading

    @contextmanager
    def at_work(self, prompts: Sequence[str], image: Image, also: Sequence[ManagedEditor] = ()) -> Iterator[Editor]:
        """The editor, in the engine room, on its device, with room for the gradient of ``image``.

        ``also``: further editors that are on the device at the same time. An editor remembers prompts: the text
        encoders come only for new ones, before the other networks for ``prompts``; for any that a method asks for
        later they come in between, and may drive the others out, which then return.
        """
        team = [self, *also]
        with engine_room(), ExitStack() as rooms:
            for managed in team:
                managed.editor.device = managed.device
                managed.editor.prepare(list(prompts))
            load = functools.partial(_load, team, image)
            load()
            for managed in team:
                rooms.enter_context(managed.loaded(load))
            yield self.editor

    borrowed = False
    """Whether the networks are those of the graph, which ComfyUI moves in inference mode."""

    def patchers(self) -> list[Any]:
        """Of the networks that an iteration needs, for ComfyUI's memory management."""
        return self._rest

    def settle(self) -> None:
        """Called whenever ComfyUI may have moved the networks."""
        for patcher in self._rest:
            heal(patcher.model)

    @contextmanager
    def loaded(self, load: Callable[[], None]) -> Iterator[None]:
        """Entered while the networks are on the device; ``load`` brings them back there."""
        self._return = load
        try:
            yield
        finally:
            self._return = lambda: None

    def working(self, image: Image) -> int:
        """Bytes of an iteration: the autoencoder's for every picture, the network's for the rows it runs at once."""
        height, width = self.editor.work_size(*image.shape[-2:])
        rows = max(len(image), min(TIMESTEPS * len(image), self.editor.rows(height, width)))
        row: int = self.editor.row_bytes(height, width)
        return len(image) * GRADIENT_BYTES_PER_PIXEL * height * width + rows * row

    def fit(self, memory: int) -> tuple[int, bool]:
        """Called before the networks are brought in, with the bytes that work would take beside them.

        Returns those that it will take, and whether all weights are to be on the device with them.
        """
        return memory, True

    def examine(
        self, image: Image, prompt: str, layers: str | Sequence[str] | None, entrances: Entrances = "vae"
    ) -> str:
        """What was found out about the editor before it protects, in one line, inside :meth:`at_work`; "" for nothing.

        ``layers`` that the method looks into; None: it uses the autoencoder alone. ``entrances`` by which its gradient
        comes back. Raises EditorError where a protection would be worth nothing.
        """
        return ""

    @contextmanager
    def _reading(self) -> Iterator[None]:
        from comfy import model_management

        model_management.load_models_gpu(self._text, force_full_load=True)
        for patcher in self._text:
            heal(patcher.model)
        try:
            yield
        finally:
            self._return()


def _load(team: Sequence[ManagedEditor], image: Image) -> None:
    from comfy import model_management

    memory = max(managed.working(image) for managed in team)
    fits = [managed.fit(memory) for managed in team]
    patchers = [patcher for managed in team for patcher in managed.patchers()]
    needed, whole = max(needed for needed, _ in fits), all(whole for _, whole in fits)
    with torch.inference_mode(any(managed.borrowed for managed in team)):
        model_management.load_models_gpu(patchers, memory_required=needed, force_full_load=whole)
    for managed in team:
        managed.settle()


def said(text: str) -> None:
    """Show a line on the node that is executing."""
    from comfy_execution.utils import get_executing_context
    from server import PromptServer

    context, server = get_executing_context(), getattr(PromptServer, "instance", None)
    if context is not None and server is not None:
        server.send_progress_text(text, context.node_id)


def reporter(original: Image | None = None, eps: float = 1.0, every: int = 5, preview: bool = True) -> OnStep:
    """Progress bar, live preview every few steps, and the user's interrupt, which is looked for at every step.

    A node that ends by showing a picture has no ``preview``: the editor would go on showing the last one instead.
    """
    from comfy import model_management
    from comfy.utils import ProgressBar

    bar = ProgressBar(1)

    def on_step(step: Step) -> None:
        model_management.throw_exception_if_processing_interrupted()
        due = preview and (step.i == 1 or step.i == step.n or step.i % every == 0)
        seen = _preview(step.preview, original, eps) if due and step.preview is not None else None
        bar.update_absolute(step.i, step.n, seen)

    return on_step


def _preview(image: Image, original: Image | None, eps: float) -> tuple[str, Any, int]:
    """The batch's first picture, beside its amplified perturbation when the original is known."""
    from PIL import Image as Pillow

    picture = image[:1].detach().float().cpu()
    if original is not None:
        picture = torch.cat([picture, perturbation_view(picture, original[:1], gain=1 / (2 * eps))], dim=-1)
    pil = Pillow.fromarray(to_uint8(picture.clamp(0, 1)))
    zoom = max(1, PREVIEW_SIDE // pil.height)
    return "JPEG", pil.resize((pil.width * zoom, pil.height * zoom), Pillow.Resampling.NEAREST), 2 * PREVIEW_SIDE
