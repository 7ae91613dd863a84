"""Make the captions, the tokenizer and the text encoder."""

from __future__ import annotations

import json
import re
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from bsgal_train.builtin_dataset.categories import BUILTIN_CATEGORIES, BuiltinCategory

MAX_TOKENS = 24
VOCABULARY_SIZE = 1024
_START, _END = "<|startoftext|>", "<|endoftext|>"
_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"

MAIN_TEMPLATE = "a photo of a single {name}"
_TEMPLATES = (
    *(MAIN_TEMPLATE,) * 4,
    "a photo of a {name}",
    "a single {name}",
    "{name}",
    "a photo of a single {name} on a plain background",
    "a photo of a single {name}, {definition}",
)


def spoken_name(name: str) -> str:
    """Return an LVIS name as words: no underscores, no text in brackets."""
    return re.sub(r"_?\([^)]*\)$", "", name).replace("_", " ")


def main_caption(category: BuiltinCategory) -> str:
    """Return the caption that a category's images are sampled with."""
    return MAIN_TEMPLATE.format(name=spoken_name(category.name))


def captions(category: BuiltinCategory) -> list[str]:
    """Return all training captions of a category; frequent ones occur several times."""
    names = [spoken_name(category.name)] * 4 + [name.lower() for name in category.synonyms]
    return [
        template.format(name=name, definition=category.definition)
        for name in names
        for template in _TEMPLATES
    ]


def build_tokenizer() -> CLIPTokenizer:
    """Train a byte-level tokenizer in CLIP's format that can encode any text."""
    trained = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    trained.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    trained.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_WORDS), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY_SIZE, end_of_word_suffix="</w>", show_progress=False
    )
    corpus = [text for category in BUILTIN_CATEGORIES for text in captions(category)]
    trained.train_from_iterator(corpus, trainer)
    merges = [tuple(pair) for pair in json.loads(trained.to_str())["model"]["merges"]]

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = [*letters, *(letter + "</w>" for letter in letters)]
    merges = merges[: VOCABULARY_SIZE - len(tokens) - 2]
    tokens += [left + right for left, right in merges]
    vocabulary = {token: index for index, token in enumerate([*tokens, _START, _END])}
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=MAX_TOKENS)


def save_tokenizer(tokenizer: CLIPTokenizer, folder: Path) -> None:
    """Save a tokenizer for this and for older versions of transformers."""
    tokenizer.save_pretrained(folder)
    model = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))["model"]
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]]
    (folder / "vocab.json").write_text(json.dumps(model["vocab"]), encoding="utf-8")
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]), encoding="utf-8")


def encode(tokenizer: CLIPTokenizer, texts: list[str]) -> torch.Tensor:
    """Return token ids `(N, MAX_TOKENS)`, padded and cut as the pipeline does."""
    batch = tokenizer(
        texts,
        padding="max_length",
        max_length=MAX_TOKENS,
        truncation=True,
        return_tensors="pt",
    )
    return batch.input_ids


def build_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """Build the text encoder with random weights."""
    model = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=128,
            intermediate_size=256,
            projection_dim=128,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=MAX_TOKENS,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    for name, parameter in model.named_parameters():
        if "token_embedding" in name:
            nn.init.normal_(parameter, std=0.5)
    return model


def warm_up(encoder: CLIPTextModel, ids_per_class: list[torch.Tensor], n_steps: int) -> float:
    """Teach the encoder to tell the categories apart, so that its states differ from the start.

    Args:
        encoder: Changed in place.
        ids_per_class: For each category the token ids of its captions.
        n_steps: Optimizer steps.

    Returns:
        The last loss, in nats.
    """
    generator = torch.Generator().manual_seed(0)
    head = nn.Linear(encoder.config.hidden_size, len(ids_per_class))
    optimizer = torch.optim.AdamW([*encoder.parameters(), *head.parameters()], lr=1e-3)
    labels = torch.arange(len(ids_per_class)).repeat(2)
    loss = torch.zeros(())
    for _ in range(n_steps):
        rows = [ids_per_class[label] for label in labels]
        picks = [torch.randint(len(ids), (), generator=generator) for ids in rows]
        ids = torch.stack([ids[pick] for ids, pick in zip(rows, picks, strict=True)])
        loss = nn.functional.cross_entropy(head(encoder(ids).last_hidden_state.mean(1)), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return loss.item()
