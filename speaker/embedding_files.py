"""Embeddings as files: .npz of numpy, .parquet of Apache Arrow.

Both hold, a row for each recording, its name, its embedding (D numbers, float32), the seconds of speech in it, and the
model, `name@digest`: .npz as the arrays `names`, `embeddings`, `seconds` and `model`; .parquet as the columns `name`,
`embedding` (a list of fixed size), `seconds` and `model`.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from engine.errors import ScoreError
from engine.files import replacing
from speaker.file_names import text_of

__all__ = ["FORMATS", "EmbeddingFile", "check_format", "read", "reason", "write"]

FORMATS = (".npz", ".parquet")
# What numpy raises for an .npz that is none, is cut short or damaged; RuntimeError for what zipfile does not know.
BROKEN = (OSError, ValueError, KeyError, EOFError, RuntimeError, BadZipFile, zlib.error)


@dataclass
class EmbeddingFile:
    """Embeddings (n, D) by name, seconds of speech (n,) or NaN, and the model, "" where it is not known."""

    names: list[str]
    vectors: NDArray[np.float32]
    seconds: NDArray[np.float64]
    model: str


def check_format(path: Path) -> None:
    """ScoreError for a name that ends in none of the formats, or in one whose library is missing."""
    if path.suffix not in FORMATS:
        raise ScoreError(f"{path}: the name must end in {' or '.join(FORMATS)}")
    if path.suffix == ".parquet":
        _pyarrow(path)


def write(path: Path, file: EmbeddingFile) -> None:
    """Write in the format that the name says; the file appears whole or not at all."""
    check_format(path)
    names = [text_of(name) for name in file.names]
    with replacing(path) as partial:
        if path.suffix == ".parquet":
            _write_parquet(partial, names, file)
            return
        with partial.open("wb") as target:
            np.savez(
                target, names=np.array(names, dtype=str), embeddings=file.vectors, seconds=file.seconds,
                model=np.array(file.model),
            )  # fmt: skip


def read(path: Path) -> EmbeddingFile:
    """Read what `write` wrote; ScoreError for what holds no embeddings."""
    if path.suffix == ".parquet":
        return _read_parquet(path)
    try:
        with path.open("rb") as source, np.load(source, allow_pickle=False) as parts:
            vectors, names = parts["embeddings"].astype(np.float32), parts["names"]
            seconds = parts["seconds"].astype(np.float64) if "seconds" in parts else np.full(len(names), np.nan)
            model = str(parts["model"]) if "model" in parts else ""
        if names.dtype.kind != "U" or names.ndim != 1 or vectors.ndim != 2 or len(vectors) != len(names):
            raise ValueError(f"names {names.dtype} {names.shape} for embeddings {vectors.shape}; names are text (n,), "
                             "embeddings (n, D)")  # fmt: skip
        if seconds.shape != names.shape:
            raise ValueError(f"seconds {seconds.shape} for {len(names)} names")
        return EmbeddingFile(names.tolist(), vectors, seconds, model)
    except (*BROKEN, TypeError) as error:
        why = reason(error)
        raise ScoreError(f"{path} holds no embeddings ({why}); `speaker embed` writes them as .npz") from error


def reason(error: Exception) -> str:
    """What numpy says of a file; its advice to load unsafely is not passed on, that would run what the file says."""
    told = str(error)
    return "it is no .npz, or one of Python objects, which could run code" if "allow_pickle" in told else told


def _pyarrow(path: Path) -> Any:
    try:
        import pyarrow.parquet
    except ModuleNotFoundError as error:
        raise ScoreError(f"{path}: .parquet needs pyarrow; install it with `pip install 'voxcode[parquet]'`") from error
    return pyarrow


def _write_parquet(path: Path, names: list[str], file: EmbeddingFile) -> None:
    pyarrow = _pyarrow(path)
    flat = pyarrow.array(np.ascontiguousarray(file.vectors, dtype=np.float32).reshape(-1))
    columns = {
        "name": pyarrow.array(names, pyarrow.string()),
        "embedding": pyarrow.FixedSizeListArray.from_arrays(flat, max(1, file.vectors.shape[1])),
        "seconds": pyarrow.array(file.seconds, pyarrow.float64()),
        "model": pyarrow.array([file.model] * len(names), pyarrow.string()),
    }
    pyarrow.parquet.write_table(pyarrow.table(columns), path)


def _read_parquet(path: Path) -> EmbeddingFile:
    pyarrow = _pyarrow(path)
    try:
        table = pyarrow.parquet.read_table(path, partitioning=None).combine_chunks()
        missing = [name for name in ("name", "embedding") if name not in table.column_names]
        if missing:
            there = ", ".join(table.column_names)
            raise ScoreError(f"{path} has no column {' and no '.join(missing)}, it has {there}; `speaker embed` writes "
                             "name, embedding, seconds and model")  # fmt: skip
        if table["name"].null_count or table["embedding"].null_count:
            raise ScoreError(f"{path}: rows without a name or without an embedding")
        names = table["name"].to_pylist()
        lists = table["embedding"].to_pylist()
        vectors = np.array(lists, dtype=np.float32)  # ValueError for ragged ones
        vectors = vectors.reshape(len(names), -1 if names else 0)
        seconds = np.full(len(names), np.nan)
        if "seconds" in table.column_names:
            seconds = table["seconds"].to_numpy().astype(np.float64)
        models = set(table["model"].to_pylist()) if "model" in table.column_names else {""}
    except (OSError, ValueError, TypeError, pyarrow.ArrowException) as error:
        raise ScoreError(f"{path} holds no embeddings ({error})") from error
    if len(models) > 1:
        raise ScoreError(f"{path} holds embeddings of {len(models)} models, {', '.join(sorted(map(str, models)))}; "
                         "those of different models are not comparable")  # fmt: skip
    return EmbeddingFile(names, vectors, seconds, str(next(iter(models), "") or ""))
