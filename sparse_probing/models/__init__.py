"""Models: where they come from, how they are loaded, and where their activations can be read. No corpus, no storage."""
