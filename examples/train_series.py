"""Train a small GPT-NeoX on text of installed packages, and leave a series of its checkpoints.
Sentences and code that it never sees lie beside them, in files that feature collections take as `path`.

    python examples/train_series.py --out build/series

Minutes on two cores, and no network. Each checkpoint is a folder that `transformers` loads, named by its step and there as a
whole or not at all. A step's weights depend on the seed alone, not on how many steps follow it.
"""

from __future__ import annotations

import argparse
import csv
import importlib.util
import shutil
import sys
import sysconfig
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM, PreTrainedTokenizerFast
from transformers.utils import logging

LANGUAGES = ("de", "el", "en", "es", "fr", "it", "nl", "pl", "pt", "sv")
# Of four sentences, and of four source files, one is held out.
HELD_OUT_EVERY = 4
SENTENCES_PER_TEXT = 5
CODE_FILES = 120
CODE_CHARACTERS = 6_000

VOCABULARY = 2_048
END_OF_TEXT = "<|endoftext|>"
CONTEXT = 128
BATCH = 16
LEARNING_RATE = 2e-3
WARM_UP_STEPS = 20
EVALUATED_WINDOWS = 32
N_THREADS = 1


@dataclass(frozen=True)
class Text:
    """One document: its label (a language, or ``python``), and the sentence or file that it comes from."""

    label: str
    group: str
    text: str


def main(arguments: Sequence[str] | None = None) -> int:
    """Train and save what the arguments ask for; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("build/series"), help="folder of the series (%(default)s)")
    parser.add_argument("--steps", type=int, default=512, help="steps of training (%(default)s)")
    parser.add_argument("--checkpoints", type=_steps, help="steps to save: 0,1,2,4,… up to --steps if absent")
    parser.add_argument("--seed", type=int, default=0, help="of the weights and of the order of texts (%(default)s)")
    parser.add_argument("--pause-seconds", type=float, default=0.0, help="wait so long after each checkpoint")
    options = parser.parse_args(arguments)
    if options.steps < 0:
        parser.error(f"--steps is {options.steps}; expected 0 or more")
    checkpoints = options.checkpoints or log_spaced(options.steps)
    if max(checkpoints) > options.steps:
        parser.error(f"checkpoint {max(checkpoints)} comes after the last of {options.steps} steps; raise --steps")
    there = sorted(path.name for path in options.out.glob("step-*"))
    if there:
        parser.error(f"{options.out} holds {there[0]} already; name another folder, or remove it")
    if importlib.util.find_spec("eld") is None:
        parser.error("the package eld is not installed (pip install --no-deps -r requirements-demo.txt)")
    logging.disable_progress_bar()
    # The order of sums depends on it.
    torch.set_num_threads(N_THREADS)
    train_series(options.out, checkpoints, steps=options.steps, seed=options.seed, pause=options.pause_seconds)
    return 0


def log_spaced(steps: int) -> tuple[int, ...]:
    """Step 0, the powers of two up to the last step, and the last step."""
    return tuple(sorted({0, steps, *(2**power for power in range(steps.bit_length()) if 2**power <= steps)}))


def train_series(out: Path, checkpoints: Sequence[int], *, steps: int, seed: int, pause: float = 0.0) -> None:
    """Write ``held_out/`` and a folder for each checkpoint below `out`, and print a line for each."""
    texts = [*sentences(), *source_code()]
    held_out = [text for number, text in enumerate(texts) if number % HELD_OUT_EVERY == 0]
    kept_away = {text.text for text in held_out}
    trained_on = [text for text in texts if text.text not in kept_away]
    write_held_out(out / "held_out", held_out)
    tokenizer = train_tokenizer([text.text for text in trained_on])
    order = np.random.default_rng(seed)
    stream = token_stream(tokenizer, trained_on, order)
    unseen = token_stream(tokenizer, held_out, np.random.default_rng(seed))
    model = new_model(tokenizer, seed)
    n_weights = sum(parameter.numel() for parameter in model.parameters())
    print(f"{len(stream):,} tokens to train on, {len(unseen):,} held out, {n_weights:,} weights; saving to {out}")
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.95), weight_decay=0.01)
    begun = time.perf_counter()
    for step in range(steps + 1):
        if step in checkpoints:
            save_whole(out / f"step-{step:06d}", lambda folder: _save(model, tokenizer, folder))
            loss = evaluate(model, unseen)
            print(f"step {step:6d}   held-out loss {loss:.3f}   {time.perf_counter() - begun:5.0f} s", flush=True)
            if pause and step < max(checkpoints):
                time.sleep(pause)
        if step < steps:
            for group in optimizer.param_groups:
                group["lr"] = LEARNING_RATE * min(1.0, (step + 1) / WARM_UP_STEPS)
            starts = order.integers(0, len(stream) - CONTEXT, BATCH)
            train_step(model, optimizer, windows(stream, starts))


def sentences() -> list[Text]:
    """Labelled sentences of the `eld` package, in the order of its file; the package is not imported."""
    found = importlib.util.find_spec("eld")
    if found is None or not found.submodule_search_locations:
        raise ModuleNotFoundError("the package eld is not installed (pip install --no-deps -r requirements-demo.txt)")
    path = Path(found.submodule_search_locations[0]) / "tests" / "data" / "big-test.txt"
    lines = enumerate(path.read_text(encoding="utf-8").splitlines())
    fields = ((number, *line.partition("\t")[::2]) for number, line in lines)
    return [Text(code, f"eld:{number}", text) for number, code, text in fields if code in LANGUAGES and text]


def source_code() -> list[Text]:
    """Beginnings of modules of the standard library, in the order of their names."""
    library = Path(sysconfig.get_path("stdlib"))
    files = sorted(library.glob("*.py"))[:CODE_FILES]
    read = ((path.stem, path.read_text(encoding="utf-8", errors="replace")[:CODE_CHARACTERS]) for path in files)
    return [Text("python", name, text) for name, text in read if text.strip()]


def write_held_out(folder: Path, texts: Sequence[Text]) -> None:
    """Write ``languages.csv``, a sentence a row, and ``mixed.csv``, longer texts of many languages and code."""
    folder.mkdir(parents=True, exist_ok=True)
    alone = [text for text in texts if text.label != "python"]
    _write_table(folder / "languages.csv", alone)
    joined = [text for text in texts if text.label == "python"]
    for language in LANGUAGES:
        mine = [text for text in alone if text.label == language]
        for start in range(0, len(mine), SENTENCES_PER_TEXT):
            part = mine[start : start + SENTENCES_PER_TEXT]
            joined.append(Text(language, part[0].group, " ".join(text.text for text in part)))
    _write_table(folder / "mixed.csv", joined)


def _write_table(path: Path, texts: Sequence[Text]) -> None:
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(["label", "group", "text"])
        writer.writerows([text.label, text.group, text.text] for text in texts)


def train_tokenizer(texts: Sequence[str]) -> PreTrainedTokenizerFast:
    """A byte-level BPE whose token 0 ends a text, as GPT-NeoX has it."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=END_OF_TEXT, eos_token=END_OF_TEXT)


def token_stream(
    tokenizer: PreTrainedTokenizerFast, texts: Sequence[Text], order: np.random.Generator
) -> NDArray[np.int64]:
    """All texts in random order, each ended by token 0: (n_tokens,)."""
    encoded = tokenizer([texts[number].text for number in order.permutation(len(texts))])["input_ids"]
    return np.array([token for tokens in encoded for token in (*tokens, 0)], dtype=np.int64)


def windows(stream: NDArray[np.int64], starts: NDArray[np.int64]) -> torch.Tensor:
    """Stretches of the stream: (n_starts, CONTEXT)."""
    return torch.from_numpy(stream[starts[:, None] + np.arange(CONTEXT)])


def new_model(tokenizer: PreTrainedTokenizerFast, seed: int) -> GPTNeoXForCausalLM:
    """Four layers of 384 MLP neurons, with random weights."""
    config = GPTNeoXConfig(
        vocab_size=len(tokenizer),
        hidden_size=96,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=384,
        max_position_embeddings=256,
        bos_token_id=0,
        eos_token_id=0,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return GPTNeoXForCausalLM(config)


def train_step(model: GPTNeoXForCausalLM, optimizer: torch.optim.Optimizer, batch: torch.Tensor) -> None:
    """One step on a batch of windows."""
    model.train()
    optimizer.zero_grad(set_to_none=True)
    model(input_ids=batch, labels=batch).loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()


def evaluate(model: GPTNeoXForCausalLM, stream: NDArray[np.int64]) -> float:
    """Mean loss (nats a token) on windows evenly spread over a stream."""
    model.eval()
    starts = np.linspace(0, len(stream) - CONTEXT, EVALUATED_WINDOWS).astype(np.int64)
    batch = windows(stream, starts)
    with torch.inference_mode():
        return float(model(input_ids=batch, labels=batch).loss)


def save_whole(folder: Path, save: Callable[[Path], None]) -> None:
    """Fill a folder under a name that no reader takes for a checkpoint, and rename it when it is whole."""
    unfinished = folder.with_name(f".{folder.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    save(unfinished)
    unfinished.rename(folder)


def _save(model: GPTNeoXForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _steps(text: str) -> tuple[int, ...]:
    try:
        steps = sorted({int(step) for step in text.split(",")})
    except ValueError:
        steps = [-1]
    if steps[0] < 0:
        raise argparse.ArgumentTypeError(f"{text!r} given; expected steps from 0, such as 0,1,2,4")
    return tuple(steps)


if __name__ == "__main__":
    sys.exit(main())
