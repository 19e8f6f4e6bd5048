"""What a language model is worth on text: perplexity, multiple choice, last words; by whoever computes its logits."""
