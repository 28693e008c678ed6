"""The engine's editor on core's MODEL, VAE and CLIP: gradients through core's conditioning, edits by its sampler."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor, nn

from sifm_core.errors import EditorError, InputError
from sifm_core.features import first_tensor
from sifm_core.images import resize
from sifm_core.noise import Seed, generators
from sifm_core.types import Editor, Image, Latent, OnStep, Step

from .doctor import Taken
from .gradients import differentiable, recomputed, resident_in
from .networks import network_of
from .recipes.base import Conditioning, Recipe, Start
from .recipes.encoder_only import EncoderOnly
from .text import prompt_words

TIMES = 1000
"""Into how many timesteps the engine divides every model's schedule."""
ROUGH = ("control", "gligen", "area", "mask", "hooks", "start_percent", "end_percent", "clip_start_percent")
"""What a conditioning may hold that would run the network in parts."""


@dataclass(frozen=True)
class Sampling:
    """How the attacker samples: ``sampler`` a SAMPLER; ``sigmas`` given ones, or None for steps and scheduler."""

    sampler: Any
    scheduler: str
    steps: int
    cfg: float
    denoise: float
    sigmas: Tensor | None = None


class Row:
    """What conditions one picture, before its source is in it; encoded when first asked for."""

    def __init__(self, prompt: str, read: Callable[[str], Conditioning]) -> None:
        self.prompt, self._read = prompt, read

    @cached_property
    def positive(self) -> Conditioning:
        return self._read(self.prompt)

    @cached_property
    def negative(self) -> Conditioning:
        return self._read("")

    def seen(self, text: Tensor) -> Row:
        """The same with another positive text, perhaps padded."""
        row = Row(self.prompt, self._read)
        (own, about), *_ = self.positive
        row.positive = [[text[:, : own.shape[1]], about]]
        return row


@dataclass(frozen=True)
class Cond:
    """One :class:`Row` for each picture or row of a batch."""

    rows: tuple[Row, ...]


class NativeEditor(Editor):
    """``model``, ``vae``, ``clip`` as core's loaders put them out; ``positive``, ``negative`` in place of ``clip``.

    What needs a gradient is called inside :meth:`learning`; :meth:`edit` steps out of it, so that core runs as ever.
    """

    num_train_timesteps = TIMES
    recordable = False
    """Core brings its tensors in anew for every run, and may move the networks between two of them."""

    def __init__(
        self,
        recipe: Recipe,
        model: Any,
        vae: Any,
        clip: Any,
        sampling: Sampling,
        *,
        positive: Conditioning | None = None,
        negative: Conditioning | None = None,
        size: int = 0,
        mask: Tensor | None = None,
    ) -> None:
        self.recipe, self.model, self.vae, self.clip, self.sampling = recipe, model, vae, clip, sampling
        self.positive, self.negative = positive, negative
        self.mask = mask
        self.device: torch.device = model.load_device
        self.net: Any = model.model.diffusion_model
        self.network = network_of(self.net)
        self.family = recipe.family or self.network.family
        self.dtype: torch.dtype = model.model.get_dtype_inference()
        self.layer_presets, self.telling = self.network.layers(self.net), self.network.telling
        self.name = f"{type(model.model).__name__} in ComfyUI"
        self._size = size or recipe.size
        self.settings = {
            "recipe": recipe.title,
            "size": self._size or 0,
            "sampler": _sampler_name(sampling.sampler),
            "cfg": sampling.cfg,
            "denoise": sampling.denoise,
            "steps": sampling.steps if sampling.sigmas is None else len(sampling.sigmas) - 1,
            **({"scheduler": sampling.scheduler} if sampling.sigmas is None else {"sigmas": sampling.sigmas.tolist()}),
        }
        self._texts: dict[str, Conditioning] = {}
        self._padding = recipe.padding or self.network.padding
        self._room: ExitStack | None = None
        self._attention: list[Tensor] | None = None
        self._tokens = self._words = self._positions = 0
        self.measured: Taken | None = None
        if recipe.reads_pictures and clip is not None and positive is None:
            self.entrances = ("vae", "vlm")
        self.sees = False
        """Whether the text encoder is among what gradients pass, and must stay on the device."""
        self.sparing = False
        """Whether blocks keep their inputs alone inside :meth:`learning`, for want of memory."""
        self.bring: Callable[[], None] = lambda: None
        shift, scale = self._format()
        self.latent_shift, self.latent_scale = shift, scale

    # -- what the engine asks of every editor

    def networks(self) -> Mapping[str, nn.Module]:
        """Noise predictor, autoencoder and, where a CLIP is connected, the text encoder."""
        text = {} if self.clip is None else {"text_encoder": self.clip.cond_stage_model}
        return {"transformer": self.net, "vae": self.vae.first_stage_model, **text}

    def work_size(self, height: int, width: int) -> tuple[int, int]:
        """As the person's graph has it: scaled to ``size`` where the recipe has one, else the picture as it is."""
        if self._size is None:
            return height, width
        multiple, scale = self.network.multiple(self.net), self._size / max(height, width)
        return tuple(max(multiple, round(side * scale / multiple) * multiple) for side in (height, width))  # type: ignore[return-value]

    def rows(self, height: int, width: int) -> int:
        """How many rows of a batch the network runs at once with gradients: by size and number type alone."""
        return max(1, self.network.positions_at_once * 2 // self.dtype.itemsize // (height * width // 64))

    def row_bytes(self, height: int, width: int) -> int:
        """What a row keeps for its gradient: as the doctor measured it, before that four times core's own estimate."""
        if self.measured is not None:
            return self.measured.row * (height * width) // self.measured.pixels
        smaller = self.vae.spacial_compression_encode()
        shape = [1, self.model.model.latent_format.latent_channels, height // smaller, width // smaller]
        return 4 * int(self.model.model.memory_required(shape))

    def encode(self, x: Image, noise: Latent | None = None) -> Latent:
        """As :meth:`Editor.encode`, after what core's nodes do to a picture first; several views side by side."""
        views = self.recipe.views(x, self._mask(x))
        drawn = [None] * len(views) if noise is None else noise.chunk(len(views), dim=1)
        return torch.cat([self._into(self._raw(v, n)) for v, n in zip(views, drawn, strict=True)], dim=1)

    def decode(self, z: Latent) -> Image:
        """As :meth:`Editor.decode`, of the first view."""
        raw = self._out_of(self._views(z)[0])
        network = self.vae.first_stage_model
        raw = raw.unsqueeze(2) if self.vae.latent_dim == 3 else raw
        pixels = network.decode(raw.to(self.vae.device, self.vae.vae_dtype)).to(self.device)
        pixels = pixels[:, :, 0] if pixels.ndim == 5 else pixels
        return _wide(pixels) / 2 + 0.5

    def prepare(self, prompts: Sequence[str], x: Image | None = None) -> Cond:
        """Read one prompt per image by the CLIP; with conditionings in its place: the positive, for "" the negative."""
        prompts = [prompts] if isinstance(prompts, str) else list(prompts)
        rows = []
        for k, prompt in enumerate(prompts):
            if not isinstance(prompt, str):
                raise InputError(f"prompt: expected text, got {prompt!r}")
            picture = x[k : k + 1].detach() if x is not None and self.recipe.reads_pictures else None
            row = Row(prompt, partial(self._text, x=picture))
            if not self.recipe.reads_pictures:  # before the other networks are brought in
                _ = row.positive, row.negative
            rows.append(row)
        return Cond(tuple(rows))

    def blank(self, n: int) -> Cond:
        """The conditions of no text: what work costs depends on the texts' length alone."""
        return self.prepare([""] * n)

    def join(self, conds: Sequence[Cond]) -> Cond:
        return Cond(tuple(row for cond in conds for row in cond.rows))

    def take(self, cond: Cond, rows: Tensor) -> Cond:
        return Cond(tuple(cond.rows[k] for k in rows.tolist()))

    def embeddings(self, cond: Cond) -> Tensor:
        return nn.utils.rnn.pad_sequence([row.positive[0][0][0] for row in cond.rows], batch_first=True)

    def words(self, cond: Cond) -> Tensor:
        lengths = (row.positive[0][0].shape[1] for row in cond.rows)
        found = [
            prompt_words(self.clip, row.prompt, length, self.recipe.ending)
            for row, length in zip(cond.rows, lengths, strict=True)
        ]
        return nn.utils.rnn.pad_sequence(found, batch_first=True).to(self.device)

    def mix(self, t: Tensor, like: Latent) -> tuple[Tensor, Tensor]:
        """What the network sees of latent and noise, by core's own noise_scaling and calculate_input."""
        latent, noise = self._shares(t, self._seen)
        return latent.to(like), noise.to(like)

    def target(self, z: Latent, noise: Latent, t: Tensor) -> Tensor:
        """The output of which core's calculate_denoised makes the clean latent: epsilon, v or flow."""
        clean, drawn = self._shares(t, self._noised)
        by_output, by_input = self._shares(t, self._sampling.calculate_denoised)
        of_clean, of_noise = (1 - by_input * clean) / by_output, -by_input * drawn / by_output
        return of_clean.to(z) * z + of_noise.to(z) * noise

    def denoise(self, z: Latent, noise: Latent, t: Tensor, cond: Cond) -> Tensor:
        """The raw output of core's network, run by core's own calc_cond_batch with its patches and options.

        Of several views the first is noised; the others, which no network predicts, are given as :meth:`target`.
        """
        from comfy.model_management import throw_exception_if_processing_interrupted
        from comfy.samplers import calc_cond_batch

        throw_exception_if_processing_interrupted()  # a large model's iteration takes many seconds
        self.check_runs()
        views, first = self._views(z), self._views(noise)[0]
        sigma, model = self._sigmas(t, torch.float32), self.model.model
        clean, drawn = (self._framed(value) for value in (views[0], first))
        noised = self._sampling.noise_scaling(sigma, drawn, clean)
        raws = [self._framed(self._out_of(view)) for view in views]
        conditioning = self._given(cond.rows, "positive", raws)
        conds = self._processed({"positive": conditioning}, drawn, clean)
        found: list[Tensor] = []
        hook = self.net.register_forward_hook(lambda module, args, output: found.append(output))
        model.current_patcher = self.model
        try:
            calc_cond_batch(model, [conds["positive"]], noised, sigma, self._options())
        finally:
            hook.remove()
        out = _wide(first_tensor(found[0]))  # type: ignore[arg-type]
        out = out[:, :, 0] if out.ndim == 5 else out
        return out if len(views) == 1 else torch.cat([out, self.target(z, noise, t)[:, out.shape[1] :]], dim=1)

    def draws(self, x: Image, seed: Seed, **options: Any) -> tuple[Tensor, ...]:
        """The noise that core would draw for each picture and seed, and the seeds themselves."""
        n, _, height, width = x.shape
        channels = self.model.model.latent_format.latent_channels
        height, width = (side // self.vae.spacial_compression_encode() for side in self._encoded_size(height, width))
        frames = (1,) if self.vae.latent_dim == 3 else ()
        rows = generators(seed, n)
        noise = torch.cat([torch.randn(1, channels, *frames, height, width, generator=row) for row in rows])
        return noise, torch.tensor([row.initial_seed() for row in rows])

    def generate(self, x: Image, cond: Cond, drawn: Sequence[Tensor], **options: Any) -> Image:
        """:meth:`edit` with a gradient to ``x``, not clipped, by core's CFGGuider and sampler, picture by picture.

        Raises EditorError for a sampler through which no gradient comes.
        """
        from comfy.samplers import KSAMPLER

        self.check_runs()
        chosen = self._chosen(options)
        sampler = self.sampling.sampler
        if isinstance(sampler, KSAMPLER):  # core's samplers run under no_grad
            plain = inspect.unwrap(sampler.sampler_function)
            sampler = KSAMPLER(plain, sampler.extra_options, sampler.inpaint_options)
        pictures = []
        for k, row in enumerate(cond.rows):
            mask = self._mask(x)
            views = self.recipe.views(x[k : k + 1], mask)
            raws = [self._framed(self._raw(view, None)) for view in views]
            given = {name: self._given([row], name, raws) for name in ("positive", "negative")}
            size = tuple(views[0].shape[-2:])
            start = Start(given["positive"], given["negative"], self.recipe.begin(raws), mask, size)  # type: ignore[arg-type]
            latent = self._sampled(start, drawn[0][k : k + 1], int(drawn[1][k]), sampler, chosen)
            latent = latent[:, :, 0] if latent.ndim == 5 else latent
            pictures.append(self.decode(self._into(latent)))
        edited = torch.cat(pictures)
        if x.requires_grad and torch.is_grad_enabled() and not edited.requires_grad:
            raise EditorError(
                f"no gradient comes through the sampler {_sampler_name(self.sampling.sampler)}: choose euler, heun or "
                "dpmpp_2m for methods that follow the whole edit"
            )
        return edited

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
        """The edit by core's own nodes and sampler, as in a graph of them, picture by picture."""
        self.check_runs()
        chosen = self._chosen({"steps": steps, "guidance_scale": guidance_scale} | options)
        seeds = [row.initial_seed() for row in generators(seed, len(x))]
        if len(cond.rows) != len(x):
            raise InputError(f"expected one prompt per image, got {len(cond.rows)} for {len(x)}")
        pictures = []
        with self.resting():
            for k, row in enumerate(cond.rows):
                with torch.inference_mode():
                    pixels = x[k : k + 1].detach().float().cpu().movedim(1, -1).contiguous()
                    start = self._start(row, pixels)
                    noise = _core_noise(start.latent, seeds[k])
                    latent = self._sampled(start, noise, seeds[k], self.sampling.sampler, chosen, on_step)
                    edited = self.vae.decode(latent.to(_intermediate()))
                    edited = edited[0] if edited.ndim == 5 else edited
                pictures.append(edited[:1].clone().movedim(-1, 1)[:, :3].float())
        size = pictures[0].shape[-2:]
        return torch.cat([p if p.shape[-2:] == size else resize(p, tuple(size)) for p in pictures])

    def see(self, cond: Cond, x: Image) -> Tensor:
        """As :meth:`Editor.see`, by core's own text encode node, which keeps the gradient."""
        if "vlm" not in self.entrances:
            return super().see(cond, x)
        if not self.sees and self._room is not None:
            with self.resting():
                self.clip, self.sees = resident_in(self.clip, "cond_stage_model"), True
                self.bring()
        texts = [self.recipe.text(self.clip, row.prompt, x[k : k + 1]) for k, row in enumerate(cond.rows)]
        return nn.utils.rnn.pad_sequence([text[0][0][0] for text in texts], batch_first=True)

    def with_embeddings(self, cond: Cond, embeddings: Tensor) -> Cond:
        return Cond(tuple(row.seen(text[None]) for row, text in zip(cond.rows, embeddings, strict=True)))

    def hidden(self, module: nn.Module, output: Any, stream: str = "") -> Any:
        """A copy of the picture's part: later blocks of some models add to what they are given in place."""
        found = self.part(module, output, stream)
        return None if found is None else found.clone()

    def part(self, module: nn.Module, output: Any, stream: str = "") -> Tensor | None:
        """The same itself, which a later block may change."""
        return first_tensor(self.network.hidden(module, output, stream, self._tokens, self._positions))

    @contextmanager
    def attention(self) -> Iterator[tuple[list[str], list[Tensor]]]:
        """As :meth:`Editor.attention`, from the queries and keys that core's attention is called with."""
        paths = list(self.network.attending(self.net))
        if not paths:
            raise EditorError(f"{self.name} has no layer in which the image attends to text: choose another method")
        before, self._attention = self._attention, []
        try:
            yield paths, self._attention
        finally:
            self._attention = before

    def recomputing(self) -> AbstractContextManager[None]:
        return nullcontext() if self.sparing and self._room is not None else recomputed(self.network.blocks(self.net))

    def spared(self) -> list[nn.Module]:
        """The blocks that can keep their inputs alone: the network's, and those of an autoencoder that has such."""
        encoder = [part for part in self.vae.first_stage_model.modules() if type(part).__name__ == "ResnetBlock"]
        return [*encoder, *self.network.blocks(self.net)]

    # -- where gradients come through

    @contextmanager
    def learning(self) -> Iterator[None]:
        """Where core's networks are differentiable; must be entered once they are loaded, and leaves them as found."""
        model = self.model.model
        patcher = model.current_patcher
        self._enter()
        try:
            yield
        finally:
            room, self._room = self._room, None  # edits may have left and entered it again
            if room is not None:
                room.__exit__(None, None, None)
            model.current_patcher, self.sees, self.sparing = patcher, False, False

    @contextmanager
    def resting(self) -> Iterator[None]:
        """Outside of :meth:`learning` for a while, so that core finds everything as it is."""
        if self._room is None:
            yield
            return
        room, self._room = self._room, None
        room.__exit__(None, None, None)
        try:
            yield
        finally:
            self._enter()

    def _enter(self) -> None:
        networks = [self.model.model, self.vae.first_stage_model, *([self.clip.cond_stage_model] if self.sees else [])]
        with ExitStack() as rooms:
            rooms.enter_context(differentiable(networks, [self.net] if self.network.in_place else []))
            if self.sparing:
                rooms.enter_context(recomputed(self.spared()))
            self._room = rooms.pop_all()

    def check_runs(self) -> None:
        """Raise EditorError where the network is never run, or would run with another clone's patches."""
        if isinstance(self.recipe, EncoderOnly):
            raise EditorError(
                f"{self.name} was connected as 'encoder only', so its network is never run: choose photoguard_encoder "
                "or editshield, or the recipe that your graph follows"
            )
        loaded = getattr(self.model.model, "current_weight_patches_uuid", None)
        if self._room is not None and loaded not in (None, self.model.patches_uuid):
            raise EditorError(
                f"{self.name}: another clone of the model was loaded meanwhile, with other patches: run again"
            )

    # -- latents

    def _raw(self, view: Image, noise: Latent | None) -> Latent:
        """What the VAE puts out for a view, the mode or a draw, (B, c, h, w)."""
        pixels = self.vae.vae_encode_crop_pixels(view.movedim(1, -1)).movedim(-1, 1)
        pixels = self.vae.process_input(pixels).to(self.vae.device, self.vae.vae_dtype)
        network = self.vae.first_stage_model
        pixels = pixels.unsqueeze(2) if self.vae.latent_dim == 3 else pixels
        hook = None if noise is None else _drawing(network, noise)
        try:
            raw = _wide(network.encode(pixels)).to(self.device)
        finally:
            if hook is not None:
                hook.remove()
        return raw[:, :, 0] if raw.ndim == 5 else raw

    def _into(self, raw: Latent) -> Latent:
        """From the VAE's numbers to the network's, (B, c, h, w)."""
        return self._unframed(self.model.model.process_latent_in(self._framed(raw)))

    def _out_of(self, z: Latent) -> Latent:
        return self._unframed(self.model.model.process_latent_out(self._framed(z)))

    def _framed(self, latent: Latent) -> Tensor:
        """With the axis of time that video autoencoders and their models have."""
        return latent.unsqueeze(2) if self.model.model.latent_format.latent_dimensions == 3 else latent

    def _unframed(self, latent: Tensor) -> Latent:
        return latent[:, :, 0] if latent.ndim == 5 else latent

    def _views(self, z: Latent) -> Sequence[Latent]:
        """The latents of the recipe's views, which :meth:`encode` put side by side."""
        return z.split(self.model.model.latent_format.latent_channels, dim=1)

    def _format(self) -> tuple[Any, Any]:
        """Shift and scale of the latent format: numbers, or (1, c, 1, 1) where they differ from channel to channel."""
        channels = self.model.model.latent_format.latent_channels
        with torch.inference_mode(False), torch.no_grad():
            none = torch.zeros(1, channels, 1, 1, dtype=torch.float64)
            zero, one = (self._into(none + value) for value in (0.0, 1.0))
        scale = one - zero
        shift = 0 - zero / scale
        if bool((scale == scale[0, 0]).all() and (shift == shift[0, 0]).all()):
            return float(shift[0, 0]), float(scale[0, 0])
        return shift.float(), scale.float()

    def _mask(self, x: Image) -> Tensor | None:
        """The attacker's mask at the size of ``x``, (1, H, W)."""
        if self.mask is None:
            return None
        mask = self.mask.reshape(-1, 1, *self.mask.shape[-2:])[:1].float()
        return torch.nn.functional.interpolate(mask, x.shape[-2:], mode="bilinear")[:, 0].to(x.device)

    def _encoded_size(self, height: int, width: int) -> tuple[int, int]:
        """The size of what the VAE is given for pictures of that working size."""
        views = self.recipe.views(
            torch.zeros(1, 3, height, width), None if self.mask is None else torch.zeros(1, height, width)
        )
        return tuple(views[0].shape[-2:])  # type: ignore[return-value]

    # -- the schedule

    @property
    def _sampling(self) -> Any:
        return self.model.get_model_object("model_sampling")

    def _sigmas(self, t: Tensor, dtype: torch.dtype) -> Tensor:
        """Core's sigmas at timesteps (B,) of a thousand, never the very end."""
        table = self._sampling.sigmas
        flow = len(table) != TIMES or hasattr(self._sampling, "shift")  # there the first entry stands for timestep 1
        index = (t * len(table) // TIMES - int(flow)).clamp(min=0)
        return table.to(dtype=dtype, device=self.device)[index.to(self.device)]

    def _shares(self, t: Tensor, function: Callable[[Tensor, Tensor, Tensor], Tensor]) -> tuple[Tensor, Tensor]:
        """How much of each of its two tensors a linear function of the sigmas at ``t`` takes, (B, 1, 1, 1) float64."""
        sigma = self._sigmas(t, torch.float64)
        one, none = torch.ones_like(sigma), torch.zeros_like(sigma)
        first, second = function(sigma, one, none), function(sigma, none, one)
        return first.reshape(-1, 1, 1, 1), second.reshape(-1, 1, 1, 1)

    def _noised(self, sigma: Tensor, latent: Tensor, noise: Tensor) -> Tensor:
        return self._sampling.noise_scaling(sigma, noise.clone(), latent)

    def _seen(self, sigma: Tensor, latent: Tensor, noise: Tensor) -> Tensor:
        return self._sampling.calculate_input(sigma, self._noised(sigma, latent, noise))

    # -- conditioning

    def _text(self, prompt: str, x: Image | None) -> Conditioning:
        given = self.positive if prompt else self.negative
        if given is not None:
            return _normal(given)
        if self.clip is None:
            if isinstance(self.recipe, EncoderOnly):
                return []
            missing = "positive" if prompt else "negative"
            raise InputError(f"{missing}: expected a CLIP or a conditioning, got neither: connect one of them")
        if x is None and prompt in self._texts:
            return self._texts[prompt]
        with self.resting(), torch.inference_mode(), self.reading():
            encoded = _normal(self.recipe.text(self.clip, prompt, x))
        if x is None:
            self._texts[prompt] = encoded
        return encoded

    def _given(self, rows: Sequence[Row], name: str, raws: Sequence[Tensor]) -> Conditioning:
        """The rows' texts as one of core's conditionings of as many rows, with the source in it."""
        mask = None
        if self.mask is not None:
            factor = self.vae.spacial_compression_encode()
            mask = self._mask(raws[0].new_empty(1, 1, *(side * factor for side in raws[0].shape[-2:])))
        return self.recipe.given([_stacked([getattr(row, name) for row in rows], self._padding)], raws, mask)

    def _processed(self, conds: dict[str, Conditioning], noise: Tensor, latent: Tensor) -> dict[str, Any]:
        """What core makes of conditionings before it samples."""
        from comfy.sampler_helpers import convert_cond
        from comfy.samplers import process_conds

        converted = {name: convert_cond(conditioning) for name, conditioning in conds.items()}
        self._words = max((c["cross_attn"].shape[1] for c in converted["positive"] if "cross_attn" in c), default=0)
        patch = getattr(self.net, "patch_size", 1)
        patch = patch if isinstance(patch, int) else 1
        self._positions = math.prod(-(-side // patch) for side in latent.shape[-2:])
        processed: dict[str, Any] = process_conds(self.model.model, noise, converted, self.device, latent, None, 0)
        texts = (part["model_conds"].get("c_crossattn") for part in processed["positive"])
        self._tokens = max((text.cond.shape[1] for text in texts if text is not None), default=0)  # perhaps padded
        return processed

    def _options(self) -> dict[str, Any]:
        """The model's options with an attention that has a gradient, watched where a method asks for it."""
        from comfy.ldm.modules import attention as core
        from comfy.model_patcher import create_model_options_clone

        options = create_model_options_clone(self.model.model_options)
        own = options["transformer_options"].get("optimized_attention_override")
        exact = ("attention_pytorch", "attention_sub_quad", "attention_split", "attention_basic")
        seen = self._attention

        def attend(function: Any, q: Tensor, k: Tensor, v: Tensor, heads: int, *args: Any, **kwargs: Any) -> Tensor:
            if seen is not None:
                found = _probabilities(q, k, heads, kwargs.get("skip_reshape", False), self._tokens, self._positions)
                seen.extend([] if found is None else [found[..., -self._words :]])  # padding stands in front
            if own is not None or function.__name__ not in exact:
                function = core.attention_pytorch
            return function(q, k, v, heads, *args, **kwargs)

        options["transformer_options"]["optimized_attention_override"] = attend
        return options

    # -- sampling

    def _chosen(self, options: Mapping[str, Any]) -> dict[str, Any]:
        given = {name: value for name, value in options.items() if value}
        if unknown := set(options) - {"steps", "guidance_scale"}:
            raise InputError(
                f"{', '.join(sorted(unknown))}: {self.name} samples as its node says, where only steps and "
                "guidance_scale (cfg) can be changed for one edit"
            )
        steps = given.get("steps", self.settings["steps"])
        return {"steps": steps, "cfg": float(given.get("guidance_scale", self.sampling.cfg))}

    def schedule(self, steps: int, size: tuple[int, int] = (0, 0)) -> Tensor:
        """Core's sigmas for so many steps at this denoise; of given ones, as many of them, spread evenly.

        ``size`` (height, width) of the picture, for models whose own scheduler goes by it.
        """
        from comfy.samplers import calculate_sigmas

        if self.sampling.sigmas is not None:
            given = self.sampling.sigmas
            if steps == len(given) - 1:
                return given
            return given[torch.linspace(0, len(given) - 1, steps + 1).round().long()]
        total = steps if self.sampling.denoise > 0.9999 else int(steps / self.sampling.denoise)
        own = self.recipe.sigmas(total, size) if self.sampling.scheduler == "simple" else None
        every: Tensor = calculate_sigmas(self._sampling, self.sampling.scheduler, total) if own is None else own
        return every[-(steps + 1) :]

    def _start(self, row: Row, pixels: Tensor) -> Start:
        return self.recipe.start(pixels, self, row)

    def _sampled(
        self,
        start: Start,
        noise: Tensor,
        seed: int,
        sampler: Any,
        chosen: Mapping[str, Any],
        on_step: OnStep | None = None,
    ) -> Tensor:
        """Core's sampler from ``start``; the latent as the VAE takes it."""
        from comfy.patcher_extension import WrappersMP, add_wrapper
        from comfy.sample import fix_empty_latent_channels
        from comfy.samplers import CFGGuider

        def report(i: int, denoised: Any, x: Any, total: int) -> None:
            if on_step is not None:
                on_step(Step("edit", i + 1, total))

        guider = CFGGuider(self.model)
        if self._room is None:
            latent = fix_empty_latent_channels(self.model, start.latent)
        else:  # what is loaded must stay where it is: tensors that stand in for weights would be moved
            latent, guider.model_options = start.latent, self._options()
            add_wrapper(WrappersMP.PREPARE_SAMPLING, _as_loaded, guider.model_options, is_model_options=True)
        guider.set_conds(start.positive, start.negative)
        guider.set_cfg(chosen["cfg"])
        sigmas = self.schedule(chosen["steps"], start.size)
        return guider.sample(noise, latent, sampler, sigmas, start.mask, report, disable_pbar=True, seed=seed)

    @cached_property
    def fingerprint(self) -> str:  # type: ignore[override]
        """sha256 over all that an edit depends on, computed when first asked for; see :mod:`.identity`."""
        from .identity import fingerprint

        return fingerprint(self)


def _as_loaded(executor: Any, model: Any, noise_shape: Any, conds: Any, **_: Any) -> tuple[Any, Any, list[Any]]:
    """In place of core's prepare_sampling, which would load."""
    return model.model, conds, []


def _drawing(network: Any, noise: Latent) -> Any:
    """A hook by which an autoencoder's mode becomes the draw from its posterior that ``noise`` makes."""

    def drawn(moments: Tensor) -> tuple[Tensor, Tensor]:
        mean, log_variance = _wide(moments).chunk(2, dim=1)
        deviation = (0.5 * log_variance.clamp(-30, 20)).exp()
        draw = mean + deviation * noise.reshape(mean.shape).to(mean)
        return draw.to(moments), log_variance.to(moments)

    if hasattr(network, "regularization"):
        return network.regularization.register_forward_hook(lambda module, args, output: (drawn(args[0])[0], output[1]))
    if hasattr(network, "conv1"):  # Wan's
        return network.conv1.register_forward_hook(lambda module, args, output: torch.cat(drawn(output), dim=1))
    raise EditorError(f"the VAE {type(network).__name__} has no posterior to draw from: use its mode")


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _sampler_name(sampler: Any) -> str:
    function = getattr(sampler, "sampler_function", sampler)
    return getattr(function, "__name__", type(function).__name__).removeprefix("sample_")


def _normal(value: Any) -> Any:
    """Core's conditioning with normal tensors in place of those that were made in inference mode."""
    if isinstance(value, Tensor):
        with torch.inference_mode(False):
            return value.detach().clone()
    if isinstance(value, dict):
        return {key: _normal(item) for key, item in value.items()}
    return [_normal(item) for item in value] if isinstance(value, list | tuple) else value


def _stacked(conditionings: Sequence[Conditioning], padding: str) -> list[Any]:
    """One part of core's conditioning for several rows; texts of different lengths as the network takes them."""
    for conditioning in conditionings:
        rough = [key for _, about in conditioning for key in ROUGH if about.get(key) is not None]
        if len(conditioning) != 1 or rough:
            raise EditorError(
                f"a conditioning of {len(conditioning)} parts{' with ' + ', '.join(rough) if rough else ''} has no "
                "gradient here: connect a CLIP, or one Text Encode without area, mask, hook or ControlNet"
            )
    texts, abouts = zip(*(conditioning[0] for conditioning in conditionings), strict=True)
    if len(texts) == 1:
        return [texts[0], abouts[0]]
    about = {key: torch.cat([a[key] for a in abouts]) if isinstance(v, Tensor) else v for key, v in abouts[0].items()}
    lengths = [text.shape[1] for text in texts]
    if len(set(lengths)) > 1 and padding == "repeat":  # as core pads: attention to a text twice is attention to it
        texts = tuple(text.repeat(1, math.lcm(*lengths) // text.shape[1], 1) for text in texts)
    elif len(set(lengths)) > 1 and padding == "mask":
        longest = max(lengths)
        about["attention_mask"] = torch.tensor([[1] * n + [0] * (longest - n) for n in lengths], device=texts[0].device)
        texts = tuple(nn.functional.pad(text, (0, 0, 0, longest - text.shape[1])) for text in texts)
    elif len(set(lengths)) > 1 and padding == "front":
        texts = tuple(nn.functional.pad(text, (0, 0, max(lengths) - text.shape[1], 0)) for text in texts)
    elif len(set(lengths)) > 1:
        raise EditorError(
            f"instructions of {', '.join(map(str, sorted(set(lengths))))} tokens do not fit into one batch of this "
            "model: protect the pictures one by one, and set {rows}",
            rows=1,
        )
    return [torch.cat(texts), about]


def _probabilities(q: Tensor, k: Tensor, heads: int, apart: bool, tokens: int, positions: int) -> Tensor | None:
    """What image positions attend to in text, (B, heads, image, text); None for attention among images alone."""
    if not apart:
        q, k = (value.unflatten(-1, (heads, -1)).transpose(1, 2) for value in (q, k))
    if k.shape[2] == tokens != q.shape[2]:  # cross-attention
        image, keys = q, k
    elif k.shape[2] == q.shape[2] >= tokens + positions:  # joint, text first, references last
        image, keys = q[:, :, tokens : tokens + positions], k
    else:
        return None
    scores = _wide(image @ keys.transpose(-1, -2)) / q.shape[-1] ** 0.5
    return scores.softmax(dim=-1)[..., :tokens]


def _core_noise(latent: Tensor, seed: int) -> Tensor:
    from comfy.sample import prepare_noise

    return prepare_noise(latent, seed)


def _intermediate() -> Any:
    """Where core keeps latents between nodes."""
    from comfy import model_management

    return model_management.intermediate_device()
