"""Qwen-Image-2.1: one causal sequence of words before the picture, the picture, the prompt, and the edit to come.

diffusers' QwenImage21Pipeline. The picture enters twice. Its latents take the places that the prompt keeps for it: they
attend backwards only and are modulated at timestep 0, so what they carry through every block is one function of the
picture ("reference", :attr:`Editor.timeless`). And Qwen3-VL sees the picture before it reads the prompt ("vlm").
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import EditorError, InputError
from ..images import to_uint8
from ..noise import Seed, generators
from ..types import Image, Latent, OnStep
from .attention import watched
from .folder import check, load_pipeline, settings
from .latent import FlowEditor, report, run, wide
from .sight import patches
from .steps import Sampler

PARTS = ("transformer", "vae", "text_encoder", "processor", "scheduler")
DEFAULTS = {"steps": 40, "guidance_scale": 1.0, "size": 1024}
"""``guidance_scale``: above 1 against an empty prompt; the model is meant to be sampled without. ``size``: of a square
of as many pixels as the edit."""
STREAMS = ("reference", "target", "text")
SLOT = 4
"""A place that the prompt keeps for the picture stands for so many of its latents, 2 x 2."""


def load(folder: Path, name: str, dtype: torch.dtype, options: Mapping[str, Any]) -> QwenImage21:
    """Load a QwenImage21Pipeline folder; ``options`` change :data:`DEFAULTS`."""
    from diffusers import QwenImage21Pipeline

    check(folder, PARTS, options)
    chosen = settings(folder, DEFAULTS, options)
    return assemble(name, folder, load_pipeline(QwenImage21Pipeline, folder, dtype, options), chosen)


def bare(parts: Mapping[str, nn.Module]) -> Any:
    """The pipeline of networks alone, which reads nothing: to count what work costs."""
    from diffusers import FlowMatchEulerDiscreteScheduler, QwenImage21Pipeline

    scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    return QwenImage21Pipeline(scheduler=scheduler, processor=_Unread(), **{"text_encoder": None, **parts})


class _Unread:
    """In the place of a processor: as many tokens as the template has, whatever the words."""

    tokenizer = property(lambda self: self)

    def apply_chat_template(self, *_: Any, **__: Any) -> list[list[int]]:
        return [[0] * 13]

    def encode(self, *_: Any) -> list[int]:
        return [1]

    def __call__(self, *_: Any) -> SimpleNamespace:
        return SimpleNamespace(input_ids=[0] * 21 + [1] + [0] * 8)


def assemble(name: str, folder: Path, pipe: Any, settings: Mapping[str, Any]) -> QwenImage21:
    """The editor of a pipeline that is there already."""
    return QwenImage21(name, folder, PARTS, pipe, settings)


@dataclass(frozen=True)
class Cond:
    """Prompts as tokens after the system's words, ``prompt`` (B, tokens, width) without the places of the picture.

    ``ids`` (B, all tokens) is what the text encoder reads, one place for the picture and -1 after the end; ``valid``
    and ``words`` (B, tokens) are where the prompt's tokens end and which are words of it. Rows are padded behind.
    """

    texts: tuple[str, ...]
    ids: Tensor
    prompt: Tensor
    valid: Tensor
    words: Tensor


class QwenImage21(FlowEditor):
    """The source is what the sequence begins with; at every t the whole of it is there to be looked at."""

    family = "qwen-image-2.1"
    entrances = ("vae", "vlm")
    positions_at_once = 4096  # one row at 1024x1024

    def __init__(self, name: str, folder: Path, parts: Sequence[str], pipe: Any, settings: Mapping[str, Any]) -> None:
        mean, std = (
            torch.tensor(values, device=pipe.vae.device).reshape(1, -1, 1, 1)
            for values in (pipe.vae.config.latents_mean, pipe.vae.config.latents_std)
        )
        super().__init__(name, folder, parts, pipe, settings, 2 * pipe.vae_scale_factor, shift=mean, scale=1 / std)
        self.net: Any = pipe.transformer
        self.timeless = ("reference",) if pipe.transformer.config.causal_condition else ()
        n: int = pipe.transformer.config.num_layers
        self.bytes_per_position = 2 * 51 * n * int(self.net.inner_dim)
        """A token of the source and one of the edit, 51 bytes a channel and block: counted, and so on an H100."""
        depths = {
            "deep": (n // 2, n),
            "all": (0, n),
            "early": (0, max(1, n // 4)),
            "mid": (n // 4, max(1, n // 2)),
            "last": (n - max(1, n // 4), n),
        }
        self.layer_presets = {
            **{depth: _blocks(*span) for depth, span in depths.items()},
            **{stream: _blocks(*depths["deep"], stream) for stream in STREAMS},
        }
        self._spans: dict[str, slice] = {}
        self._ropes: dict[tuple[int, Any], Tensor] = {}
        self.net.set_attn_processor(_processor())

    def work_size(self, height: int, width: int) -> tuple[int, int]:
        """The (height, width) of the same shape with as many pixels as the native square, in multiples of two latents.

        As the pipeline itself resizes.
        """
        scale = self.settings["size"] / math.sqrt(height * width)
        high, wide = (max(1, round(side * scale / self._multiple)) * self._multiple for side in (height, width))
        return high, wide

    def checkpoint(self) -> None:
        """Let the network compute activations again on the way back; the autoencoder's class cannot."""
        self.net.enable_gradient_checkpointing()

    def encode(self, x: Image, noise: Latent | None = None) -> Latent:
        """Posterior mode, (mode - mean) / std of each channel, (B, c, h, w): deterministic and differentiable.

        ``x`` (B, 3, H, W) in [0, 1], opaque. With standard normal ``noise`` (B, c, h, w): the draw mean + std * noise
        in place of the mode. Raises ImageError for a size that :meth:`work_size` does not give.
        """
        self.check_size(x)
        picture = F.pad(2 * x - 1, (0, 0, 0, 0, 0, self.pipe.vae.config.in_channels - 3), value=1.0)
        posterior = self.pipe.vae.encode(picture.to(self.device, self.dtype)[:, :, None]).latent_dist
        raw = (
            posterior.mode() if noise is None else posterior.mean + posterior.std * noise.to(posterior.mean)[:, :, None]
        )
        return (wide(raw[:, :, 0]) - self.latent_shift) * self.latent_scale

    def decode(self, z: Latent) -> Image:
        """The colours of a latent that :meth:`encode` gave, (B, 3, H, W) in [0, 1]: differentiable.

        Clipped by the autoencoder itself; how transparent it makes them is left out.
        """
        raw = (z / self.latent_scale + self.latent_shift).to(self.device, self.dtype)
        return wide(self.pipe.vae.decode(raw[:, :, None], return_dict=False)[0][:, :3, 0]) / 2 + 0.5

    def prepare(self, prompts: Sequence[str], x: Image | None = None) -> Cond:
        """Read one prompt per image beside it (see :meth:`see`); without images, as the prompt of a new picture."""
        prompts = [prompts] if isinstance(prompts, str) else list(prompts)
        for prompt in prompts:
            if not isinstance(prompt, str):
                raise InputError(f"prompt: expected text, got {prompt!r}")
        cond = self._tokens(prompts, x is not None)
        with torch.inference_mode(False), torch.no_grad(), self.reading():
            return self.with_embeddings(cond, self._read(cond, x))

    def see(self, cond: Cond, x: Image) -> Tensor:
        """What Qwen3-VL makes of the prompts once it saw ``x`` (B, 3, H, W), (B, tokens, width): differentiable.

        As the pipeline prepares it, but for its 8 bits. Raises EditorError where offloading has taken the text encoder
        off the device.
        """
        if self._readers:
            raise EditorError(
                f"{self.name}: a gradient through the text encoder needs it on the device: load with {{offload}}",
                offload="none",
            )
        return self._read(cond, x)

    def _tokens(self, prompts: Sequence[str], seeing: bool) -> Cond:
        """The prompts' tokens, with the embeddings still to come."""
        pipe, tokenizer = self.pipe, self.pipe.processor.tokenizer
        template = pipe.prompt_template_ti2i if seeing else pipe.prompt_template_t2i
        rows = [tokenizer(template.format(prompt or " ")).input_ids for prompt in prompts]
        before, after = (tokenizer(part).input_ids for part in template.split("{}"))
        longest = max(map(len, rows))
        ids = torch.tensor([row + [-1] * (longest - len(row)) for row in rows], device=self.device)
        place = torch.arange(longest, device=self.device)
        ends = torch.tensor([len(row) - len(after) for row in rows], device=self.device)[:, None]
        said = torch.tensor([[bool(prompt)] for prompt in prompts], device=self.device)
        words = (place >= len(before)) & (place < ends) & said
        kept = [k for k in range(pipe._drop_idx, longest) if not seeing or k != self._slot]
        valid = ids[:, kept] >= 0
        return Cond(tuple(prompts), ids, torch.empty(0), valid, words[:, kept])

    @cached_property
    def _slot(self) -> int:
        """Which token of the template stands for the picture."""
        ids = self.pipe.processor.tokenizer(self.pipe.prompt_template_ti2i).input_ids
        return int(ids.index(self.pipe._img_token_id))

    @property
    def before(self) -> int:
        """How many tokens stand between the system's words and the picture: the same of every prompt."""
        return self._slot - int(self.pipe._drop_idx)

    def _read(self, cond: Cond, x: Image | None) -> Tensor:
        drop, slot, ids = self.pipe._drop_idx, self._slot, cond.ids
        if x is None:
            return read(self.pipe.text_encoder, ids)[:, drop:]
        pixels, grid = patches(x.to(self.device), self.pipe.processor.image_processor)
        places = int(grid[0].prod()) // self.pipe.processor.image_processor.merge_size**2
        ids = torch.cat([ids[:, :slot], ids[:, slot : slot + 1].expand(-1, places), ids[:, slot + 1 :]], dim=1)
        embeddings = read(self.pipe.text_encoder, ids, pixels.to(self.dtype), grid)
        return torch.cat([embeddings[:, drop:slot], embeddings[:, slot + places :]], dim=1)

    def join(self, conds: Sequence[Cond]) -> Cond:
        """The conditions of several batches as those of one, padded behind to the longest."""
        if len(conds) == 1:
            return conds[0]

        def column(name: str) -> Any:
            parts = [getattr(cond, name) for cond in conds]
            if name == "texts":
                return sum(parts, ())
            longest, fill = max(part.shape[1] for part in parts), -1 if name == "ids" else 0
            return torch.cat([F.pad(p, (0, 0) * (p.ndim - 2) + (0, longest - p.shape[1]), value=fill) for p in parts])

        return Cond(*(column(field.name) for field in fields(Cond)))

    def take(self, cond: Cond, index: Tensor) -> Cond:
        """Some of the conditions, in this order."""
        texts = tuple(cond.texts[k] for k in index.tolist())
        tensors = (getattr(cond, field.name) for field in fields(Cond) if field.name != "texts")
        return Cond(texts, *(tensor.index_select(0, index.to(tensor.device)) for tensor in tensors))

    def blank(self, n: int) -> Cond:
        """Conditions of zeros for ``n`` images, of an instruction of some length, to count what work costs."""
        kind: dict[str, Any] = {"device": self.device}
        tokens = self.before + BLANK
        prompt = torch.zeros(n, tokens, self.pipe.transformer.config.context_in_dim, dtype=self.dtype, **kind)
        none = torch.zeros(n, tokens, dtype=torch.bool, **kind)
        return Cond(("",) * n, torch.zeros(n, tokens, dtype=torch.int64, **kind), prompt, ~none, none)

    def denoise(self, z: Latent, noise: Latent, t: Tensor, cond: Cond) -> Tensor:
        """The transformer's velocity at timestep ``t`` (B,) for an edit that so far is the source mixed with noise."""
        signal, spread = self.mix(t, z)
        return self.velocity(z, signal * z + spread * noise, t, cond)

    def velocity(self, source: Latent, z: Latent, t: Tensor, cond: Cond) -> Tensor:
        """What the transformer makes of a latent at timestep ``t`` (B,) and its source, in float32 or wider."""
        tokens = torch.cat([_packed(source), _packed(z)], dim=1).to(self.dtype)
        velocity = self._run(tokens, t, cond.prompt, cond.valid, [source, z])[:, -z[0, 0].numel() :]
        return wide(velocity).transpose(1, 2).reshape(z.shape)

    def tower(self, z: Latent, cond: Cond) -> Any:
        """The reference's tokens and those before them alone, as a picture to come that is at timestep 0."""
        text, n = cond.prompt[:, : self.before], len(z)
        return self._run(_packed(z).to(self.dtype), z.new_zeros(n), text, cond.valid[:, : self.before], [z])

    def _run(self, tokens: Tensor, t: Tensor, text: Tensor, valid: Tensor, pictures: Sequence[Latent]) -> Tensor:
        """The network on words, the source in its places, words and the edit; or words and a picture alone.

        Its own forward pass in the order of its parts, with a layout that is known beforehand: it waits for no device.
        """
        net, before, target = self.net, self.before, pictures[-1][0, 0].numel()
        source = pictures[0][0, 0].numel() if len(pictures) == 2 else 0
        end = text.shape[1] + source + target
        late = end - target
        self._spans = {
            "reference": slice(before, before + (source or target)),
            "target": slice(late, end),
            "text": slice(before + source, late),
            "": slice(0, end),
        }
        picture, words = net.img_in(tokens), net.txt_in(text.to(self.dtype))
        hidden = torch.cat([words[:, :before], picture[:, :source], words[:, before:], picture[:, source:]], dim=1)
        t = (t / self.num_train_timesteps).to(picture.dtype)
        is_target = None
        if self.timeless:  # a last row, of timestep 0, for what is not the edit
            t, is_target = torch.cat([t, t.new_zeros(1)]), torch.arange(end, device=t.device) >= late
        embedded = net.time_text_embed(t, picture)
        modulation = net.modulation(embedded)
        edges = [(0, before, True), (before, before + source, False), (before + source, late, True)]
        places, there = self._places(text.shape[1], pictures), None
        if not valid.is_meta and not bool(valid.all()):
            places = places.repeat(len(text), 1, 1)
            frames = text.shape[1] + max(pictures[0].shape[-2:]) * (source > 0) - (~valid).sum(dim=1)
            own = net.pos_embed.freqs[0].to(t.device)[frames]
            places[:, late:, : own.shape[1]] = own[:, None]  # behind its own prompt, not behind padding
            seen = valid.new_ones(len(valid), end)
            there = torch.cat([valid[:, :before], seen[:, :source], valid[:, before:], seen[:, late:]], dim=1)
        rest = (modulation, places, None, is_target, None, None, None, [e for e in edges if e[0] < e[1]], there)
        for block in net.transformer_blocks:
            if torch.is_grad_enabled() and net.gradient_checkpointing:
                hidden = net._gradient_checkpointing_func(block, hidden, *rest)
            else:
                hidden = block(hidden, *rest)
        out: Tensor = net.proj_out(net.norm_out(hidden, embedded, is_target))
        return out

    def _places(self, words: int, pictures: Sequence[Latent]) -> Tensor:
        """The rotary embedding of each position, (positions, width), as the network itself computes it."""
        sizes = tuple((1, *picture.shape[-2:]) for picture in pictures)
        if (words, sizes) not in self._ropes:
            *first, last = (math.prod(size) for size in sizes)
            texts = [self.before, words - self.before] if first else [words]
            runs = [run for pair in zip(texts, [*first, last], strict=True) for run in pair]
            is_picture = torch.cat([torch.full((n,), bool(k % 2)) for k, n in enumerate(runs)])
            where = self.net.pos_embed.freqs[0].device
            if where.type == "meta":
                width = sum(freqs.shape[1] for freqs in self.net.pos_embed.freqs)
                self._ropes[words, sizes] = torch.empty(len(is_picture), width, dtype=torch.complex64, device=where)
            else:
                places = self.net.pos_embed(sizes, is_picture.to(where), where)
                self._ropes[words, sizes] = places.to(pictures[0].device)
        return self._ropes[words, sizes]

    def hidden(self, module: nn.Module, output: Any, stream: str = "") -> Any:
        """Of a layer that puts out the sequence the picture's tokens, those of the source and of the edit to come.

        ``stream``: "reference", the source's alone; "target", the edit's; "text", the words after the source.
        """
        spans = self._spans
        if not isinstance(output, Tensor) or output.ndim != 3 or not spans or output.shape[1] != spans[""].stop:
            return super().hidden(module, output, stream)
        if stream in STREAMS:
            return output[:, spans[stream]]
        if stream:
            return super().hidden(module, output, stream)
        return torch.cat([output[:, spans["reference"]], output[:, spans["target"]]], dim=1)

    def attention(self) -> AbstractContextManager[tuple[list[str], list[Tensor]]]:
        """As :meth:`Editor.attention` says, of the edit to come: the source stands before the prompt and sees none."""
        layers = {path: layer for path, layer in self.net.named_modules() if path.endswith(".attn")}
        return watched(self.net, known=(layers, self._attended))

    def _attended(
        self, layer: Any, hidden: Tensor, *, rotary_emb: Tensor, key_valid: Tensor | None = None, **_: Any
    ) -> Tensor:
        query = _heads(layer, layer.to_q(hidden), layer.norm_q, rotary_emb)[:, :, self._spans["target"]]
        key = _heads(layer, layer.to_k(hidden), layer.norm_k, rotary_emb)
        scores = wide(query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5)
        if key_valid is not None:
            scores = scores.masked_fill(~key_valid[:, None, None], float("-inf"))
        words = scores.softmax(dim=-1)
        return torch.cat([words[..., : self.before], words[..., self._spans["text"]]], dim=-1)

    def edit(
        self,
        x: Image,
        cond: Cond,
        *,
        seed: Seed = 0,
        on_step: OnStep | None = None,
        steps: int | None = None,
        guidance_scale: float | None = None,
        **options: Any,
    ) -> Image:
        """The edit by the unmodified pipeline, (B, 3, H, W) float32 in [0, 1], one image after the other.

        It reads prompt and image itself, at 8 bits. The noise is drawn on the CPU from each image's own generator.
        Raises InputError for unknown options and wrong values.
        """
        chosen = self._chosen(x, cond, {"steps": steps, "guidance_scale": guidance_scale} | options)
        height, width = x.shape[-2:]
        guidance = {"negative_prompt": "", "true_cfg_scale": chosen["guidance_scale"]}
        with self.reading():
            edited = [
                run(
                    self.pipe,
                    prompt=text,
                    image=to_uint8(picture),
                    height=height,
                    width=width,
                    output_resolution=math.sqrt(height * width),
                    num_inference_steps=chosen["steps"],
                    generator=generator,
                    output_type="pt",
                    **(guidance if chosen["guidance_scale"] > 1 else {}),
                    **report(on_step),
                )
                for text, picture, generator in zip(cond.texts, x, generators(seed, len(x)), strict=True)
            ]
        return torch.cat(edited)[:, :3].float()

    def draws(self, x: Image, seed: Seed, **options: Any) -> tuple[Tensor, ...]:
        """The first latents of the edit."""
        factor = self.pipe.vae_scale_factor
        shape = (self.pipe.latent_channels, x.shape[-2] // factor, x.shape[-1] // factor)
        rows = generators(seed, len(x))
        return (torch.cat([torch.randn((1, *shape), generator=row, dtype=self.dtype) for row in rows]),)

    def generate(self, x: Image, cond: Cond, drawn: Sequence[Tensor], **options: Any) -> Image:
        """:meth:`edit` with a gradient to ``x`` through its latent, (B, 3, H, W) in [0, 1] units.

        What the text encoder saw is ``cond``'s: prepare it with these images for the edit of them.
        """
        chosen = self._chosen(x, cond, options)
        sampler, scale = self._sampler(x, chosen), chosen["guidance_scale"]
        sampler.begin([])
        source = self.encode(x).to(self.dtype)
        conds = [cond, *([self.prepare([""] * len(x), x.detach())] if scale > 1 else [])]
        z = drawn[0].to(self.device, self.dtype)
        for t in sampler.timesteps:
            step = torch.full((len(z),), t.item(), dtype=z.dtype, device=z.device)
            velocity, *none = (self.velocity(source, z, step, one).to(self.dtype) for one in conds)
            z = sampler.step(none[0] + scale * (velocity - none[0]) if none else velocity, t, z)
        return self.decode(z)

    def _sampler(self, x: Image, chosen: Mapping[str, Any]) -> Sampler:
        from diffusers.pipelines.qwenimage21.pipeline_qwenimage21 import calculate_shift

        config, n = self.pipe.scheduler.config, chosen["steps"]
        sigmas = self.pipe.config.sample_sigmas or np.linspace(1.0, 1 / n, n)
        names = {"base_image_seq_len": 256, "max_image_seq_len": 4096, "base_shift": 0.5, "max_shift": 1.15}
        shift = calculate_shift(self._positions(*x.shape[-2:]), *(config.get(k, v) for k, v in names.items()))
        return Sampler(self.pipe.scheduler, len(sigmas), sigmas=sigmas, mu=shift)

    def _chosen(self, x: Image, cond: Cond, options: Mapping[str, Any]) -> dict[str, Any]:
        return self.chosen(options, x, len(cond.texts))


BLANK = 32
"""Tokens after the picture that :meth:`QwenImage21.blank` counts: an instruction of some twenty words."""


def read(encoder: Any, ids: Tensor, pixels: Tensor | None = None, grid: Tensor | None = None) -> Tensor:
    """A Qwen-VL's hidden states before its last norm for tokens (B, n), -1 after a row's end: (B, n, width).

    ``pixels`` and ``grid`` of the pictures, one a row, whose places the tokens hold. What follows a token does not
    change it.
    """
    there = ids >= 0
    ids = torch.where(there, ids, 0)
    sight: dict[str, Any] = {}
    if pixels is not None:
        kinds = (ids == encoder.config.image_token_id) & there
        sight = {"pixel_values": pixels, "image_grid_thw": grid, "mm_token_type_ids": kinds.int()}
    norm = encoder.model.language_model.norm
    hook = norm.register_forward_hook(lambda module, args, output: args[0])
    try:
        mask = None if bool(there.all()) else there.long()
        out = encoder.model(input_ids=ids, attention_mask=mask, use_cache=False, **sight)
    finally:
        hook.remove()
    hidden: Tensor = out.last_hidden_state
    return hidden


def _processor() -> Any:
    """The default attention, which also takes positions of each row: then it runs in one go, under one mask."""
    from diffusers.models.transformers.transformer_qwenimage21 import QwenImage21AttnProcessor

    class Rows(QwenImage21AttnProcessor):  # type: ignore[misc]
        def __call__(self, attn: Any, hidden_states: Tensor, *, rotary_emb: Tensor, **rest: Any) -> Tensor:
            if rotary_emb.ndim == 2:
                out: Tensor = super().__call__(attn, hidden_states, rotary_emb=rotary_emb, **rest)
                return out

            n = hidden_states.shape[1]
            seen = torch.ones(n, n, dtype=torch.bool, device=hidden_states.device)
            for start, end, is_text in rest["segments"]:
                seen[start:end, end:] = False
                if is_text:
                    seen[start:end, start:end].tril_()
            seen = seen & rest["key_valid"][:, None, None]
            query = _heads(attn, attn.to_q(hidden_states), attn.norm_q, rotary_emb)
            key = _heads(attn, attn.to_k(hidden_states), attn.norm_k, rotary_emb)
            value = attn.to_v(hidden_states).unflatten(-1, (attn.heads, -1)).transpose(1, 2)
            mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=seen)
            return attn.to_out[1](attn.to_out[0](mixed.transpose(1, 2).flatten(2)))  # type: ignore[no-any-return]

    return Rows()


def _heads(attn: Any, x: Tensor, norm: nn.Module, rotary: Tensor) -> Tensor:
    """Queries or keys (B, heads, positions, width), turned by their positions' angles, ([B,] positions, pairs)."""
    pairs = torch.view_as_complex(norm(x.unflatten(-1, (attn.heads, -1))).float().unflatten(-1, (-1, 2)))
    return torch.view_as_real(pairs * rotary.unsqueeze(-2)).flatten(3).to(x.dtype).transpose(1, 2)


def _packed(z: Latent) -> Tensor:
    return z.flatten(2).transpose(1, 2)


def _blocks(start: int, stop: int, stream: str = "") -> tuple[str, ...]:
    return tuple(f"transformer_blocks.{k}{':' + stream if stream else ''}" for k in range(start, stop))
