"""A local vision-language model as a judge, through transformers: any image-text-to-text model with a chat template.

Nothing is billed, nothing leaves the machine. The model is held to the answer's form by the prompt alone, so a small
one will often be unparsable: that shows in the report, as it should.
"""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..errors import InputError, JudgeError
from ..files import in_cache
from ..pretrained import whole
from ..types import Judge
from .client import Client, Reply
from .rubric import Form, Part
from .vlm import VlmJudge


class TransformersClient(Client):
    """One greedy generation. Loads the model when it is connected."""

    backend = "transformers"

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
        ).to(self._model.device, self._model.dtype)
        limit, asked = self.config["max_output_tokens"], inputs["input_ids"].shape[1]
        try:
            with torch.inference_mode():
                written = self._model.generate(**inputs, max_new_tokens=limit, do_sample=False)[0, asked:]
        except torch.OutOfMemoryError as error:
            return Reply("error", reason=f"out of memory, use a smaller model: {error}")
        text = self._processor.decode(written, skip_special_tokens=True)
        ends = self._model.generation_config.eos_token_id
        ended = len(written) < limit or int(written[-1]) in (ends if isinstance(ends, list) else [ends])
        return Reply(
            "ok" if ended else "truncated",
            text=text,
            reason="" if ended else "the answer ran into max_output_tokens",
            served=self.model,
            tokens=(asked, len(written)),
            billed="yes",
        )


def load(
    model: str,
    *,
    base_url: str | None = None,
    device: str = "auto",
    local_files_only: bool = True,
    max_output_tokens: int = 1024,
    **asking: Any,
) -> Judge:
    """A model folder or hub id; ``asking``: see :class:`sifm_core.judges.vlm.VlmJudge`; one call at a time."""
    if base_url:
        raise InputError(
            f"transformers judges run here and take no base_url, but got {base_url!r}; use openai:MODEL@URL"
        )
    config = {
        "device": device,
        "local_files_only": local_files_only,
        "max_output_tokens": max_output_tokens,
        "files": _fingerprint(model),
    }
    client = TransformersClient(model, "", "", config=config, timeout=0.0)
    return VlmJudge(client, name=f"transformers:{model}", **({"concurrency": 1} | asking))


def _fingerprint(model: str) -> str:
    """What tells these weights from others of the same name: the hub's commit, or a folder's files and their sizes."""
    if not Path(model).is_dir():
        cached = in_cache(model)
        return "" if cached == model else Path(cached).name
    files = sorted((f.name, f.stat().st_size, int(f.stat().st_mtime)) for f in os.scandir(model) if f.is_file())
    return hashlib.sha256(repr(files).encode()).hexdigest()[:16]
