"""Every neuron of a layer as a probe of its own: counting levels, one-neuron fits, and the scores of a whole layer."""

from sparse_probing.probes.data import trainable_features
from sparse_probing.probes.single.neuron_scores import FeatureScores, NeuronScores
from sparse_probing.probes.single.scoring import score_counts, score_features, score_neurons

__all__ = ["FeatureScores", "NeuronScores", "score_counts", "score_features", "score_neurons", "trainable_features"]
