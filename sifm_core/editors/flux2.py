"""FLUX.2, dev and Klein: the source as reference tokens beside the noise, latents of 16 pixels normalised per channel.

"FLUX.2" (Black Forest Labs, github.com/black-forest-labs/flux2). Dev was taught its guidance scale, Klein's base models
take two branches, the distilled ones none, in a few steps. In Klein-KV the reference attends to itself alone at one
timestep: what it carries is a function of the picture and nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import InputError
from ..types import Image, Latent
from .attention import watched
from .folder import check, load_pipeline, read_json, settings
from .latent import LatentEditor, wide
from .packed import PackedEditor, on_eight_bits

PARTS = ("transformer", "vae", "text_encoder", "tokenizer", "scheduler")
DEFAULTS = {"steps": 50, "guidance_scale": 4.0, "size": 1024, "text_tokens": 512}
"""``text_tokens``: positions of the text."""
DISTILLED = {"steps": 4, "guidance_scale": 1.0}
LEAST, LONGEST = 64, 8
"""The pipelines refuse shorter sides, and sides so many times as long as the other."""


def load(folder: Path, name: str, dtype: torch.dtype, options: Mapping[str, Any]) -> LatentEditor:
    """Load a Flux2Pipeline, Flux2KleinPipeline or Flux2KleinKVPipeline folder; ``options`` change :data:`DEFAULTS`."""
    import diffusers

    check(folder, PARTS, options)
    index = read_json(folder / "model_index.json")
    kind = index["_class_name"]
    chosen = settings(folder, defaults(index), options)
    return assemble(name, folder, load_pipeline(getattr(diffusers, kind), folder, dtype, options), chosen)


def defaults(index: Mapping[str, Any]) -> dict[str, Any]:
    """Of a distilled model other than of one that is not, as its model_index.json says."""
    distilled = index.get("is_distilled", index["_class_name"] == "Flux2KleinKVPipeline")
    return DEFAULTS | DISTILLED if distilled else dict(DEFAULTS)


def assemble(name: str, folder: Path, pipe: Any, settings: Mapping[str, Any]) -> Flux2:
    """The editor of a pipeline that is there already."""
    return (Flux2KV if type(pipe).__name__ == "Flux2KleinKVPipeline" else Flux2)(name, folder, pipe, settings)


@dataclass(frozen=True)
class Cond:
    """What the language model makes of the prompts and of no prompt (B, tokens, width); see Editor.words."""

    prompt: Tensor
    empty: Tensor
    words: Tensor


class Flux2(PackedEditor):
    """A position of the latent is a token."""

    family = "flux2"
    patch = 1
    one_by_one = True

    def __init__(self, name: str, folder: Path, pipe: Any, settings: Mapping[str, Any]) -> None:
        config, norm = pipe.vae.config, pipe.vae.bn
        mean, variance = (wide(values)[None, :, None, None] for values in (norm.running_mean, norm.running_var))
        scale = 1 / (variance + config.batch_norm_eps).sqrt()
        shape = 4 * config.latent_channels, 2 * pipe.vae_scale_factor
        super().__init__(name, folder, PARTS, pipe, settings, shape, mean, scale)
        distilled = getattr(pipe.config, "is_distilled", type(pipe).__name__ == "Flux2KleinKVPipeline")
        self.branches = not (pipe.transformer.config.guidance_embeds or distilled)

    def work_size(self, height: int, width: int) -> tuple[int, int]:
        """A picture's own (height, width), or what has the area of the editor's size squared where it is larger.

        As the pipelines do. Raises InputError for a shape that they refuse.
        """
        if max(height, width) > LONGEST * min(height, width):
            raise InputError(f"{self.name} takes sides of at most {LONGEST} times each other, got {height} x {width}")
        share = min(1, self.settings["size"] / (height * width) ** 0.5)
        least = -(-LEAST // self._multiple)
        sides = (max(least, int(side * share) // self._multiple) * self._multiple for side in (height, width))
        return next(sides), next(sides)

    def _from_vae(self, raw: Tensor) -> Latent:
        """Squares of 2 x 2 positions become channels."""
        return self.pipe._patchify_latents(raw)

    def _to_vae(self, z: Latent) -> Tensor:
        """The other way round."""
        return self.pipe._unpatchify_latents(z)

    def prepare(self, prompts: Sequence[str], x: Image | None = None) -> Cond:
        """Embed one prompt per image. Raises InputError for a prompt longer than the editor reads."""
        pipe, n = self.pipe, self.settings["text_tokens"]

        def embed(prompt: str) -> tuple[Tensor, ...]:
            ids, none = self._read(prompt), self._read("")
            if len(ids) > n:
                raise InputError(
                    f"prompt: {self.name} reads {n} tokens, got {len(ids)}, the end would be lost: shorten {prompt!r}"
                )
            text, _ = pipe.encode_prompt(prompt, device=self.device, max_sequence_length=n)
            return text, self._between(ids, none, n).to(self.device)

        (text, words), (empty, _) = self.encoded(prompts, embed)
        return Cond(text, empty, words)

    def _read(self, prompt: str) -> list[int]:
        """The tokens of a prompt with what the pipeline puts around it."""
        pipe = self.pipe
        if not hasattr(pipe, "system_message"):
            said = [{"role": "user", "content": prompt}]
            own = {"add_generation_prompt": True, "enable_thinking": False}
            return pipe.tokenizer(pipe.tokenizer.apply_chat_template(said, tokenize=False, **own)).input_ids
        from diffusers.pipelines.flux2.pipeline_flux2 import format_input

        messages = format_input([prompt], pipe.system_message)
        return pipe.tokenizer.apply_chat_template(messages, tokenize=True, return_dict=True).input_ids[0]

    def _between(self, ids: Sequence[int], none: Sequence[int], n: int) -> Tensor:
        """Which of ``n`` positions hold what ``ids`` has and ``none``, the same around no prompt, has not: (1, n)."""
        most = min(len(ids), len(none))
        before = next((k for k in range(most) if ids[k] != none[k]), most)
        after = next((k for k in range(most - before) if ids[-1 - k] != none[-1 - k]), most - before)
        tokenizer = getattr(self.pipe.tokenizer, "tokenizer", self.pipe.tokenizer)
        start = n - len(ids) if tokenizer.padding_side == "left" else 0
        found = torch.zeros(1, n, dtype=torch.bool)
        found[0, start + before : start + len(ids) - after] = True
        return found

    def blank(self, n: int) -> Cond:
        """Conditions of zeros for ``n`` images, to count what work costs."""
        tokens = self.settings["text_tokens"]
        text = torch.zeros(n, tokens, self.net.config.joint_attention_dim, device=self.device, dtype=self.dtype)
        return Cond(text, text, torch.zeros(n, tokens, dtype=torch.bool, device=self.device))

    def velocity(
        self, target: Tensor, reference: Tensor, t: Tensor, cond: Cond, grid: tuple[int, int], chosen: Mapping[str, Any]
    ) -> Tensor:
        """What the transformer makes of the target's tokens at ``t`` (B,) and the prompt."""
        return self._ask(target, reference, t, cond.prompt, grid, chosen)[:, : target.shape[1]]

    def guide(self, x: Image, cond: Cond, chosen: Mapping[str, Any]) -> Cond | None:
        """No prompt, for models that take guidance in branches."""
        return replace(cond, prompt=cond.empty) if self.branches and chosen["guidance_scale"] > 1 else None

    def _ask(
        self,
        target: Tensor,
        reference: Tensor,
        t: Tensor,
        text: Tensor,
        grid: tuple[int, int],
        chosen: Mapping[str, Any],
        **own: Any,
    ) -> Tensor:
        tokens = self.joined(text, target, reference)
        positions = {"target": self.ids(grid, 0, 4)[: target.shape[1]], "reference": self.ids(grid, 10, 4)}
        said = torch.zeros(text.shape[1], 4, device=self.device)
        said[:, 3] = torch.arange(text.shape[1], device=self.device)
        scale = torch.full((len(tokens),), chosen["guidance_scale"], device=self.device)
        return self.net(
            hidden_states=tokens,
            timestep=t.to(tokens) / 1000,
            guidance=scale if self.net.config.guidance_embeds else None,
            encoder_hidden_states=text,
            txt_ids=said,
            img_ids=torch.cat([positions[name] for name in self.order[1:]]),
            return_dict=False,
            **own,
        )[0]

    def shifted(self, tokens: int, steps: int) -> float:
        """mu as FLUX.2's authors fitted it to tokens and steps."""
        from diffusers.pipelines.flux2.pipeline_flux2 import compute_empirical_mu

        return compute_empirical_mu(tokens, steps)

    def arguments(self, x: Image, cond: Cond, chosen: Mapping[str, Any]) -> dict[str, Any]:
        """The picture on 8 bits, with guidance where the pipeline takes any."""
        given: dict[str, Any] = {"image": on_eight_bits(x), "prompt_embeds": cond.prompt}
        if not self.timeless:
            given["guidance_scale"] = chosen["guidance_scale"]
        if self.branches:
            given["negative_prompt_embeds"] = cond.empty
        return given


class Flux2KV(Flux2):
    """The reference stands first, sees itself alone and is modulated at one timestep."""

    family = "flux2-kv"
    order = ("text", "reference", "target")
    timeless = ("reference",)

    def velocity(
        self, target: Tensor, reference: Tensor, t: Tensor, cond: Cond, grid: tuple[int, int], chosen: Mapping[str, Any]
    ) -> Tensor:
        """What the transformer makes of the target's tokens at ``t`` (B,), the reference's not remembered."""
        return self._ask(target, reference, t, cond.prompt, grid, chosen, **_first_step(reference))

    def tower(self, z: Latent, cond: Cond) -> Tensor:
        """The reference's tokens alone, beside one token of text, which they do not see."""
        reference = self.pack(z.to(self.dtype))
        t, grid = torch.zeros(len(z), device=self.device), (z.shape[-2], z.shape[-1])
        own = _first_step(reference)
        return self._ask(reference[:, :0], reference, t, cond.prompt[:, :1], grid, self.settings, **own)

    def attention(self) -> Any:
        """Of the target alone: the reference attends to no text."""
        return watched(self.net, lambda probabilities: [probabilities[:, :, self._tokens["reference"] :]])


def _first_step(reference: Tensor) -> dict[str, Any]:
    """What makes the network take the sequence's first tokens for the reference."""
    return {"kv_cache_mode": "extract", "num_ref_tokens": reference.shape[1]}
