"""The writer of one activations artifact: which shards it still needs, its quantisation, and its manifest.

A pass (`extraction`) passes activations to one or several writers; each has its own files, markers and manifest. No model
runs here.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from sparse_probing.activations.capture import BatchRule
from sparse_probing.activations.columns import choose_columns
from sparse_probing.activations.encoding import Encoder
from sparse_probing.activations.plan import PLAN_VERSION, Corpus, Shard, calibration_shards
from sparse_probing.activations.pooling import MASK_RULE
from sparse_probing.activations.quantisation import Ranges, encode
from sparse_probing.activations.shards import Losses, ShardStore
from sparse_probing.config import ExtractionSpec
from sparse_probing.errors import ArtifactError, DataError
from sparse_probing.models.hooks import canonical_hook
from sparse_probing.models.resolved import ResolvedModel
from sparse_probing.store.filesystem import Location
from sparse_probing.store.manifests import FileEntry, find_manifest, write_manifest
from sparse_probing.store.matrices import STORAGE_DTYPES

# How a shard's rows are handed to an artifact: to stay, or as float16 until the quantisation ranges are known.
Need = Literal["final", "staged"]


class ArtifactWriter:
    """Writes one artifact of a pass.

    Parameters
    ----------
    shards:
        The plan of the pass.
    folder, digest:
        Of the artifact.

    Raises
    ------
    InputError
        If the model lacks the hook, a layer or a neuron.
    DataError
        If ranges are needed and there is no training row to take them from.
    """

    def __init__(
        self, model: nn.Module, corpus: Corpus, shards: list[Shard], spec: ExtractionSpec, folder: Location, digest: str
    ) -> None:
        self.hook = canonical_hook(spec.hook)
        self.points, self.columns = choose_columns(model, spec)
        self.spec, self.digest = spec, digest
        self.store = ShardStore(folder, self.columns, corpus.rows)
        self._corpus, self._shards = corpus, shards
        self._device = next(model.parameters()).device
        self._ranges: Ranges | None = None
        # Shards that this process ran.
        self._own: set[int] = set()
        self._encoders: dict[tuple[Need, tuple[int, ...]], Encoder] = {}
        # Shards that are staged; none where nothing is quantised.
        self.calibration: frozenset[int] = frozenset()
        if spec.storage_dtype == "uint8":
            self.calibration = frozenset(shard.index for shard in calibration_shards(shards, spec.calibration_rows))
            if not self.calibration:
                raise DataError(
                    "No training row to take quantisation ranges from.",
                    remedy="Use storage_dtype float16, or a dataset with a training split.",
                )
            self._ranges = self.store.ranges()

    @property
    def row_bytes(self) -> int:
        """Largest number of bytes of a row in host memory; quantised rows are staged as float16 first."""
        item_bytes = STORAGE_DTYPES[self.spec.storage_dtype].itemsize
        return self.columns.n_values * (2 if self.spec.storage_dtype == "uint8" else item_bytes)

    @property
    def lacks_ranges(self) -> bool:
        """Whether rows are quantised, and nobody has taken the ranges yet."""
        return bool(self.calibration) and self._ranges is None

    @property
    def is_finished(self) -> bool:
        """Whether the manifest is in place, whichever process wrote it."""
        return find_manifest(self.store.folder, digest=self.digest) is not None

    def need(self, shard: Shard, *, shared: bool = False) -> Need | None:
        """How the rows of a shard are still needed from the model; None if they are not.

        With `shared`, other parts are at work, and may have finished the artifact and cleared its markers away.
        """
        if self.store.finished(shard.index) is not None:
            return None
        is_calibration = shard.index in self.calibration
        if is_calibration and self.store.finished(shard.index, staged=True) is not None:
            return None
        if shared and self.is_finished:
            return None
        return "staged" if is_calibration else "final"

    def encoder(self, need: Need, captured: Sequence[int]) -> Encoder:
        """An encoder of one shard; `captured` are the layers of the values that it will be given."""
        ranges = None if need == "staged" else self._ranges
        if ranges is None and need == "final" and self.calibration:
            raise ArtifactError(f"{self.store.folder}: quantisation ranges are not known.", remedy="Run again.")
        key = (need, tuple(captured))
        if key not in self._encoders:
            self._encoders[key] = Encoder(self.columns, captured, ranges, self.spec.storage_dtype, self._device)
        return self._encoders[key].fresh()

    def write(
        self,
        shard: Shard,
        need: Need,
        blocks: list[torch.Tensor],
        row_ids: NDArray[np.int64],
        losses: list[torch.Tensor],
        *,
        batch_tokens: int,
        seconds: Callable[[], float],
        executor: Executor | None,
    ) -> None:
        """Finish a shard for this artifact.

        Parameters
        ----------
        blocks, losses:
            As the encoder made them, arrived in host memory.
        row_ids:
            (n_rows,) in the order of the blocks.

        Raises
        ------
        ArtifactError
            If it cannot be written.
        DataError
            If an activation is not a number.
        """
        self._own.add(shard.index)
        arrays = [block.numpy() for block in blocks]

        def layer_codes(index: int) -> NDArray[Any]:
            layer, part = self.columns.at(index)
            codes = np.concatenate([array[layer, :, part] for array in arrays])
            if codes.dtype.kind == "f":
                self._check_numbers(codes, self.columns.layers[index])
            return codes

        def counted() -> Losses:
            n_clipped, max_error = (tensor.numpy() for tensor in losses)
            self._check_numbers(max_error, self.columns.layers)
            return Losses(n_clipped.astype(np.int64), max_error)

        self.store.write_shard(
            shard.index,
            row_ids,
            layer_codes,
            batch_tokens=batch_tokens,
            seconds=seconds,
            staged=need == "staged",
            losses=counted if losses else None,
            executor=executor,
        )

    def quantise(self, shards: list[Shard], *, executor: Executor) -> None:
        """Decide the ranges, if nobody has, from all shards that they are taken from, and encode the given staged shards.

        Raises
        ------
        ArtifactError
            If a staged shard is not there.
        """
        if self._ranges is None:
            self._ranges = self.store.decide_ranges(sorted(self.calibration), executor)
        for shard in shards:
            if self.store.finished(shard.index) is None:
                self._quantise_shard(shard, self._ranges, executor)

    def finish(self, resolved: ResolvedModel, rule: BatchRule, *, seconds: float, n_artifacts: int = 1) -> bool:
        """Write what belongs to all shards, and the manifest last; False if shards of another part are missing.

        Parameters
        ----------
        seconds:
            That this process worked at the pass. To them come those of the shards that others ran.
        n_artifacts:
            Of the pass, which share its seconds alike.

        Raises
        ------
        ArtifactError
            If files cannot be written, or another part finished the artifact meanwhile.
        """
        files: dict[str, FileEntry] = {}
        batch_tokens: set[int] = set()
        busy = others = 0.0
        for shard in self._shards:
            marker = self.store.finished(shard.index)
            if marker is None:
                return False
            files.update(marker.files)
            batch_tokens.add(marker.batch_tokens)
            busy += marker.seconds
            others += 0.0 if shard.index in self._own else marker.seconds
        files.update(self.store.write_tables())
        facts = self._facts(resolved, rule, sorted(batch_tokens))
        if self._ranges is not None:
            losses = self.store.read_losses(shard.index for shard in self._shards)
            files.update(self.store.write_quantisation(self._ranges, losses))
            facts["max_clipped_fraction"] = float(losses.n_clipped.max() / max(1, len(self._corpus.selection)))
            facts["max_quantisation_error"] = float(losses.max_error.max())
            facts["quantisation_error_bound"] = float(self._ranges.error_bound().max())
        self.store.names_to_disk()
        write_manifest(
            self.store.folder,
            kind="activations",
            digest=self.digest,
            spec=self.spec.model_dump(mode="json"),
            files=files,
            inputs={"dataset": self._corpus.digest, "weights": resolved.weights_digest},
            facts=facts,
            made={
                "seconds": (seconds + others) / n_artifacts,
                "tokens_per_second": facts["n_tokens"] / busy if busy else None,
            },
        )
        self.store.remove_scaffolding()
        return True

    def _facts(self, resolved: ResolvedModel, rule: BatchRule, batch_tokens: list[int]) -> dict[str, Any]:
        return {
            "layers": list(self.columns.layers),
            "n_rows": len(self._corpus.selection),
            "n_neurons": self.columns.width,
            "n_neurons_by_layer": list(self.columns.counts),
            "neurons": "all" if self.columns.is_whole else "chosen",
            "n_sequences": len(self._corpus.lengths),
            "n_tokens": sum(shard.n_tokens for shard in self._shards),
            "storage_dtype": self.spec.storage_dtype,
            "hook": self.hook,
            "modules": [f"{point.path}.{point.side}" for point in self.points],
            "batch_rule": rule.name,
            "pooling": self._corpus.pooling,
            "mask_rule": MASK_RULE,
            "next_token": self.spec.next_token,
            "positions": self.spec.positions,
            "model": resolved.short_name,
            "model_id": resolved.id,
            "revision": resolved.revision,
            "architecture": resolved.architecture,
            "weights_digest": resolved.weights_digest,
            "tokenizer_digest": resolved.tokenizer_digest,
            "model_dtype": resolved.dtype,
            "attention": resolved.attention,
            "device": self._device.type,
            "batch_plan_version": PLAN_VERSION,
            "batch_tokens": batch_tokens,
            "n_shards": len(self._shards),
            "max_clipped_fraction": 0.0,
            "max_quantisation_error": None,
            "quantisation_error_bound": None,
        }

    def _quantise_shard(self, shard: Shard, ranges: Ranges, executor: Executor) -> None:
        """Encode a staged shard with the ranges that are known by now."""
        started = time.perf_counter()
        encoded: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        ids = self.store.read_staged(shard.index, 0)[0]

        def layer_codes(index: int) -> NDArray[Any]:
            values = torch.from_numpy(self.store.read_staged(shard.index, index)[1].copy()).to(self._device)
            result = encode(values, *ranges.tensors(self._device, self.columns.at(index)))
            encoded[index] = result.n_clipped.cpu(), result.max_error.cpu()
            codes: NDArray[Any] = result.codes.cpu().numpy()
            return codes

        def losses() -> Losses:
            parts = zip(*(encoded[index] for index in range(len(self.columns.layers))), strict=True)
            n_clipped, max_error = (torch.cat(part).numpy().reshape(self.columns.shape) for part in parts)
            return Losses(n_clipped.astype(np.int64), max_error)

        staged = self.store.finished(shard.index, staged=True)
        if staged is None:
            raise ArtifactError(
                f"{self.store.folder}: staged shard {shard.index} is not there.",
                remedy="Run the same command again: it stages what is missing.",
            )
        self.store.write_shard(
            shard.index,
            ids,
            layer_codes,
            batch_tokens=staged.batch_tokens,
            seconds=lambda: staged.seconds + time.perf_counter() - started,
            losses=losses,
            executor=executor,
        )

    @staticmethod
    def _check_numbers(values: NDArray[Any], layers: int | tuple[int, ...]) -> None:
        # NumPy looks at float16 value by value; its bits show the same in two passes over integers.
        halves = values.dtype == np.float16
        if (
            (np.bitwise_and(values.view(np.uint16), 0x7FFF).max(initial=0) > 0x7C00)
            if halves
            else np.isnan(values).any()
        ):
            raise DataError(
                f"Activations of layer {layers} hold values that are not numbers.",
                remedy="Run the model in float32 or bfloat16: float16 overflows inside some models.",
            )
