"""A small random decoder with a tokenizer and a template, as a directory to compile."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from tests.compiler.frontend.families import folders
from tests.compiler.text.small import byte_level, content

CONTEXT = 64
TEMPLATE = (
    "{% for m in messages %}{{ '<s>' + m.role + ' ' + m.content + '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<s>assistant ' }}{% endif %}"
)


def write(folder: Path, template: str | None = TEMPLATE, tied: bool = False) -> Path:
    """Write it; its tokens are bytes, and its answers end with <|end|>. `tied`: without a head of its own."""
    tokenizer, random = byte_level(), np.random.default_rng(5)
    rows = tokenizer.get_vocab_size()
    tensors = folders.llama_tensors()
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        tensors[name] = random.normal(0, 0.25, (rows, folders.HIDDEN)).astype(np.float32)
    # Their logits are 0, never the greatest: whatever codes are found, a greedy answer does not end by itself.
    tensors["lm_head.weight"][[1, *(tokenizer.token_to_id(name) for name in ("</s>", "<|end|>"))]] = 0
    if tied:
        del tensors["lm_head.weight"]
    sizes = {"vocab_size": rows, "max_position_embeddings": CONTEXT}
    folders.write(folder, tensors, **sizes, eos_token_id=1, tie_word_embeddings=tied)
    (folder / "tokenizer.json").write_bytes(content(tokenizer))
    settings = {"bos_token": "<s>", "eos_token": "</s>", "add_bos_token": True}
    settings |= {} if template is None else {"chat_template": template}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder
