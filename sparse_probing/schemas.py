"""Every Arrow schema of the project, one name for one quantity in Python, Parquet and SQL.

Schemas only: no reading, no writing. A table in `sql/0xx` has the same columns in the same order; a table without a file
there is made from its schema.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import pyarrow as pa

from sparse_probing.config import SPLITS as SPLITS

# The metrics of a classification probe at its decision threshold, and the two that need scores only.
THRESHOLD_METRICS = (
    "mcc",
    "kappa",
    "fowlkes_mallows",
    "f1",
    "f05",
    "f2",
    "accuracy",
    "balanced_accuracy",
    "precision",
    "recall",
)
SCORE_METRICS = ("roc_auc", "pr_auc", "average_precision")
CLASSIFICATION_METRICS = THRESHOLD_METRICS + SCORE_METRICS
REGRESSION_METRICS = (
    "r2",
    "explained_variance",
    "mean_squared_error",
    "root_mean_squared_error",
    "mean_absolute_error",
    "median_absolute_error",
    "max_error",
    "pearson",
    "spearman",
    "kendall",
)

# Metrics kept for every single neuron, in each split: at the fitted threshold, and at the best one (chosen on train).
NEURON_METRICS = ("mcc", "f1", "precision", "recall", "balanced_accuracy", "roc_auc", "average_precision")
NEURON_BEST_METRICS = ("mcc", "f1")


def _field(name: str, kind: pa.DataType, nullable: bool = False) -> pa.Field:
    return pa.field(name, kind, nullable=nullable)


SEQUENCES = pa.schema(
    [
        _field("seq_id", pa.int64()),
        _field("group_id", pa.string()),
        _field("source", pa.string()),
        _field("split", pa.string()),
        _field("tokens", pa.list_(pa.int32())),
        _field("n_tokens", pa.int32()),
        # The positions [first, last) that pooling may use: special tokens and what the collection skips are outside.
        _field("pool_start", pa.int32()),
        _field("pool_end", pa.int32()),
    ]
)

LABELS = pa.schema(
    [
        _field("feature", pa.string()),
        _field("seq_id", pa.int64()),
        _field("position", pa.int32(), nullable=True),
        _field("label", pa.int8(), nullable=True),
        _field("target", pa.float64(), nullable=True),
    ]
)

# One row per stored row, the same for every layer: rows.parquet beside the layer folders.
ROWS = pa.schema(
    [
        _field("row_id", pa.int64()),
        _field("seq_id", pa.int64()),
        _field("position", pa.int32(), nullable=True),
        _field("group_id", pa.string()),
        _field("split", pa.string()),
    ]
)


def activations(n_neurons: int, item_bytes: int) -> pa.Schema:
    """Schema of one layer's Parquet files: `activation` holds n_neurons × item_bytes little-endian bytes.

    Fixed-size binary and not a list: decision note 0002 has the measurements.
    """
    return pa.schema(
        [
            _field("row_id", pa.int64()),
            _field("seq_id", pa.int64()),
            _field("position", pa.int32(), nullable=True),
            _field("activation", pa.binary(n_neurons * item_bytes)),
        ]
    )


# One row per neuron of a layer: value = offset + scale * level, where level = (stored byte + origin) modulo 256.
QUANTISATION = pa.schema(
    [
        _field("layer", pa.int32()),
        _field("neuron", pa.int32()),
        _field("offset", pa.float32()),
        _field("scale", pa.float32()),
        _field("origin", pa.uint8()),
        _field("clipped_fraction", pa.float32()),
        _field("max_error", pa.float32()),
    ]
)

# One row per stored neuron, where an extraction keeps some of them only: its place in the rows of its layer.
NEURONS = pa.schema(
    [
        _field("layer", pa.int32()),
        _field("neuron", pa.int32()),
        _field("column", pa.int32()),
    ]
)

RUNS = pa.schema(
    [
        _field("run_id", pa.string()),
        _field("study", pa.string()),
        _field("model", pa.string()),
        _field("revision", pa.string()),
        _field("weights_digest", pa.string()),
        _field("tokenizer_digest", pa.string()),
        _field("collection", pa.string()),
        _field("dataset_digest", pa.string()),
        _field("activations_digest", pa.string()),
        _field("probing_digest", pa.string()),
        _field("hook", pa.string()),
        _field("pooling", pa.string()),
        _field("layers", pa.list_(pa.int32())),
        _field("n_neurons", pa.int32()),
        _field("n_rows", pa.int64()),
        _field("n_sequences", pa.int64()),
        _field("n_tokens", pa.int64()),
        _field("storage_dtype", pa.string()),
        _field("model_dtype", pa.string()),
        _field("attention", pa.string()),
        _field("split_mode", pa.string()),
        _field("seed", pa.int64()),
        _field("max_clipped_fraction", pa.float64()),
        _field("max_quantisation_error", pa.float64(), nullable=True),
        _field("quantisation_error_bound", pa.float64(), nullable=True),
        _field("spec", pa.string()),
        _field("package_versions", pa.string()),
        _field("created_at", pa.timestamp("us", tz="UTC")),
    ]
)

FEATURES = pa.schema(
    [
        _field("run_id", pa.string()),
        _field("feature", pa.string()),
        _field("task", pa.string()),
        _field("level", pa.string()),
        *[
            _field(f"n_{split}{what}", pa.int64())
            for split in SPLITS
            for what in ("", "_positive", "_groups", "_groups_positive")
        ],
        _field("n_shared_groups", pa.int64()),
        _field("prevalence", pa.float64()),
    ]
)

# One row per run, feature, layer and neuron.
NEURON_SCORES = pa.schema(
    [
        _field("run_id", pa.string()),
        _field("feature", pa.string()),
        _field("layer", pa.int32()),
        _field("neuron", pa.int32()),
        _field("coef", pa.float32()),
        _field("intercept", pa.float32()),
        _field("converged", pa.bool_()),
        _field("best_threshold", pa.float32()),
        _field("best_direction", pa.int8()),
        _field("mean_difference", pa.float32()),
        _field("f_statistic", pa.float32()),
        _field("mutual_information", pa.float32()),
        *[_field(f"{split}_{metric}", pa.float32()) for split in SPLITS for metric in NEURON_METRICS],
        *[_field(f"{split}_best_{metric}", pa.float32()) for split in SPLITS for metric in NEURON_BEST_METRICS],
        # Permutation null of the maximum over the layer's neurons, and Benjamini-Hochberg over the run.
        _field("p_value", pa.float32()),
        _field("q_value", pa.float32()),
        # Rank on train within the layer (1 = best); intervals are there for the shortlist only.
        _field("layer_rank", pa.int32()),
        _field("shortlisted", pa.bool_()),
        _field("validation_mcc_low", pa.float32(), nullable=True),
        _field("validation_mcc_high", pa.float32(), nullable=True),
        _field("test_mcc_low", pa.float32(), nullable=True),
        _field("test_mcc_high", pa.float32(), nullable=True),
    ]
)

# One row per fit: a method at one k on one layer (layer null: all layers together, or none needed).
PROBE_FITS = pa.schema(
    [
        _field("run_id", pa.string()),
        _field("fit_id", pa.string()),
        _field("feature", pa.string()),
        _field("layer", pa.int32(), nullable=True),
        _field("method", pa.string()),
        # real, or which baseline: prevalence, shuffled_labels, random_rotation, token_identity, dense
        _field("variant", pa.string()),
        _field("ranking", pa.string(), nullable=True),
        _field("k", pa.int32()),
        _field("n_candidates", pa.int32()),
        # Of an optimal selection: neurons of the layer, λ in λ/2 ‖β‖², and standard deviations in a unit of activation.
        _field("n_neurons", pa.int32(), nullable=True),
        _field("ridge", pa.float64(), nullable=True),
        _field("unit_standard_deviations", pa.float64(), nullable=True),
        _field("step", pa.int32()),
        _field("status", pa.string()),
        _field("converged", pa.bool_()),
        _field("objective", pa.float64(), nullable=True),
        _field("bound", pa.float64(), nullable=True),
        _field("gap", pa.float64(), nullable=True),
        _field("n_cuts", pa.int32(), nullable=True),
        # Of a certificate that another solver checked: its name and version, and (objective − its optimum) / |objective|.
        _field("audited_by", pa.string(), nullable=True),
        _field("audit_gap", pa.float64(), nullable=True),
        _field("fit_seconds", pa.float64(), nullable=True),
        _field("message", pa.string(), nullable=True),
        *[
            _field(f"{split}_{metric}", pa.float64(), nullable=True)
            for split in SPLITS
            for metric in CLASSIFICATION_METRICS + REGRESSION_METRICS
        ],
        _field("test_mcc_low", pa.float64(), nullable=True),
        _field("test_mcc_high", pa.float64(), nullable=True),
        _field("test_r2_low", pa.float64(), nullable=True),
        _field("test_r2_high", pa.float64(), nullable=True),
    ]
)

# One row per neuron of a fit's support. `neuron` is null-free; for rotations it numbers a rotated direction.
PROBE_SUPPORTS = pa.schema(
    [
        _field("run_id", pa.string()),
        _field("fit_id", pa.string()),
        _field("layer", pa.int32(), nullable=True),
        _field("neuron", pa.int32()),
        _field("position_in_support", pa.int32()),
        _field("coef", pa.float64()),
    ]
)

# One row per run and feature: what its test rows are judged by, in the order of the stored rows (packed, see store.predictions).
TEST_LABELS = pa.schema(
    [
        _field("run_id", pa.string()),
        _field("feature", pa.string()),
        _field("n_rows", pa.int64()),
        _field("truth", pa.binary()),
        _field("group_code", pa.binary()),
    ]
)

# One row per shortlisted neuron and per fit: what it predicts on the feature's test rows. probe_id: the fit's id, or layer/neuron.
# truth: what it was judged by where that is not the feature's own (shuffled labels).
TEST_PREDICTIONS = pa.schema(
    [
        _field("run_id", pa.string()),
        _field("feature", pa.string()),
        _field("probe_id", pa.string()),
        _field("predicted", pa.binary()),
        _field("truth", pa.binary(), nullable=True),
    ]
)

# One row per pair of neurons or fits that a view sets side by side: the score of the one less that of the other on test rows.
COMPARISONS = pa.schema(
    [
        _field("run_id", pa.string()),
        _field("feature", pa.string()),
        _field("metric", pa.string()),
        _field("probe_id", pa.string()),
        _field("other_run_id", pa.string()),
        _field("other_probe_id", pa.string()),
        _field("difference_low", pa.float64()),
        _field("difference_high", pa.float64()),
    ]
)

# One row per neuron and context, best first. `position` is that of the token read; null for rows pooled by mean or max.
NEURON_CONTEXTS = pa.schema(
    [
        _field("layer", pa.int32()),
        _field("neuron", pa.int32()),
        _field("rank", pa.int32()),
        _field("activation", pa.float32()),
        _field("row_id", pa.int64()),
        _field("seq_id", pa.int64()),
        _field("position", pa.int32(), nullable=True),
        _field("before", pa.string()),
        _field("token", pa.string()),
        _field("after", pa.string()),
    ]
)

CHECK_RESULTS = pa.schema(
    [
        _field("run_id", pa.string()),
        _field("check_name", pa.string()),
        _field("suite", pa.string()),
        _field("severity", pa.string()),
        _field("n_violations", pa.int64()),
        _field("passed", pa.bool_()),
        _field("detail", pa.string(), nullable=True),
        _field("checked_at", pa.timestamp("us", tz="UTC")),
    ]
)

# Who writes the rows of a table: each part of a run, a run at its end, or the one writer of the database.
Writer = Literal["part", "run", "warehouse"]


@dataclass(frozen=True)
class ResultTable:
    """A table of the database, and where its rows come from. Every table has a column `run_id`.

    Attributes
    ----------
    written_by:
        ``part``: layers and best layers write some rows each, as `runs.tables` computes them. ``run``: a run writes its rows
        when it ends. ``warehouse``: loading and checking do.
    later:
        Whether runs of earlier versions lack it, and are loaded without.
    """

    name: str
    schema: pa.Schema
    written_by: Writer
    later: bool = False


# A new table is a schema above and a line here; docs/extending.md has the rest.
_ALL = (
    ResultTable("runs", RUNS, "run"),
    ResultTable("features", FEATURES, "run"),
    ResultTable("neuron_scores", NEURON_SCORES, "part"),
    ResultTable("probe_fits", PROBE_FITS, "part"),
    ResultTable("probe_supports", PROBE_SUPPORTS, "part"),
    ResultTable("test_labels", TEST_LABELS, "run", later=True),
    ResultTable("test_predictions", TEST_PREDICTIONS, "part", later=True),
    ResultTable("comparisons", COMPARISONS, "warehouse"),
    ResultTable("check_results", CHECK_RESULTS, "warehouse"),
)
TABLES: dict[str, pa.Schema] = {table.name: table.schema for table in _ALL}
# What the parts of a run hold.
PART_KINDS = tuple(table.name for table in _ALL if table.written_by == "part")
# What a run writes, `runs` last: a run is finished when every kind is there.
RESULT_KINDS = (*(table.name for table in _ALL if table.written_by != "warehouse" and table.name != "runs"), "runs")
# Kinds that runs of earlier versions lack, and are loaded without.
LATER_KINDS = frozenset(table.name for table in _ALL if table.later)
# Columns that say when or how long, and so differ between two runs that agree on every result: no digest covers them.
TIME_COLUMNS: dict[str, tuple[str, ...]] = {"runs": ("created_at",), "probe_fits": ("fit_seconds",)}
VOLATILE_COLUMNS = frozenset({"created_at", "checked_at", "fit_seconds", "package_versions"})


def fragment(kind: str) -> pa.Schema:
    """Schema of the Parquet files of a result kind: its table's, without times."""
    return pa.schema([field for field in TABLES[kind] if field.name not in TIME_COLUMNS.get(kind, ())])


# Beside the files of probe_fits, outside of their digests.
FIT_TIMES = pa.schema([_field("fit_id", pa.string()), _field("fit_seconds", pa.float64(), nullable=True)])
