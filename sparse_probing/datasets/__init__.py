"""Text to tokens and labels. May not know models or activations: the tokenizer is handed in."""
