"""A store as one .npz and back: for backups, for other programs, and for changing the key."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from engine.errors import StoreError
from engine.files import replacing
from speaker.store import Store

__all__ = ["export_prints", "import_prints"]


def export_prints(store: Store, out: Path) -> int:
    """Write names, embeddings (n, D), model and all that is known of prints and speakers; returns n."""
    prints = store.prints()
    if not prints:
        raise StoreError(f"{store.path} is empty, there is nothing to export")
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


def import_prints(store: Store, path: Path) -> int:
    """Add the prints of an export, or of `speaker embed` (speaker: the folder of a recording), all or none."""
    speakers, vectors, model, facts, people = _read(path)
    with store.database.writing():
        for name, metadata in people.items():
            store.add_speaker(name, metadata)
        for name, vector, fact in zip(speakers, vectors, facts, strict=True):
            store.add_prints(name, vector[None], model=model, quality=[fact.get("quality", {})],
                             sources=[fact.get("source", "")], migrated_from=fact.get("migrated_from"),
                             created=fact.get("created"))  # fmt: skip
    return len(speakers)


def _read(path: Path) -> tuple[list[str], Any, str, list[dict[str, Any]], dict[str, Any]]:
    try:
        with np.load(path, allow_pickle=False) as parts:
            vectors, model = parts["embeddings"], str(parts["model"])
            if "facts" in parts:
                facts, people = json.loads(str(parts["facts"])), json.loads(str(parts["metadata"]))
                return parts["speakers"].tolist(), vectors, model, facts, people
            names = parts["names"].tolist()
            seconds = parts["seconds"].tolist() if "seconds" in parts else [0.0] * len(names)
    except (OSError, ValueError, KeyError) as error:
        raise StoreError(f"{path} holds no prints ({error}); `speaker store export` and `speaker embed` write "
                         "them") from error  # fmt: skip
    facts = [{"source": name, "quality": {"seconds": s}} for name, s in zip(names, seconds, strict=True)]
    speakers = [Path(name).parent.name or Path(name).stem for name in names]
    return speakers, vectors, model, facts, {name: {} for name in speakers}
