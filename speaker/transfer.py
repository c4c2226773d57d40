"""A store as one .npz and back: for backups, for other programs, and for changing the key."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from engine.errors import ScoreError, StoreError
from engine.files import replacing
from speaker import embedding_files
from speaker.file_names import people
from speaker.store import Store

__all__ = ["Prints", "export_prints", "import_prints", "read_prints"]


class Prints(NamedTuple):
    """What a file brings: prints (n, D) of `speakers` (n,), facts of each, and metadata of each speaker."""

    speakers: list[str]
    vectors: Any
    model: str
    facts: list[dict[str, Any]]
    people: dict[str, Any]


def export_prints(store: Store, out: Path) -> int:
    """Write names, embeddings (n, D), model and all that is known of prints and speakers; returns n."""
    prints = store.prints()
    if not prints:
        raise StoreError(f"{store.path} holds no prints, there is nothing to export")
    facts = [{"quality": p.quality, "source": p.source, "migrated_from": p.migrated_from, "created": p.created}
             for p in prints]  # fmt: skip
    people = {each.name: each.metadata for each in store.speakers()}
    with replacing(out) as partial:
        partial.chmod(0o600)
        with partial.open("wb") as file:
            np.savez(file, speakers=np.array([p.speaker for p in prints]), model=np.array(store.model),
                     embeddings=np.stack([p.vector for p in prints]), facts=np.array(json.dumps(facts)),
                     metadata=np.array(json.dumps(people)))  # fmt: skip
    return len(prints)


def import_prints(store: Store, source: Path | Prints) -> int:
    """Add the prints of an export, or of `speaker embed` (speaker: `file_names.people`), all or none;
    returns how many were not there yet."""
    speakers, vectors, model, facts, people = source if isinstance(source, Prints) else read_prints(source)
    added = 0
    with store.database.writing():
        for name, metadata in people.items():
            store.add_speaker(name, metadata)
        for name, vector, fact in zip(speakers, vectors, facts, strict=True):
            added += len(store.add_prints(
                name, vector[None], model=model, quality=[fact.get("quality", {})], sources=[fact.get("source", "")],
                migrated_from=fact.get("migrated_from"), created=fact.get("created"),
            ))  # fmt: skip
    return added


def read_prints(path: Path) -> Prints:
    """Read an export, or what `speaker embed` wrote; StoreError for anything else."""
    try:
        if path.suffix != ".parquet":
            with path.open("rb") as source, np.load(source, allow_pickle=False) as parts:
                if "facts" in parts:
                    facts, people = json.loads(str(parts["facts"])), json.loads(str(parts["metadata"]))
                    return Prints(parts["speakers"].tolist(), parts["embeddings"], str(parts["model"]), facts, people)
        file = embedding_files.read(path)
        if not file.model:
            raise ScoreError("it does not say of which model")
    except (*embedding_files.BROKEN, TypeError, ScoreError) as error:
        why = embedding_files.reason(error)
        raise StoreError(f"{path} holds no prints ({why}); `speaker store export` and `speaker embed` write "
                         "them") from error  # fmt: skip
    return _of_recordings(file)


def _of_recordings(file: embedding_files.EmbeddingFile) -> Prints:
    facts = [
        {"source": name, "quality": {"seconds": s} if math.isfinite(s) else {}}
        for name, s in zip(file.names, file.seconds.tolist(), strict=True)
    ]
    speakers = people(file.names)
    return Prints(speakers, file.vectors, file.model, facts, {name: {} for name in speakers})
