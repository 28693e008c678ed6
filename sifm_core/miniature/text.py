"""The miniature's text side: a CLIP tokenizer on the world's own words and a small CLIP text encoder."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from . import language

if TYPE_CHECKING:
    from transformers import CLIPTokenizer

LENGTH = 16
WIDTH = 96


def build_tokenizer() -> CLIPTokenizer:
    """A BPE tokenizer trained on the trained phrasings and captions; single letters remain for unknown words.

    The same in every process: a training that resumes finds its words under their old numbers.
    """
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import CLIPTokenizer

    alphabet = [letter + end for end in ("", "</w>") for letter in "abcdefghijklmnopqrstuvwxyz"]
    bpe = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    bpe.pre_tokenizer = pre_tokenizers.Whitespace()
    trainer = trainers.BpeTrainer(
        vocab_size=3000,
        min_frequency=1,
        end_of_word_suffix="</w>",
        # the trainer numbers these in order, all else that it meets first by chance
        special_tokens=["<|startoftext|>", "<|endoftext|>", *alphabet],
        show_progress=False,
    )
    bpe.train_from_iterator(language.trained(), trainer)
    model = json.loads(bpe.to_str())["model"]
    merges = [tuple(m) if not isinstance(m, str) else tuple(m.split(" ")) for m in model["merges"]]
    return CLIPTokenizer(vocab=model["vocab"], merges=merges, model_max_length=LENGTH)


def build_text_encoder(tokenizer: CLIPTokenizer, projection: bool = False) -> Any:
    """An untrained CLIP text encoder (2 layers, 96 wide), with the projection that SD3 pools with if asked."""
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    return (CLIPTextModelWithProjection if projection else CLIPTextModel)(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=WIDTH,
            intermediate_size=2 * WIDTH,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=LENGTH,
            bos_token_id=0,
            eos_token_id=1,
            pad_token_id=1,
            projection_dim=WIDTH,
        )
    )
