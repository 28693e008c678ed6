"""Qwen-Image-Edit, its successors 2509 and 2511, FireRed: the source as reference tokens, and as Qwen2.5-VL sees it.

"Qwen-Image Technical Report" (Wu et al., arXiv 2508.02324). The language model reads the instruction beside the
picture; what it makes of both is the text that the transformer is given.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import FunctionType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import EditorError, InputError
from ..types import Image
from .folder import check, load_pipeline, read_json, settings
from .latent import LatentEditor, run
from .packed import PackedEditor, linear_shift, on_eight_bits
from .sight import patches, resampled

PARTS = ("transformer", "vae", "text_encoder", "tokenizer", "processor", "scheduler")
DEFAULTS = {"steps": 40, "guidance_scale": 4.0, "size": 1024}
"""``guidance_scale``: of at most 1 for models that few steps were taught (Lightning)."""
SIDE, SEEN = 1024, 384
"""The sides of squares of as many pixels as the pipelines edit, and as the language model sees in 2509 and later."""
BLANK = 32
"""Words of an instruction whose cost is counted."""


def load(folder: Path, name: str, dtype: torch.dtype, options: Mapping[str, Any]) -> LatentEditor:
    """Load a QwenImageEditPipeline or QwenImageEditPlusPipeline folder; ``options`` change :data:`DEFAULTS`."""
    import diffusers

    check(folder, PARTS, options)
    kind = getattr(diffusers, read_json(folder / "model_index.json")["_class_name"])
    chosen = settings(folder, DEFAULTS, options)
    return assemble(name, folder, load_pipeline(kind, folder, dtype, options), chosen)


def assemble(name: str, folder: Path, pipe: Any, settings: Mapping[str, Any]) -> QwenImageEdit:
    """The editor of a pipeline that is there already."""
    return QwenImageEdit(name, folder, pipe, settings)


@dataclass(frozen=True)
class Cond:
    """What the language model makes of prompts and pictures, ``prompt`` (B, tokens, width).

    ``ids`` (B, all tokens) is what it reads, one place for the picture and -1 after the end; ``valid`` and ``words``
    (B, tokens) are where the text ends and which of it are words of the prompt. Rows are padded behind.
    """

    texts: tuple[str, ...]
    ids: Tensor
    prompt: Tensor
    valid: Tensor
    words: Tensor


class QwenImageEdit(PackedEditor):
    """The source enters three times: in the target, as reference tokens, and by the text."""

    family = "qwen-image-edit"
    entrances = ("vae", "vlm")
    is_video = True
    one_by_one = True

    def __init__(self, name: str, folder: Path, pipe: Any, settings: Mapping[str, Any]) -> None:
        config, place = pipe.vae.config, {"device": pipe.vae.device}
        mean, std = (torch.tensor(v, **place)[None, :, None, None] for v in (config.latents_mean, config.latents_std))
        super().__init__(
            name, folder, PARTS, pipe, settings, (config.z_dim, pipe.vae_scale_factor), mean, scale=1 / std
        )
        self._multiple = 32
        self.is_plus = type(pipe).__name__ == "QwenImageEditPlusPipeline"
        self._place = pipe.text_encoder and pipe.text_encoder.config.image_token_id

    def work_size(self, height: int, width: int) -> tuple[int, int]:
        """The (height, width) with as many pixels as the editor's size squared that the pipeline itself resizes to.

        And no further: it leaves a picture of that size as it is.
        """
        size, before = (height, width), None
        while size != before:
            size, before = _of_area(self.settings["size"] ** 2, size[1] / size[0]), size
        return size

    def prepare(self, prompts: Sequence[str], x: Image | None = None) -> Cond:
        """Read one prompt per image beside it (see :meth:`see`); without images, as the prompt of a new picture.

        Raises InputError for prompts longer than the editor reads.
        """
        prompts = [prompts] if isinstance(prompts, str) else list(prompts)
        for prompt in prompts:
            if not isinstance(prompt, str):
                raise InputError(f"prompt: expected text, got {prompt!r}")
        before, after = self._around(x is not None)
        read = self.pipe.tokenizer
        rows = [read(before + prompt + after).input_ids for prompt in prompts]
        longest, most, device = max(map(len, rows)), self.pipe.tokenizer_max_length, self.device
        if longest > most:
            raise InputError(
                f"prompt: {self.name} reads {most} tokens, got {longest}, the end would be lost: shorten it"
            )
        ids = torch.tensor([row + [-1] * (longest - len(row)) for row in rows], device=device)
        start, n = len(read(before).input_ids), len(read(after).input_ids)
        ends = torch.tensor([[len(row) - n] for row in rows], device=device)
        place = torch.arange(longest, device=device)
        with torch.inference_mode(False), torch.no_grad(), self.reading():
            embeddings = self._embed(ids, x)
        masks = ids >= 0, (place >= start) & (place < ends)
        places = embeddings.shape[1] + self.pipe.prompt_template_encode_start_idx - longest + 1
        valid, words = (self._spread(mask, ids, places)[:, -embeddings.shape[1] :] for mask in masks)
        return Cond(tuple(prompts), ids, embeddings, valid, words)

    def see(self, cond: Cond, x: Image) -> Tensor:
        """What Qwen2.5-VL makes of the prompts beside ``x`` (B, 3, H, W), (B, tokens, width): differentiable.

        As the pipeline shows it, but for its 8 bits. ``cond`` was prepared with pictures of that size. Raises
        EditorError where offloading has taken the text encoder off the device.
        """
        if self._readers:
            raise EditorError(
                f"{self.name}: a gradient through the text encoder needs it on the device: load with {{offload}}",
                offload="none",
            )
        return self._embed(cond.ids, x)

    def view(self, x: Image) -> Image:
        """What the language model's processor is given of a picture (B, 3, H, W): in 2509 and later, a small one."""
        if not self.is_plus:
            return x
        size = _of_area(min(SEEN, self.settings["size"]) ** 2, x.shape[-1] / x.shape[-2])
        return resampled(x, size, "lanczos")

    def _around(self, seeing: bool) -> tuple[str, str]:
        """What the pipeline puts before and after a prompt."""
        picture = ("Picture 1: " if self.is_plus else "") + "<|vision_start|><|image_pad|><|vision_end|>"
        before, after = self.pipe.prompt_template_encode.split("{}")
        before = before.removesuffix(picture)
        return before + picture * seeing, after

    def _embed(self, ids: Tensor, x: Image | None) -> Tensor:
        encoder, sight = self.pipe.text_encoder, {}
        if x is not None:
            processor = self.pipe.processor.image_processor
            pixels, grid = patches(self.view(x.to(self.device)), processor)
            sight = {"pixel_values": pixels.to(self.dtype), "image_grid_thw": grid}
            ids = self._spread(ids, ids, int(grid[0].prod()) // processor.merge_size**2)
        there = ids >= 0
        hidden = encoder.model(
            input_ids=torch.where(there, ids, 0), attention_mask=there.long(), use_cache=False, **sight
        ).last_hidden_state
        kept = slice(self.pipe.prompt_template_encode_start_idx, None)
        return hidden[:, kept] * there[:, kept, None]

    def _spread(self, rows: Tensor, ids: Tensor, places: int) -> Tensor:
        """``rows`` (B, tokens) with so many ``places`` for the one that ``ids`` keep for the picture, if they do."""
        found = (ids[0] == self._place).nonzero()
        if not len(found):
            return rows
        slot = int(found[0])
        return torch.cat([rows[:, :slot], rows[:, slot : slot + 1].expand(-1, places), rows[:, slot + 1 :]], dim=1)

    def join(self, conds: Sequence[Cond]) -> Cond:
        """The conditions of several batches as those of one, padded behind to the longest."""

        def column(name: str, fill: int = 0) -> Tensor:
            parts = [getattr(cond, name) for cond in conds]
            most = max(part.shape[1] for part in parts)
            return torch.cat([F.pad(p, (0, 0) * (p.ndim - 2) + (0, most - p.shape[1]), value=fill) for p in parts])

        texts = tuple(text for cond in conds for text in cond.texts)
        return Cond(texts, column("ids", -1), column("prompt"), column("valid"), column("words"))

    def take(self, cond: Cond, rows: Tensor) -> Cond:
        """The conditions of these rows, in their order."""
        columns = {name: value[rows.to(value.device)] for name, value in vars(cond).items() if name != "texts"}
        return Cond(tuple(cond.texts[k] for k in rows.tolist()), **columns)

    def blank(self, n: int) -> Cond:
        """Conditions of zeros for ``n`` images, of an instruction of some length, to count what work costs."""
        side = min(SEEN, self.settings["size"]) if self.is_plus else self.settings["size"]
        tokens, kind = BLANK + round(side / 28) ** 2, dict[str, Any](device=self.device)
        text = torch.zeros(n, tokens, self.net.config.joint_attention_dim, dtype=self.dtype, **kind)
        none = torch.zeros(n, tokens, dtype=torch.bool, **kind)
        return Cond(("",) * n, torch.zeros(n, tokens, dtype=torch.int64, **kind), text, ~none, none)

    def velocity(
        self, target: Tensor, reference: Tensor, t: Tensor, cond: Cond, grid: tuple[int, int], chosen: Mapping[str, Any]
    ) -> Tensor:
        """What the transformer makes of the target's tokens at ``t`` (B,) and the text."""
        tokens = self.joined(cond.prompt, target, reference)
        whole = cond.valid.is_meta or bool(cond.valid.all())
        out = self.net(
            hidden_states=tokens,
            timestep=t.to(tokens) / 1000,
            encoder_hidden_states=cond.prompt.to(self.dtype),
            encoder_hidden_states_mask=None if whole else cond.valid,
            img_shapes=[[(1, *grid)] * 2] * len(tokens),
            return_dict=False,
        )[0]
        return out[:, : target.shape[1]]

    def guide(self, x: Image, cond: Cond, chosen: Mapping[str, Any]) -> Cond | None:
        """The picture beside an empty prompt."""
        return self.prepare([" "] * len(x), x) if chosen["guidance_scale"] > 1 else None

    def guided(self, said: Tensor, none: Tensor, scale: float) -> Tensor:
        """As long for each token as the instruction's own velocity."""
        both = super().guided(said, none, scale)
        return both * (said.norm(dim=-1, keepdim=True) / both.norm(dim=-1, keepdim=True))

    def shifted(self, tokens: int, steps: int) -> float:
        """mu grows with the tokens, between what the scheduler's configuration says for few and many."""
        return linear_shift(self.pipe.scheduler.config, tokens)

    def arguments(self, x: Image, cond: Cond, chosen: Mapping[str, Any]) -> dict[str, Any]:
        """Picture and prompt as they are: the pipeline reads both itself."""
        scale = chosen["guidance_scale"]
        return {
            "image": on_eight_bits(x)[0],
            "prompt": cond.texts[0],
            "negative_prompt": " " if scale > 1 else None,
            "true_cfg_scale": scale,
        }

    def call(self, **arguments: Any) -> Image:
        """The pipeline, which knows one size of pictures; for others, the same with that size in its place."""
        if self._alone:
            raise EditorError(
                f"{self.name}: an edit reads the prompt beside the picture, with all networks on the device: load with "
                "{offload}",
                offload="text",
            )
        with self.reading():
            return self._call(**arguments)

    def _call(self, **arguments: Any) -> Image:
        size = self.settings["size"]
        if size == SIDE:
            return run(self.pipe, **arguments)
        plain: Any = inspect.unwrap(type(self.pipe).__call__)
        own = plain.__globals__["calculate_dimensions"]
        areas = {SIDE**2: size**2, SEEN**2: min(SEEN, size) ** 2}
        names = plain.__globals__ | {"calculate_dimensions": lambda area, ratio: own(areas[area], ratio)}
        call = FunctionType(plain.__code__, names, plain.__name__, plain.__defaults__, plain.__closure__)
        with torch.no_grad():
            return run(self.pipe, partial(call, self.pipe), **arguments)


def _of_area(area: int, ratio: float) -> tuple[int, int]:
    """(height, width) of about so many pixels, width / height about ``ratio``, in multiples of 32."""
    from diffusers.pipelines.qwenimage.pipeline_qwenimage_edit_plus import calculate_dimensions

    width, height = calculate_dimensions(area, ratio)
    return height, width
