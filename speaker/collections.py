"""Embeddings from wherever they are: recordings below a folder, files of `speaker embed`, Kaldi archives."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray

from engine import audio
from engine.errors import AudioError, ScoreError
from speaker.embed import embed_files
from speaker.embedding_files import read as read_embeddings
from speaker.model import SpeakerEncoder
from speaker.recordings import find_recordings
from speaker.scoring import Floats, unit
from speaker.store import same_model
from speaker.trials import NIST, speaker_of

log = logging.getLogger(__name__)

PIECE = 512  # recordings that are embedded before the first of them that failed ends the work


@dataclass
class Collection:
    """Embeddings (n, D) by name, seconds of speech (n,) or NaN, and the model they come from."""

    names: list[str]
    vectors: Floats
    seconds: Floats
    model: str

    def check(self, source: Path) -> None:
        """ScoreError for a name that stands twice, or an embedding that is zero or not finite."""
        if twice := [name for name, times in Counter(self.names).items() if times > 1]:
            raise ScoreError(f"{source}: there are several embeddings of the name {twice[0]}")
        broken = np.flatnonzero(~np.isfinite(self.vectors).all(1) | (np.abs(self.vectors).sum(1) == 0))
        if len(broken):
            raise ScoreError(f"{source}: {len(broken)} embeddings are 0 or not finite, the first is "
                             f"{self.names[broken[0]]}")  # fmt: skip


def of_recordings(
    encoder: SpeakerEncoder, root: Path, names: list[str], seconds: float | None = None,
    progress: Callable[[int], None] = lambda done: None,
) -> Collection:  # fmt: skip
    """Embed files below `root`, each once; ScoreError names one that cannot be embedded, as early as it is known.

    `check_recordings` comes before.
    """
    vectors: list[NDArray[np.float32]] = []
    spoken: list[float] = []
    for start in range(0, len(names), PIECE):
        part = [root / name for name in names[start : start + PIECE]]
        found = embed_files(encoder, part, lambda done, before=start: progress(before + done), seconds)  # type: ignore[misc]
        for name, reason in found.failed.items():
            raise ScoreError(f"{name} cannot be embedded: {reason}; leave it out, or give --embeddings of `speaker "
                             "embed`, which keeps what it has done")  # fmt: skip
        vectors += found.vectors
        spoken += [quality.seconds for quality in found.quality]
    collection = Collection(names, np.array(vectors, dtype=np.float64), np.array(spoken), encoder.identity)
    collection.check(root)
    return collection


def check_recordings(encoder: SpeakerEncoder, root: Path, names: list[str]) -> None:
    """ScoreError for files below `root` that are missing, are no audio or too short, as far as their headers tell."""
    missing = [name for name in names if not (root / name).is_file()]
    if missing and (root / "wav.scp").is_file():
        raise ScoreError(f"{root} is a folder of Kaldi's, whose wav.scp names the recordings; `speaker embed {root}` "
                         "takes them, and --embeddings what it makes")  # fmt: skip
    if missing:
        raise ScoreError(f"{len(missing)} of {len(names)} recordings are not below {root}, the first is {missing[0]}; "
                         "models of several recordings need --enrol")  # fmt: skip
    rate = encoder.config.front_end.sample_rate
    broken = []
    for name in names:
        try:
            told = audio.probe(root / name)
        except AudioError as error:
            broken.append(str(error))
            continue
        if told.num_samples * rate < (encoder.min_samples - 1) * told.sample_rate:
            broken.append(f"{name}: {told.num_samples / told.sample_rate:.2f} s are too short; "
                          f"{encoder.min_samples / rate:.2f} s are needed")  # fmt: skip
    if broken:
        raise ScoreError(f"{len(broken)} of {len(names)} recordings cannot be embedded, the first: {broken[0]}")


def read(path: Path, model: str = "unknown") -> Collection:
    """Read an .npz or .parquet of `speaker embed`, or with kaldiio installed an .ark or .scp of Kaldi."""
    if path.suffix in (".ark", ".scp"):
        names, vectors = _kaldi(path)
        collection = Collection(names, vectors, np.full(len(names), np.nan), model)
    else:
        stored = read_embeddings(path)
        vectors = stored.vectors.astype(np.float64)
        collection = Collection(stored.names, vectors, stored.seconds, stored.model or model)
    if not len(collection.names) or collection.vectors.shape != (len(collection.names), collection.vectors.shape[-1]):
        raise ScoreError(f"{path}: {len(collection.names)} names for embeddings {collection.vectors.shape}")
    collection.check(path)
    return collection


def _kaldi(path: Path) -> tuple[list[str], Floats]:
    try:
        import kaldiio
    except ModuleNotFoundError as error:
        raise ScoreError(
            f"{path}: Kaldi's archives need kaldiio; install it with `pip install 'voxcode[kaldi]'`"
        ) from error
    try:
        if path.suffix == ".scp":
            pairs = list(kaldiio.load_scp_sequential(str(path)))
        else:
            with path.open("rb") as file:
                pairs = list(kaldiio.load_ark(file))
        return [name for name, _ in pairs], np.array([vector for _, vector in pairs], dtype=np.float64)
    except Exception as error:  # kaldiio has none of its own: anything may come of a file that is cut short, or none
        raise ScoreError(f"{path} holds no embeddings of one dimension ({error})") from error


def cohort(source: Path, encoder: SpeakerEncoder | None, model: str, dim: int, *, lengths: bool = False,
           utt2spk: Path | None = None) -> Floats:  # fmt: skip
    """(C, `dim`): a mean for each of two speakers or more, of a file or a folder of speakers (`speakers_of`).

    The mean of directions, or, with `lengths`, of the embeddings as they come, which a PLDA is for. ScoreError if they
    are not by `model`, name@digest.
    """
    if source.is_dir():
        if encoder is None:
            raise ScoreError(
                f"{source} is a folder of recordings: name the --model that embeds them, or give its embeddings"
            )
        files = find_recordings([source])
        names = [path.relative_to(source).as_posix() for path in files]
        owners = _owners(names, source, utt2spk)
        check_recordings(encoder, source, names)
        found = of_recordings(encoder, source, names)
    else:
        found = read(source, model)
        owners = _owners(found.names, source, utt2spk)
    if not same_model(found.model, model):
        raise ScoreError(f"the cohort is of {found.model}, the embeddings are of {model}")
    if found.vectors.shape[1] != dim:
        raise ScoreError(f"the cohort has {found.vectors.shape[1]} dimensions, the embeddings {dim}")
    if lengths and np.linalg.norm(found.vectors, axis=1).max() < 1 + 1e-3:
        raise ScoreError(f"{source} holds directions, and a PLDA needs the lengths of embeddings too; give --cohort "
                         "with recordings, or embeddings of `speaker embed`")  # fmt: skip
    return speaker_means(found.vectors, owners, lengths=lengths)[1]


def _owners(names: list[str], source: Path, utt2spk: Path | None) -> list[str]:
    owners = speakers_of(names, utt2spk)
    if len(set(owners)) < 2:
        by = "the folders of the recordings are the speakers" if utt2spk is None else f"{utt2spk} says so"
        raise ScoreError(f"{source} is a cohort of one speaker; {by}, and two are needed, better hundreds")
    return owners


def speaker_means(vectors: Floats, speakers: list[str], *, lengths: bool = False) -> tuple[list[str], Floats]:
    """Means of unit vectors, or with `lengths` of the vectors as they are; a row for each speaker."""
    names, rows = np.unique(speakers, return_inverse=True)
    sums = np.zeros((len(names), vectors.shape[1]))
    np.add.at(sums, rows, vectors if lengths else unit(vectors))
    return names.tolist(), sums / np.bincount(rows)[:, None]


def enrolled(collection: Collection, spk2utt: dict[str, list[str]], *, lengths: bool = False) -> Collection:
    """Add models of several utterances: means of their unit vectors, or with `lengths` of the vectors as they are.

    Their seconds add up; without `lengths` the mean is as long as its recordings' embeddings are on average, for the
    length says how good a recording is.
    """
    rows = {name: row for row, name in enumerate(collection.names)}
    missing = [name for utterances in spk2utt.values() for name in utterances if name not in rows]
    if missing:
        raise ScoreError(f"{len(missing)} enrolment recordings have no embedding, the first is {missing[0]}")
    check_models(spk2utt, rows)
    spk2utt = {name: utterances for name, utterances in spk2utt.items() if name not in rows}
    if not spk2utt:
        return collection
    models = [_mean(collection.vectors[[rows[name] for name in names]], lengths) for names in spk2utt.values()]
    seconds = [collection.seconds[[rows[name] for name in utterances]].sum() for utterances in spk2utt.values()]
    return Collection(
        [*collection.names, *spk2utt], np.concatenate([collection.vectors, np.array(models)]),
        np.concatenate([collection.seconds, seconds]), collection.model,
    )  # fmt: skip


def check_models(spk2utt: Mapping[str, list[str]], recordings: Iterable[str]) -> None:
    """ScoreError for a model that has the name of a recording, but is not that recording alone."""
    twofold = [name for name in set(recordings) & set(spk2utt) if spk2utt[name] != [name]]
    if twofold:
        raise ScoreError(f"{len(twofold)} models have the name of a recording, the first is {min(twofold)}: a trial "
                         "could mean either; give the models names of their own")  # fmt: skip


def _mean(vectors: Floats, lengths: bool) -> Floats:
    """(n, D) -> (D,)."""
    if lengths:
        return np.asarray(vectors.mean(0))
    mean = unit(vectors).mean(0, keepdims=True)
    return np.asarray(unit(mean)[0] * np.linalg.norm(vectors, axis=1).mean())


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ScoreError(f"{path}: no list can be read from it ({error})") from error


def speakers_of(names: list[str], utt2spk: Path | None) -> list[str]:
    """Who speaks in each recording: its folder, or what Kaldi's list says; ScoreError for recordings that it lacks.

    Warns of folders in folders: in VoxCeleb's the inner ones are videos, in LibriSpeech's chapters.
    """
    if utt2spk is None:
        folders = [speaker_of(name) for name in names]
        inner = set(folders)
        outer = {PurePosixPath(folder).parent.as_posix() for folder in inner}
        if len(outer) >= 10 and 1 < len(inner) / len(outer) < 50:  # few with many inside are corpora, not people
            log.warning(
                "%d folders of recordings, each taken for a speaker, lie in %d others, such as %s; if those are the "
                "speakers, give --utt2spk FILE, `recording speaker` a line", len(inner), len(outer), min(outer),
            )  # fmt: skip
        return folders
    owners = read_utt2spk(utt2spk)
    unknown = [name for name in names if name not in owners]
    if unknown:
        raise ScoreError(f"{utt2spk} does not say who speaks in {len(unknown)} recordings, the first is {unknown[0]}")
    return [owners[name] for name in names]


def read_utt2spk(path: Path) -> dict[str, str]:
    """Kaldi's `recording speaker`, a recording a line."""
    owners: dict[str, str] = {}
    for number, line in enumerate(_lines(path), 1):
        fields = line.split()
        if fields and (len(fields) != 2 or fields[0] in owners):
            raise ScoreError(f"{path}, line {number}: expected a recording, once, and its speaker, got {line!r}")
        if fields:
            owners[fields[0]] = fields[1]
    return owners


def read_spk2utt(path: Path) -> dict[str, list[str]]:
    """Kaldi's `model utterance utterance ...`, a model a line; or NIST's `modelid segmentid side` with its heading."""
    models: dict[str, list[str]] = {}
    rows = [(number, line.split()) for number, line in enumerate(_lines(path), 1) if line.strip()]
    is_nist = bool(rows) and rows[0][1][:2] == NIST[:2]
    for number, (name, *utterances) in rows[is_nist:]:
        if is_nist and (not utterances or utterances[1:] not in ([], ["a"], ["-"])):
            raise ScoreError(f"{path}, line {number}: expected modelid, segmentid and side a, not {utterances[1:]}")
        if not utterances:
            raise ScoreError(f"{path}, line {number}: {name} has no utterances")
        if name in models and not is_nist:
            raise ScoreError(f"{path}, line {number}: {name} stands there twice")
        found = [*models.get(name, []), utterances[0]] if is_nist else utterances
        if len(set(found)) < len(found):
            raise ScoreError(f"{path}, line {number}: an utterance of {name} stands there twice; it would count as two")
        models[name] = found
    if not models:
        raise ScoreError(f"{path} holds no models")
    return models
