"""Manifests of the common kinds in, one list of recordings out.

`read` tells the kind by what lies at the path; docs/training_data.md shows one of each. Reading lists, and decodes
nothing: that is `Recording.load`. Nothing that a manifest says is ever run (pipes are refused), and shards are read
where they lie. Lhotse's cuts and WebDataset's shards are plain JSON lines and plain tar, so neither library is needed;
Lhotse's own loading would also hand the paths of Opus files to a shell.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import logging
import math
import re
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from engine import audio
from engine.errors import ConfigError
from recipes.harness.recordings import UNLABELLED, Member, Part, Recording

log = logging.getLogger(__name__)
KINDS = (
    "a CSV with the columns path, split, corpus, speaker and seconds (.csv), a Kaldi directory or its wav.scp, "
    "a folder of speaker/**/*.wav, Lhotse cuts (.jsonl, .jsonl.gz), WebDataset shards (.tar, shard-{0000..0009}.tar)"
)
COLUMNS = {"path", "split", "corpus", "speaker", "seconds"}
# Sound that `engine.audio` cannot read: named in a warning where a folder holds it, rather than passed over.
FOREIGN = {".m4a", ".mp4", ".aac", ".wma", ".webm", ".amr", ".ape", ".shn"}


def read(path: str | Path) -> list[Recording]:
    """List the recordings of a manifest in its order (of a CSV: the rows of split `train`).

    Raises ConfigError for what is missing, of no known kind, empty, or contradicts itself.
    """
    name, path = str(path), Path(path)
    if name.endswith(".tar"):
        recordings = _read_shards(name)
    elif not path.exists():
        raise ConfigError(f"{path}: no such manifest; there are {KINDS}")
    elif path.is_dir():
        recordings = _read_kaldi(path / "wav.scp") if (path / "wav.scp").exists() else _read_folder(path)
    elif name.endswith(".csv"):
        recordings = _read_csv(path)
    elif name.endswith(".scp"):
        recordings = _read_kaldi(path)
    elif name.endswith((".jsonl", ".jsonl.gz")):
        recordings = _read_cuts(path)
    else:
        raise ConfigError(f"{path} is no manifest of a kind known here; there are {KINDS}")
    if not recordings:
        raise ConfigError(f"{path}: no recordings in it")
    return recordings


def _read_csv(path: Path) -> list[Recording]:
    reader = csv.DictReader(_lines(path))
    missing = COLUMNS - set(reader.fieldnames or ())
    if missing:
        raise ConfigError(f"{path}: a manifest needs the columns {', '.join(sorted(missing))} too")
    recordings = []
    for row in reader:
        if row["split"] != "train":
            continue
        where = f"{path}, line {reader.line_num}"
        if not (row["path"] and row["speaker"] and row["corpus"]):
            raise ConfigError(f"{where}: path, corpus or speaker is empty; fill it in or remove the row")
        file = str(path.parent / row["path"])
        seconds = _number(row["seconds"], where)
        extra = (row.get("language") or "", row.get("licence") or "")
        speaker = row["speaker"] if "/" in row["speaker"] else f"{row['corpus']}/{row['speaker']}"
        recordings.append(Recording(file, speaker, row["corpus"], Part(file), seconds, *extra))
    if not recordings:
        raise ConfigError(f"{path}: no rows of split 'train'")
    return recordings


def _read_folder(folder: Path) -> list[Recording]:
    """speaker/**/*.wav and so on; what lies in `folder` itself has no speaker."""
    if (folder / "manifest.csv").exists():
        raise ConfigError(f"{folder} holds a manifest; give {folder / 'manifest.csv'}, which knows the splits")
    # One glob for each entry, since a glob enters a link that it starts from and no other: speakers may be links.
    inside = [
        (entry.name if entry.is_dir() else f"{entry.name}{UNLABELLED}", file)
        for entry in sorted(folder.iterdir())
        for file in (sorted(entry.rglob("*")) if entry.is_dir() else [entry])
    ]
    foreign = sorted({file.suffix.lower() for _, file in inside} & FOREIGN)
    if foreign:
        log.warning("%s: %s is not read here; convert with `ffmpeg -i INPUT OUTPUT.wav`", folder, ", ".join(foreign))
    found = [(name, file) for name, file in inside if file.suffix.lower() in audio.FORMATS and not file.is_dir()]
    if not found:
        raise ConfigError(f"{folder} holds no sound files ({' '.join(audio.FORMATS)}); there are {KINDS}")
    corpus = folder.resolve().name
    _warn_unlabelled(folder, sum(file.parent == folder for _, file in found))
    return [Recording(str(file), f"{corpus}/{name}", corpus, Part(str(file))) for name, file in found]


def _read_kaldi(scp: Path) -> list[Recording]:
    """wav.scp with, where they are, segments and utt2spk, utt2dur, utt2lang beside it."""
    files = {}
    for key, target in _table(scp).items():
        if target.endswith("|") or target.startswith("|") or target == "-":
            raise ConfigError(f"{scp}: {key} is a pipe, and commands are not run here; write its output to a wav file")
        if re.search(r":\d+$", target):
            raise ConfigError(f"{scp}: {key} lies in a Kaldi archive; copy it to wav files (wav-copy) first")
        files[key] = _beside(scp, target)
    segments = scp.with_name("segments")
    parts = dict(_segments(segments, files)) if segments.exists() else {key: Part(f) for key, f in files.items()}
    utt2spk, utt2dur, utt2lang = (
        _table(table) if (table := scp.with_name(name)).exists() else {} for name in ("utt2spk", "utt2dur", "utt2lang")
    )
    unlabelled = [key for key in parts if key not in utt2spk]
    if utt2spk and unlabelled:
        raise ConfigError(f"{scp.parent}: {unlabelled[0]} is not in utt2spk; run utils/fix_data_dir.sh")
    corpus = scp.parent.resolve().name
    _warn_unlabelled(scp, len(unlabelled))
    recordings = []
    for key, part in parts.items():
        seconds = _number(utt2dur[key], f"{scp.parent}/utt2dur, {key}") if key in utt2dur else part.end - part.start
        recordings.append(
            Recording(
                path=f"{part.file}#{key}",
                speaker=f"{corpus}/{utt2spk.get(key, key + UNLABELLED)}",
                corpus=corpus,
                source=part,
                seconds=seconds if math.isfinite(seconds) else None,
                language=utt2lang.get(key, ""),
            )
        )
    return recordings


def _segments(path: Path, files: dict[str, str]) -> Iterator[tuple[str, Part]]:
    """Lines `utterance recording start end`, in seconds; an end of -1 is the end of the recording."""
    for key, rest in _table(path).items():
        where = f"{path}: {key}"
        words = rest.split()
        if len(words) != 3 or words[0] not in files:
            raise ConfigError(f"{where} should be followed by a recording of wav.scp, start and end, not by {rest!r}")
        start, end = (_number(word, where) for word in words[1:])
        yield key, Part(files[words[0]], start, math.inf if end == -1 else end)


def _read_cuts(path: Path) -> list[Recording]:
    """One cut a line, as `CutSet.to_file` writes them."""
    corpus = path.name.removesuffix(".gz").removesuffix(".jsonl")
    recordings, num_unlabelled = [], 0
    for number, line in enumerate(_lines(path), 1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        cut = _json(line, where)
        try:
            part = _cut_part(cut, path, where)
            names = {text for s in cut.get("supervisions", ()) if (text := s.get("speaker"))}
            languages = {text for s in cut.get("supervisions", ()) if (text := s.get("language"))}
            identity, seconds = str(cut["id"]), _number(cut["duration"], where)
        except (KeyError, TypeError, AttributeError) as error:
            raise ConfigError(f"{where} is no Lhotse cut with a recording ({error!r}); write cuts, for example with "
                              "`lhotse cut simple`") from error  # fmt: skip
        if len(names) > 1:
            raise ConfigError(
                f"{where}: {len(names)} speakers in one cut; use cuts.trim_to_supervisions(keep_overlapping=False)"
            )
        num_unlabelled += not names
        speaker = f"{corpus}/{names.pop() if names else identity + UNLABELLED}"
        language = ", ".join(sorted(languages))
        recordings.append(Recording(f"{part.file}#{identity}", speaker, corpus, part, seconds, language))
    _warn_unlabelled(path, num_unlabelled)
    return recordings


def _cut_part(cut: dict[str, Any], path: Path, where: str) -> Part:
    """Where the audio of a MonoCut or MultiCut lies; KeyError and its like for what is not built as a cut is."""
    recording = cut.get("recording") or {}
    changes = [t.get("name") for t in recording.get("transforms") or () if t.get("name") != "Resample"]
    if cut.get("type") == "MixedCut" or changes:
        what = ", ".join(map(str, changes)) or "a mix"
        raise ConfigError(f"{where}: {what} is left to Lhotse; write the sound with cuts.save_audios(FOLDER) and use "
                          "the cuts that this returns")  # fmt: skip
    channel = cut["channel"]
    wanted = set(channel) if isinstance(channel, list) else {channel}
    sources = [source for source in recording["sources"] if wanted & set(source["channels"])]
    if len(sources) != 1 or sources[0]["type"] != "file":
        kinds = ", ".join(sorted({str(source["type"]) for source in sources})) or "none"
        raise ConfigError(f"{where}: the sound should be in one file, not in {len(sources)} of type {kinds} (commands "
                          "and addresses are not followed here); write it with cuts.save_audios(FOLDER)")  # fmt: skip
    start, channels = _number(cut["start"], where), list(sources[0]["channels"])
    # Several channels, or the only one there is: their mean.
    only = None if wanted == set(channels) else channels.index(*wanted)
    return Part(_beside(path, sources[0]["source"]), start, start + float(cut["duration"]), only)


def _read_shards(pattern: str) -> list[Recording]:
    """Shards NAME.tar, each a tar of samples: one or more sound files, speaker in KEY.json, KEY.spk or KEY.cls."""
    shards = list(_expand(pattern))
    gone = [shard for shard in shards if not Path(shard).is_file()]
    if gone or not shards:
        raise ConfigError(f"{gone[0] if gone else pattern}: no such shard ({len(gone)} of {len(shards)} are missing)")
    # The same name for shard-{0000..0009}.tar, for shard-0003.tar alone, and on every machine.
    name = re.sub(r"\{.*|[-_.]?\d*$", "", Path(pattern).name.removesuffix(".tar")).rstrip("-_.")
    corpus = name or Path(pattern).resolve().parent.name
    recordings, num_unlabelled = [], 0
    for shard in shards:
        members, facts = _scan(shard)
        for member, key in members:
            known = facts.get(key, {})
            num_unlabelled += "speaker" not in known
            seconds = _number(known["seconds"], f"{shard}#{key}.json") if "seconds" in known else None
            speaker = f"{corpus}/{known.get('speaker', key + UNLABELLED)}"
            text = (str(known.get("language", "")), str(known.get("licence", "")))
            recordings.append(Recording(f"{shard}#{member.name}", speaker, corpus, member, seconds, *text))
    _warn_unlabelled(pattern, num_unlabelled)
    return recordings


def _scan(shard: str) -> tuple[list[tuple[Member, str]], dict[str, dict[str, Any]]]:
    """The sound files of a shard, each with the key of its sample, and what is known of each key."""
    members: list[tuple[Member, str]] = []
    facts: dict[str, dict[str, Any]] = {}
    try:
        with tarfile.open(shard, "r:") as tar:
            for item in tar:
                folder, _, base = item.name.rpartition("/")
                key, suffix = f"{folder}/{base.partition('.')[0]}".lstrip("/"), Path(base).suffix.lower()
                if suffix in audio.FORMATS and (not item.isreg() or item.issparse()):
                    log.warning("%s#%s is a link or has holes, and is not read", shard, item.name)
                elif suffix in audio.FORMATS:
                    members.append((Member(shard, item.name, item.offset_data, item.size), key))
                elif suffix in {".json", ".spk", ".cls"} and item.isreg():
                    content = tar.extractfile(item)  # only its bytes: nothing is written
                    assert content is not None
                    facts.setdefault(key, {}).update(_facts(content.read(), suffix, f"{shard}#{item.name}"))
    except (tarfile.TarError, OSError) as error:
        raise ConfigError(
            f"{shard} is no whole, uncompressed tar file ({error}); gunzip it or fetch it again"
        ) from error
    return members, facts


def _facts(content: bytes, suffix: str, where: str) -> dict[str, Any]:
    """What the file beside a sound says: speaker, and from JSON also language, licence and seconds."""
    text = content.decode("utf-8", errors="replace").strip()
    if suffix != ".json":
        return {"speaker": text} if text else {}
    given = _json(text, where)
    names = {"speaker": ("speaker", "speaker_id"), "language": ("language",), "licence": ("licence", "license"),
             "seconds": ("seconds", "duration")}  # fmt: skip
    found = {
        name: [given[alias] for alias in aliases if given.get(alias) is not None] for name, aliases in names.items()
    }
    return {name: values[0] for name, values in found.items() if values}


def _expand(pattern: str) -> Iterator[str]:
    """Names that a pattern such as shard-{0000..0009}.tar stands for."""
    match = re.search(r"\{(\d+)\.\.(\d+)\}", pattern)
    if not match:
        yield pattern
        return
    first, last = match.groups()
    for number in range(int(first), int(last) + 1):
        yield from _expand(f"{pattern[: match.start()]}{number:0{len(first)}d}{pattern[match.end() :]}")


def _lines(path: Path) -> list[str]:
    """The lines of a text file, also of one compressed with gzip."""
    try:
        data = path.read_bytes()
        text = (gzip.decompress(data) if path.suffix == ".gz" else data).decode("utf-8-sig")
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read as text in UTF-8: {error}") from error
    return list(io.StringIO(text, newline=""))  # str.splitlines would also split at characters inside of JSON strings


def _table(path: Path) -> dict[str, str]:
    """A Kaldi table: first word -> rest of the line."""
    table: dict[str, str] = {}
    for number, line in enumerate(_lines(path), 1):
        key, *rest = line.strip().split(maxsplit=1) or [""]
        if key in table or (key and not rest):
            raise ConfigError(f"{path}, line {number}: {key} {'comes twice' if rest else 'has no value'}")
        if key:
            table[key] = rest[0]
    return table


def _json(text: str, where: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise ConfigError(f"{where} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise ConfigError(f"{where} holds {type(value).__name__}, not an object with names")
    return value


def _number(text: Any, where: str) -> float:
    try:
        value = float(text)
    except (TypeError, ValueError):
        value = math.nan
    if not math.isfinite(value):
        raise ConfigError(f"{where}: {text!r} is not a number of seconds")
    return value


def _beside(manifest: Path, target: str) -> str:
    """A path as the manifest's folder sees it; else as it stands, from the working directory (Kaldi, Lhotse)."""
    near = manifest.parent / target
    return str(near if near.exists() else target)


def _warn_unlabelled(manifest: str | Path, count: int) -> None:
    if count:
        log.warning(
            "%s: no speaker for %d recordings; a codec takes each for a speaker of its own, so that one person may be "
            "both trained and validated on; a speaker encoder has no label for them", manifest, count
        )  # fmt: skip
