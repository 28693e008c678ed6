"""What latent diffusion editors have in common: encoding, working size, the prompt cache, the checks before an edit."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cached_property, partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import checkpoint

from ..errors import ImageError, InputError, unknown
from ..graphs import replaying
from ..memory import enough
from ..types import Editor, Image, Latent, OnStep, Step
from . import folder as folders
from .attention import watched

LOADED = ("size", "t5_tokens", "text_tokens")
"""Settings that are fixed when an editor is loaded; the others are also options of each edit."""


class LatentEditor(Editor):
    """A frozen diffusers pipeline seen as an editor; families add denoise, target, edit and how a prompt is encoded."""

    positions_at_once: int
    """Latent positions (height x width) that the network runs at once with gradients, in 16 bits a number."""
    bytes_per_position: int
    """What each of them keeps until its gradient is taken, measured on a GPU with the deep layers."""
    extras: Mapping[str, Any] = MappingProxyType({})
    """Files beside its folder's that it was loaded with: ``weights``, ``loras``."""
    is_video = False
    """Whether the autoencoder is one of videos, of which a picture is one frame."""

    def __init__(
        self,
        name: str,
        folder: Path,
        parts: Sequence[str],
        pipe: Any,
        settings: Mapping[str, Any],
        multiple: int,
        shift: float | Tensor,
        scale: float | Tensor | None = None,
    ) -> None:
        """``shift`` and ``scale`` of the latent, for channels of their own (1, c, 1, 1); None: the autoencoder's."""
        self.name = name
        self.pipe = pipe
        self.settings = dict(settings)
        self.device: torch.device = pipe.vae.device
        self.dtype: torch.dtype = pipe.vae.dtype
        self.num_train_timesteps = int(pipe.scheduler.config.num_train_timesteps)
        self.latent_scale = float(pipe.vae.config.scaling_factor) if scale is None else scale
        self.latent_shift = shift
        self._folder, self._parts = folder, parts
        self._multiple = multiple
        self._prompts: dict[str, tuple[Tensor, ...]] = {}
        self._readers: dict[str, nn.Module] = {}
        self._alone = False

    def place(self, device: torch.device, offload: str, checkpointing: bool) -> None:
        """Put the networks on ``device``; see :func:`sifm_core.editors.load_editor` for the rest.

        Raises EditorError when they do not fit.
        """
        self.device = device
        names = [name for name in self.pipe.components if name.startswith("text_encoder")]
        if offload != "none" and device != torch.device("cpu"):
            self._readers = {name: getattr(self.pipe, name) for name in names if getattr(self.pipe, name) is not None}
            self._alone = offload == "sequential"
            for name in self._readers:
                setattr(self.pipe, name, None)
        with enough(f"the networks of {self.name}", device):
            self.pipe.to(device)
            for name in ("latent_shift", "latent_scale"):
                if isinstance(own := getattr(self, name), Tensor):
                    setattr(self, name, own.to(device))
        if checkpointing:
            self.checkpoint()

    @contextmanager
    def reading(self) -> Iterator[None]:
        """The text encoders are on the device inside, and gone from it, and from the pipeline, afterwards.

        Entered for every prompt that is new, whoever asks; who moves the networks by other means replaces it.
        """
        others = [self.net, self.pipe.vae] if self._alone else []
        try:
            for network in others:
                network.to("cpu")
            with enough(f"the text encoders of {self.name}", self.device):
                for name, reader in self._readers.items():
                    setattr(self.pipe, name, reader.to(self.device))
            yield
        finally:
            for name, reader in self._readers.items():
                setattr(self.pipe, name, None)
                reader.to("cpu")
            if self._readers and self.device.type == "cuda":
                torch.cuda.empty_cache()
            for network in others:
                network.to(self.device)

    @cached_property
    def fingerprint(self) -> str:  # type: ignore[override]
        """sha256 over the configuration and the weights, computed when first asked for."""
        return folders.fingerprint(self._folder, self._parts, self.extras)

    def work_size(self, height: int, width: int) -> tuple[int, int]:
        """The (height, width) at which a picture is edited: the longer side at the editor's native size, shape kept.

        An attacker's tool does the same, since the network knows one scale; both sides are rounded to the multiple that
        the network can halve, and never to less than one.
        """
        scale = self.settings["size"] / max(height, width)
        return _round(height * scale, self._multiple), _round(width * scale, self._multiple)

    def rows(self, height: int, width: int) -> int:
        """How many rows of a batch the network runs at once: :attr:`positions_at_once`, half in float32; at least 1."""
        return max(1, self.positions_at_once * 2 // self.dtype.itemsize // self._positions(height, width))

    def row_bytes(self, height: int, width: int) -> int:
        """About how much one row keeps until its gradient is taken."""
        return self._positions(height, width) * self.bytes_per_position * self.dtype.itemsize // 2

    def _positions(self, height: int, width: int) -> int:
        return math.prod(max(1, side // self.pipe.vae_scale_factor) for side in (height, width))

    def networks(self) -> dict[str, nn.Module]:
        """The pipeline's, and the text encoders that wait on the CPU."""
        parts = self.pipe.components | self._readers
        return {name: part for name, part in parts.items() if isinstance(part, nn.Module)}

    def embeddings(self, cond: Any) -> Tensor:
        """What the text encoders make of the prompts, (B, tokens, width)."""
        return cond.prompt

    def words(self, cond: Any) -> Tensor:
        """Which text positions are words of the prompt, (B, tokens) bool."""
        return cond.words

    def attention(self) -> AbstractContextManager[tuple[list[str], list[Tensor]]]:
        """As :meth:`Editor.attention` says, beside what the layers compute: fused kernels hide it."""
        return watched(self.net)

    @contextmanager
    def recomputing(self) -> Iterator[None]:
        """Gradient checkpointing inside the block; the network's own setting is restored."""
        net: Any = self.net
        if net.is_gradient_checkpointing:
            yield
            return
        net.enable_gradient_checkpointing(_RECOMPUTED)
        try:
            yield
        finally:
            net.disable_gradient_checkpointing()

    def checkpoint(self) -> None:
        """Let network and autoencoder, where they can, compute activations again on the way back from now on."""
        networks: list[Any] = [self.net, self.pipe.vae]
        for network in networks:
            if network._supports_gradient_checkpointing:
                network.enable_gradient_checkpointing(_RECOMPUTED)

    def encode(self, x: Image, noise: Latent | None = None) -> Latent:
        """Posterior mode, (mode - shift) * scale, (B, c, h, w): deterministic and differentiable; at least float32.

        ``x`` (B, 3, H, W) in [0, 1]. With standard normal ``noise`` (B, c, h, w): the draw mean + std * noise in place
        of the mode. Raises ImageError for a size that :meth:`work_size` does not give.
        """
        self.check_size(x)
        with _attention(x, self._positions(*x.shape[-2:])):
            pixels = (2 * x - 1).to(self.device, self.dtype)
            posterior = self.pipe.vae.encode(pixels[:, :, None] if self.is_video else pixels).latent_dist
        mean = posterior.mean
        raw = posterior.mode() if noise is None else mean + posterior.std * self._to_vae(noise.to(mean))
        return (wide(self._from_vae(raw)) - self.latent_shift) * self.latent_scale

    def _from_vae(self, raw: Tensor) -> Latent:
        """The autoencoder's latent as the network takes it, but for shift and scale."""
        return raw[:, :, 0] if self.is_video else raw

    def _to_vae(self, z: Latent) -> Tensor:
        """The other way round."""
        return z[:, :, None] if self.is_video else z

    def decode(self, z: Latent) -> Image:
        """The picture of a latent that :meth:`encode` gave: (B, c, h, w) -> (B, 3, H, W) in [0, 1] units, not clipped.

        Differentiable; at least float32.
        """
        raw = self._to_vae((z / self.latent_scale + self.latent_shift).to(self.device, self.dtype))
        with _attention(raw, math.prod(raw.shape[-2:])):
            pixels = self.pipe.vae.decode(raw, return_dict=False)[0]
        return wide(pixels[:, :, 0] if self.is_video else pixels) / 2 + 0.5

    def check_size(self, x: Image) -> None:
        """Raise ImageError for a size that :meth:`work_size` does not give."""
        if any(side % self._multiple for side in x.shape[-2:]):
            best = self.work_size(*x.shape[-2:])
            raise ImageError(
                f"{self.name} takes multiples of {self._multiple}, got {tuple(x.shape[-2:])} pixels: resize to {best}"
            )

    def encoded(
        self, prompts: Sequence[str], encode: Callable[[str], tuple[Tensor, ...]]
    ) -> tuple[list[Tensor], list[Tensor]]:
        """What ``encode`` makes of each prompt, and of none for each, as batches.

        Each prompt is encoded once, alone, and remembered in the computer's own memory.
        """
        prompts = [prompts] if isinstance(prompts, str) else list(prompts)
        for prompt in prompts:
            if not isinstance(prompt, str):
                raise InputError(f"prompt: expected text, got {prompt!r}")
        if new := [prompt for prompt in dict.fromkeys(("", *prompts)) if prompt not in self._prompts]:
            with torch.inference_mode(False), torch.no_grad(), self.reading():
                self._prompts |= {prompt: tuple(map(_kept, encode(prompt))) for prompt in new}

        def batch(texts: Sequence[str]) -> list[Tensor]:
            columns = zip(*(self._prompts[text] for text in texts), strict=True)
            return [torch.cat(rows).to(self.device) for rows in columns]

        return batch(prompts), batch([""] * len(prompts))

    def check_length(self, prompt: str, tokenizer: Any, limit: int) -> None:
        """Raise InputError for a prompt that the text encoder would cut off."""
        count = len(tokenizer(prompt, truncation=False, verbose=False).input_ids)
        if count > limit:
            raise InputError(
                f"prompt: {self.name} reads {limit} tokens, got {count}, the end would be lost: shorten {prompt!r}"
            )

    def positions(self, prompt: str, tokenizer: Any, length: int) -> Tensor:
        """Which of ``length`` tokens are words of the prompt, (1, length) bool."""
        ids = tokenizer(prompt, truncation=True, max_length=length).input_ids
        found = torch.zeros(1, length, dtype=torch.bool)
        found[0, [k for k, token in enumerate(ids) if token not in tokenizer.all_special_ids]] = True
        return found.to(self.device)

    def chosen(self, options: Mapping[str, Any], x: Image, rows: int) -> dict[str, Any]:
        """The editor's settings with this edit's options.

        Raises InputError for an unknown option or a wrong value, or when the number of prompts (``rows``) or the size
        of ``x`` does not fit.
        """
        self.check_size(x)
        if rows != len(x):
            raise InputError(f"expected one prompt per image, got {rows} for {len(x)}")
        merged = {name: value for name, value in self.settings.items() if name not in LOADED}
        for name, value in options.items():
            if name not in merged:
                raise unknown(f"option of {self.name}", name, merged)
            if value is not None:
                merged[name] = folders.positive(name, value, whole=isinstance(merged[name], int))
        return merged


class FlowEditor(LatentEditor):
    """One whose network predicts the flow from latent to noise, on straight paths between them."""

    def noised(self, z: Latent, noise: Latent, t: Tensor) -> Tensor:
        """The latent mixed with noise by timestep ``t`` (B,): all latent at 0, all noise at the last."""
        signal, spread = self.mix(t, z)
        return signal * z + spread * noise

    def mix(self, t: Tensor, like: Latent) -> tuple[Tensor, Tensor]:
        """1 - sigma and sigma at timestep ``t`` (B,), each (B, 1, 1, 1) of ``like``'s type."""
        sigma = (t.to(like) / self.num_train_timesteps).reshape(-1, 1, 1, 1)
        return 1 - sigma, sigma

    def target(self, z: Latent, noise: Latent, t: Tensor) -> Tensor:
        """The flow from the latent to the noise."""
        return noise - z


_RECOMPUTED = partial(checkpoint, use_reentrant=False, preserve_rng_state=False)
"""Nothing is drawn in a frozen network."""


def run(pipe: Any, call: Callable[..., Any] | None = None, **arguments: Any) -> Any:
    """Call a diffusers pipeline, or ``call`` it; afterwards, whatever happens, it keeps nothing of the call."""
    scheduler = pipe.scheduler
    pipe.scheduler = copy.deepcopy(scheduler)
    try:
        with replaying(getattr(pipe, "transformer", None) or pipe.unet):
            return (call or pipe)(**arguments).images
    finally:
        pipe.scheduler = scheduler
        pipe._current_timestep = None  # some keep the schedule in it when they are interrupted


def report(on_step: OnStep | None, done: int = 0, runs: int = 1) -> dict[str, Any]:
    """The argument that makes a diffusers pipeline call ``on_step`` after every denoising step.

    ``done`` of ``runs`` calls of it came before.
    """
    if on_step is None:
        return {}

    def after(pipe: Any, i: int, t: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        on_step(Step("edit", done * pipe.num_timesteps + i + 1, runs * pipe.num_timesteps))
        return tensors

    return {"callback_on_step_end": after}


def guided(predicted: Tensor, text: float, image: float) -> Tensor:
    """Guidance of InstructPix2Pix's kind from predictions given both, the picture alone, and nothing, stacked."""
    both, by_image, none = predicted.chunk(3)
    return none + text * (both - by_image) + image * (by_image - none)


def wide(x: Tensor) -> Tensor:
    """``x`` in float32, or float64 where it is that already."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _attention(x: Tensor, positions: int) -> AbstractContextManager[None]:
    """How the autoencoder's one wide head attends where a gradient is to come back through it on CUDA.

    A fused kernel of 512 channels does not fill a card with one picture: up to 64 x 64 latents plain products, in
    float32, are faster.
    """
    plain = x.is_cuda and x.requires_grad and torch.is_grad_enabled() and positions <= 64 * 64
    return sdpa_kernel(SDPBackend.MATH) if plain else nullcontext()


def _kept(t: Tensor) -> Tensor:
    return t if t.is_meta else t.cpu()


def _round(side: float, multiple: int) -> int:
    return max(multiple, round(side / multiple) * multiple)
