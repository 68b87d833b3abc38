"""What is said of a neuron beyond its scores: histograms, contexts, ablation, weights."""
