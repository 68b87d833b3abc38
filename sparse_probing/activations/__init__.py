"""One forward pass to typed batches of activations, and from there to a finished artifact."""
