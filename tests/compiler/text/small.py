"""Small tokenizers of the two kinds that language models have."""

import json

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

from stic.compiler.decoder.model import Text
from stic.compiler.text.tokens import Coder
from stic.runtime.architecture import Architecture, Embedding, Norms, Vocabulary

CONTROL = ("<s>", "</s>", "<|end|>")


def architecture(vocabulary: int, bos: int | None = 0, stops: tuple[int, ...] = (1,)) -> Architecture:
    """A model of nothing but a vocabulary."""
    return Architecture(
        "none", 4, vocabulary, 16, Embedding(), (Vocabulary(vocabulary, Norms(), True),), bos=bos, stops=stops
    )


def byte_level() -> Tokenizer:
    """GPT-2's kind: every byte is a token, and some are merged."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("h", "e"), ("l", "l"), ("he", "ll"), ("hell", "o"), ("Ġ", "hello"), ("Ã", "©")]
    tokens = [*CONTROL, *letters, *("".join(pair) for pair in merges)]
    tokenizer = Tokenizer(models.BPE({token: number for number, token in enumerate(tokens)}, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(CONTROL))
    return tokenizer


def sentence_piece() -> Tokenizer:
    """LLaMA's kind: a space before the text, and bytes for letters that it lacks."""
    byte_tokens = [f"<0x{byte:02X}>" for byte in range(256)]
    merges = [("▁", "h"), ("e", "l"), ("l", "o"), ("▁h", "el"), ("▁hel", "lo")]
    letters = ["▁", *"abcdefghijklmnopqrstuvwxyz"]
    tokens = [*CONTROL, *byte_tokens, *letters, *("".join(pair) for pair in merges)]
    model = models.BPE({t: n for n, t in enumerate(tokens)}, merges, unk_token="<s>", byte_fallback=True, fuse_unk=True)
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    tokenizer.decoder = decoders.Sequence(steps)
    tokenizer.add_special_tokens(list(CONTROL))
    return tokenizer


KINDS = {"byte level": byte_level, "sentence piece": sentence_piece}


def content(tokenizer: Tokenizer) -> bytes:
    """Its tokenizer.json."""
    return tokenizer.to_str().encode()


def changed(tokenizer: Tokenizer, **keys) -> bytes:
    """Its tokenizer.json with other keys."""
    return json.dumps(json.loads(tokenizer.to_str()) | keys).encode()


def coder(tokenizer: Tokenizer, **keys) -> Coder:
    """A coder of it, in a model that has a row for each token."""
    text = Text(content(tokenizer), **{"bos": "<s>", "eos": "</s>"} | keys)
    return Coder(text, architecture(tokenizer.get_vocab_size()), "the model")
