"""Calibration without a tokenizer: texts whose words are token numbers, drawn at random."""

from __future__ import annotations

import numpy as np
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit

from stic.compiler.importance.examples import Examples
from stic.compiler.model import Model

SEQUENCES, LENGTH = 256, 32  # more than calibration and trials take by default
_SEED = 0


def random_examples(model: Model) -> tuple[Examples, Tokenizer]:
    """Return texts of tokens drawn uniformly from the model's vocabulary, and a tokenizer that reads their numbers."""
    vocabulary, length = model.embeddings.word.shape[0], min(LENGTH, model.max_length)
    drawn = np.random.default_rng(_SEED).integers(0, vocabulary, (SEQUENCES, length))
    texts = tuple((" ".join(map(str, row)), None) for row in drawn.tolist())
    tokenizer = Tokenizer(WordLevel({str(token): token for token in range(vocabulary)}, unk_token="0"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    return Examples("unlabelled", texts, None, "random tokens"), tokenizer
