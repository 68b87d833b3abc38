"""What each run answers, as a digest: by it, runs of several versions that answer the same question are known as such.

Which of them counts is a matter of `sql/`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping

import duckdb
import pyarrow as pa

from sparse_probing.config import CollectionSpec, ExtractionSpec, ModelSpec, ProbingSpec, Spec, canonical_json


def write_identities(connection: duckdb.DuckDBPyConnection) -> None:
    """What each run answers, by its specs as this version reads them."""
    found = connection.execute(
        "select run_id, spec, weights_digest, model_dtype, attention, hook, pooling from runs order by run_id"
    ).fetchall()
    identities = pa.table(
        {
            "run_id": pa.array([run_id for run_id, *_ in found], pa.string()),
            "identity": pa.array([run_identity(spec, *others) for _, spec, *others in found], pa.string()),
        }
    )
    connection.begin()
    connection.register("identities", identities)
    try:
        connection.execute("delete from run_identities")
        connection.execute("insert into run_identities (run_id, identity) select run_id, identity from identities")
        connection.commit()
    except BaseException:
        connection.rollback()
        raise
    finally:
        connection.unregister("identities")


_SPECS: dict[str, type[Spec]] = {
    "model": ModelSpec,
    "collection": CollectionSpec,
    "probing": ProbingSpec,
    "extraction": ExtractionSpec,
}


def run_identity(spec: str, *others: str) -> str:
    """SHA-256 (hex) of what a run answers: equal for two runs that differ in versions alone, or in the text behind a spec.

    Parameters
    ----------
    spec:
        JSON of the run's model, collection, probing and extraction specs, as its version wrote them.
    others:
        What else tells runs apart: weights, precision, hook.
    """
    try:
        found = json.loads(spec)
        read = {name: _as_read_today(kind, found[name]) for name, kind in _SPECS.items()}
    except (ValueError, KeyError, TypeError, AttributeError):
        read = {"spec": spec}
    return hashlib.sha256(canonical_json([read, *others]).encode()).hexdigest()


def _as_read_today(kind: type[Spec], found: Mapping[str, object]) -> object:
    """A spec of another version with today's fields and defaults; unchanged where its values do not fit today's fields."""
    known = {name: value for name, value in found.items() if name in kind.model_fields}
    try:
        return kind.model_validate(known).model_dump(mode="json")
    except ValueError:
        return dict(found)
