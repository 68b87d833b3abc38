"""What a large study will take, from measured figures and public configurations: ``python -m benchmarks.plan_scale``.

Nothing is run. Each figure names the command that gives it; `docs/scale.md` shows what this prints, and a test compares the two.
"""

from __future__ import annotations

from dataclasses import dataclass

HOUR = 3600.0


@dataclass(frozen=True)
class Figure:
    """One measured quantity.

    Attributes
    ----------
    value, unit:
        The number, as the formulas below use it.
    command:
        What gives it.
    """

    value: float
    unit: str
    command: str


BENCH_LAYER = "python -m benchmarks.bench_layer"
# One thread of a shared processor with two cores, AVX2; processor time.
FIGURES = {
    "scores": Figure(17e-6, "core-seconds a neuron and feature (scores; rows add to it)", BENCH_LAYER),
    "counting": Figure(1.1e-9, "core-seconds a neuron, feature and row (scores)", BENCH_LAYER),
    "null": Figure(4.1e-9, "core-seconds a neuron, feature and row (200 permutations)", BENCH_LAYER),
    "fits": Figure(14e-9, "core-seconds a neuron, feature and row (sweep, baselines, intervals)", BENCH_LAYER),
    "rotating": Figure(22e-12, "core-seconds a row and neuron of a layer squared (random basis)", BENCH_LAYER),
    "basis": Figure(135e-12, "core-seconds a neuron of a layer cubed (random basis, once a run)", BENCH_LAYER),
    "result_bytes": Figure(143, "bytes of Parquet a neuron and feature", BENCH_LAYER),
    "database_bytes": Figure(148, "bytes of the database a neuron and feature", BENCH_LAYER),
    "loading": Figure(4.1e-6, "core-seconds to load a row of scores into the database", BENCH_LAYER),
    "stored": Figure(
        0.36, "bytes on disk of raw float16, that is 0.72 a value", "python -m benchmarks.bench_extraction"
    ),
    "extracting": Figure(0.88, "of the speed of a bare forward pass", "python -m benchmarks.bench_extraction"),
}
# Assumed, not measured here: what a GPU sustains in a forward pass, a third of what its maker gives for float16.
GPU_FLOPS = 100e12


@dataclass(frozen=True)
class Model:
    """A decoder: what its configuration says.

    Attributes
    ----------
    n_layers, n_neurons:
        Blocks, and MLP neurons in each.
    parameters:
        Weights that a token passes through, embeddings left out.
    weight_bytes:
        Bytes of all weights in 16 bits.
    """

    name: str
    n_layers: int
    n_neurons: int
    parameters: float
    weight_bytes: float

    @property
    def all_neurons(self) -> int:
        """MLP neurons of all layers."""
        return self.n_layers * self.n_neurons


# `num_hidden_layers` and `intermediate_size` of each config.json of EleutherAI/pythia-…; weights without embeddings and in all
# from the table in the README of EleutherAI/pythia (Biderman et al. 2023, arXiv 2304.01373).
PYTHIAS = (
    Model("pythia-70m", 6, 2048, 18_915_328, 2 * 70_426_624),
    Model("pythia-160m", 12, 3072, 85_056_000, 2 * 162_322_944),
    Model("pythia-410m", 24, 4096, 302_311_424, 2 * 405_334_016),
    Model("pythia-1b", 16, 8192, 805_736_448, 2 * 1_011_781_632),
    Model("pythia-1.4b", 24, 8192, 1_208_602_624, 2 * 1_414_647_808),
    Model("pythia-2.8b", 32, 10240, 2_517_652_480, 2 * 2_775_208_960),
    Model("pythia-6.9b", 32, 16384, 6_444_163_072, 2 * 6_857_302_016),
)
# `num_hidden_layers` 60, `hidden_size` 8192 and four times that in the MLP: config.json of tiiuae/falcon-40b (arXiv 2311.16867).
# A block has attention of 8192 x (8192 + 2 x 8 x 64) + 8192 x 8192 weights and an MLP of 2 x 8192 x 32768; embeddings 65,024 x 8192.
FALCON_BLOCK = 8192 * (8192 + 1024) + 8192 * 8192 + 2 * 8192 * 32768
LARGE = Model("falcon-40b", 60, 32768, 60 * FALCON_BLOCK, 2 * (60 * FALCON_BLOCK + 65_024 * 8192))


@dataclass(frozen=True)
class Collection:
    """A set of texts with labels: how many rows are stored, how many tokens are read, how many features share the rows."""

    name: str
    n_rows: int
    n_tokens: int
    n_features: int


# As profile `pythia` asks for them: sequences by class and context length. Features of words depend on the texts; these are the
# numbers that the reference has, some hundred in all.
COLLECTIONS = (
    Collection("natural_lang_id", 30_000, 30_000 * 512, 10),
    Collection("programming_lang_id", 5_400, 5_400 * 512, 9),
    Collection("text_features", 10_000, 4_500 * 256, 11),
    Collection("has_prefix", 10_000, 4_500 * 256, 20),
    Collection("has_suffix", 10_000, 4_500 * 256, 32),
    Collection("compound_words", 62_400, 62_400 * 24, 24),
)


@dataclass(frozen=True)
class Plan:
    """What a study of some models takes, each number the sum over models and collections.

    Attributes
    ----------
    pairs:
        Neurons times features: rows of `neuron_scores`.
    activation_bytes, result_bytes, database_bytes:
        Stored activations (uint8, compressed), fragments of results, the published database.
    gpu_hours, core_hours, basis_hours:
        Extraction at `GPU_FLOPS`; probing on one core, and of it the change to a random basis and the making of that basis.
    layer_gib:
        Largest memory of one layer that is probed: levels, float32 values and the same in the random basis, with the basis.
    weight_bytes:
        Weights of the largest model, in 16 bits.
    """

    name: str
    neurons: int
    pairs: int
    activation_bytes: float
    result_bytes: float
    database_bytes: float
    gpu_hours: float
    core_hours: float
    basis_hours: float
    layer_gib: float
    weight_bytes: float


def plan(
    name: str, models: tuple[Model, ...], collections: tuple[Collection, ...] = COLLECTIONS, times: int = 1
) -> Plan:
    """What a study takes of which each model is looked at `times` over, as one checkpoint each."""
    value = {key: figure.value for key, figure in FIGURES.items()}
    pairs = activations = gpu = core = basis = largest = 0.0
    for model in models:
        for one in collections:
            n_values = model.all_neurons * one.n_rows
            pairs += model.all_neurons * one.n_features
            activations += n_values * 2 * value["stored"]
            gpu += 2 * model.parameters * one.n_tokens / GPU_FLOPS / value["extracting"]
            core += model.all_neurons * one.n_features * value["scores"]
            core += n_values * one.n_features * (value["counting"] + value["null"] + value["fits"])
            in_basis = model.n_layers * one.n_rows * model.n_neurons**2 * value["rotating"]
            in_basis += model.n_neurons**3 * value["basis"]
            core, basis = core + in_basis, basis + in_basis
            largest = max(largest, one.n_rows * model.n_neurons * 9.0 + 4 * model.n_neurons**2)
    return Plan(
        name=name,
        neurons=sum(model.all_neurons for model in models) * times,
        pairs=int(pairs) * times,
        activation_bytes=activations * times,
        result_bytes=pairs * value["result_bytes"] * times,
        database_bytes=pairs * value["database_bytes"] * times,
        gpu_hours=gpu / HOUR * times,
        core_hours=core / HOUR * times,
        basis_hours=basis / HOUR * times,
        layer_gib=largest / 2**30,
        weight_bytes=max(model.weight_bytes for model in models),
    )


def plans() -> list[Plan]:
    """The studies that the guide is about."""
    by_name = {model.name: model for model in PYTHIAS}
    return [
        *(plan(model.name, (model,)) for model in PYTHIAS),
        plan("all seven", PYTHIAS),
        plan("pythia-410m, 154 checkpoints", (by_name["pythia-410m"],), times=154),
        plan("falcon-40b", (LARGE,)),
    ]


def plan_table() -> str:
    """The plans as a Markdown table."""
    lines = [
        "| study | neurons | neurons × features | activations | results | database | GPU hours | core-hours | of them random basis "
        "| a layer in memory | weights |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    lines += [
        f"| {one.name} | {one.neurons:,} | {_millions(one.pairs)} | {_size(one.activation_bytes)} | {_size(one.result_bytes)} "
        f"| {_size(one.database_bytes)} | {_hours(one.gpu_hours)} | {_hours(one.core_hours)} | {_hours(one.basis_hours)} "
        f"| {one.layer_gib:.1f} GiB | {_size(one.weight_bytes)} |"
        for one in plans()
    ]
    return "\n".join(lines)


def figure_table() -> str:
    """The measured figures as a Markdown table."""
    lines = ["| figure | unit | from |", "|---:|---|---|"]
    lines += [f"| {figure.value:g} | {figure.unit} | `{figure.command}` |" for figure in FIGURES.values()]
    return "\n".join(lines)


def collection_table() -> str:
    """What is probed for, as a Markdown table with its sum."""
    lines = ["| collection | rows | tokens | features |", "|---|---:|---:|---:|"]
    lines += [f"| {one.name} | {one.n_rows:,} | {_millions(one.n_tokens)} | {one.n_features} |" for one in COLLECTIONS]
    rows = sum(one.n_rows for one in COLLECTIONS)
    tokens = sum(one.n_tokens for one in COLLECTIONS)
    features = sum(one.n_features for one in COLLECTIONS)
    return "\n".join([*lines, f"| in all | {rows:,} | {_millions(tokens)} | {features} |"])


def _millions(number: float) -> str:
    return f"{number / 1e6:,.1f} million" if number < 1e9 else f"{number / 1e9:,.1f} billion"


def _size(n_bytes: float) -> str:
    for unit, of in (("TB", 1e12), ("GB", 1e9)):
        if n_bytes >= of:
            return f"{n_bytes / of:,.1f} {unit}"
    return f"{n_bytes / 1e6:,.0f} MB"


def _hours(hours: float) -> str:
    return f"{hours:,.0f}" if hours >= 10 else f"{hours:.1f}" if hours >= 1 else f"{hours:.2f}"


def main() -> None:
    """Print the tables that docs/scale.md shows."""
    for table in (collection_table(), figure_table(), plan_table()):
        print(table, end="\n\n")


if __name__ == "__main__":
    main()
