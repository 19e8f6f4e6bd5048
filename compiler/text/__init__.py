"""Text to tokens and back: a decoder's tokenizer, its chat template, and its answer as it is generated."""
