"""A local vision-language model as a judge, through transformers: any image-text-to-text model with a chat template.

Nothing is billed, nothing leaves the machine. By default the model writes nothing: its probabilities of "yes" and "no"
are compared (preset ranked), so that a small one cannot fail to answer. With another preset it is held to the answer's
form by the prompt alone, and a small one will often be unparsable: that shows in the report, as it should.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..errors import InputError, JudgeError
from ..files import in_cache
from ..pretrained import whole
from ..types import Judge, State
from .client import Client, Reply
from .files import files_of
from .ranking import likelihoods, spellings
from .rubric import OPTIONS, Form, Part
from .scores import parted
from .vlm import VlmJudge


class TransformersClient(Client):
    """One greedy generation, or the probabilities of all answers. Loads the model when it is connected."""

    backend = "transformers"
    preset, ranks = "ranked", True

    def connect(self) -> None:
        import torch
        from transformers import AutoModelForImageTextToText, AutoProcessor

        device = self.config["device"]
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
        local = self.config["local_files_only"]
        place = in_cache(self.model) if local else self.model
        try:
            self._processor: Any = AutoProcessor.from_pretrained(place, local_files_only=local, trust_remote_code=False)
            self._model: Any = whole(
                AutoModelForImageTextToText,
                place,
                local_files_only=local,
                trust_remote_code=False,
                dtype=torch.float32 if device == "cpu" else "auto",
            )
        except (OSError, ValueError, KeyError, ImportError) as error:
            hint = "; it must be on this machine (`hf download` fetches it)" if local else ""
            raise JudgeError(
                f"{self.model}: expected a vision-language model that transformers loads{hint}: {error}"
            ) from error
        self._model.eval().requires_grad_(False).to(device)

    def send(self, parts: Sequence[Part], form: Form) -> Reply:
        import torch
        from PIL import Image

        content = [
            {"type": "text", "text": part}
            if isinstance(part, str)
            else {"type": "image", "image": Image.open(io.BytesIO(part)).convert("RGB")}
            for part in parts
        ]
        inputs = self._processor.apply_chat_template(
            [{"role": "user", "content": content}],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            **({"enable_thinking": False} if form.ranked and "enable_thinking" in self._template() else {}),
        ).to(self._model.device, self._model.dtype)
        asked = inputs["input_ids"].shape[1]
        try:
            with torch.inference_mode():
                state, text, reason, written = self._rank(inputs) if form.ranked else self._write(inputs)
        except torch.OutOfMemoryError as error:
            return Reply("error", reason=f"out of memory, use a smaller model: {error}")
        served = f"{self.model}@{self._model.config.model_type}"
        return Reply(state, text=text, reason=reason, served=served, tokens=(asked, written), billed="yes")

    def _template(self) -> str:
        return str(self._processor.chat_template or self._processor.tokenizer.chat_template)

    def _write(self, inputs: Any) -> tuple[State, str, str, int]:
        limit, asked = self.config["max_output_tokens"], inputs["input_ids"].shape[1]
        written = self._model.generate(**inputs, max_new_tokens=limit, do_sample=False)[0, asked:]
        text = self._processor.decode(written, skip_special_tokens=True)
        ends = self._model.generation_config.eos_token_id
        ended = len(written) < limit or int(written[-1]) in (ends if isinstance(ends, list) else [ends])
        return "ok" if ended else "truncated", text, "" if ended else _CUT, len(written)

    def _rank(self, inputs: Any) -> tuple[State, str, str, int]:
        tokenizer = self._processor.tokenizer
        end = tokenizer.decode(inputs["input_ids"][0, -8:])
        if end.rstrip().endswith("<think>"):  # a template that has the model think: it has thought
            inputs = _longer(inputs, tokenizer.encode("\n</think>\n\n", add_special_tokens=False))
        asked = inputs["input_ids"].shape[1]
        first = self._logits(inputs)[-1]
        likely = {}
        for option in OPTIONS:
            total = 0.0
            for word in spellings(option):
                ids = tokenizer.encode(word, add_special_tokens=False)
                chance = first[ids[0]]
                if len(ids) > 1:
                    rest = self._logits(_longer(inputs, ids[:-1]))[asked:]
                    chance = chance + rest[range(len(ids) - 1), ids[1:]].sum()
                total += float(chance.exp())
            likely[option] = total
        return "ok", likelihoods(likely), "", 0

    def _logits(self, inputs: Any) -> Any:
        """The log-probabilities of the token after each."""
        return self._model(**inputs).logits[0].float().log_softmax(-1)


_CUT = "the answer ran into max_output_tokens"


def _longer(inputs: Any, ids: Sequence[int]) -> Any:
    """The same inputs with more text tokens at their end."""
    import torch

    asked = inputs["input_ids"].shape
    more = {
        name: torch.cat([value, value.new_tensor([_text_token(name, ids)])], dim=1)
        for name, value in inputs.items()
        if isinstance(value, torch.Tensor) and value.shape == asked
    }
    return {**inputs, **more}


def _text_token(name: str, ids: Sequence[int]) -> list[int]:
    return list(ids) if name == "input_ids" else [int(name == "attention_mask")] * len(ids)


def load(
    model: str,
    *,
    base_url: str | None = None,
    device: str = "auto",
    local_files_only: bool = True,
    max_output_tokens: int = 1024,
    **asking: Any,
) -> Judge:
    """A model folder or hub id, with its thresholds after a "#" if it has any (see :mod:`sifm_core.judges.scores`).

    ``asking``: see :class:`sifm_core.judges.vlm.VlmJudge`; one call at a time.
    """
    if base_url:
        raise InputError(
            f"transformers judges run here and take no base_url, but got {base_url!r}; use openai:MODEL@URL"
        )
    name, (model, thresholds) = f"transformers:{model}", parted(model)
    config = {
        "device": device,
        "local_files_only": local_files_only,
        "max_output_tokens": max_output_tokens,
        "files": _fingerprint(model),
    }
    client = TransformersClient(model, "", "", config=config, timeout=0.0)
    return VlmJudge(client, name=name, thresholds=thresholds, **({"concurrency": 1} | asking))


def _fingerprint(model: str) -> str:
    """What tells these weights from others of the same name: the hub's commit, or a folder's files and their sizes."""
    if not Path(model).is_dir():
        cached = in_cache(model)
        return "" if cached == model else Path(cached).name
    return files_of(model)
