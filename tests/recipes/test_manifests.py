"""Every kind of manifest gives the recordings that lie in it; what cannot be read is an error that says the way out."""

import dataclasses
import gzip
import io
import json
import logging
import tarfile

import numpy as np
import pytest
import soundfile
import torch

from engine import audio
from engine.errors import AudioError, ConfigError
from recipes.harness.manifests import read
from recipes.harness.recordings import Part, whole_file

RATE = 8_000
HEADER = "path,split,corpus,speaker,seconds,language,licence\n"


def tone(seconds, hertz=200.0):
    return 0.5 * np.sin(2 * np.pi * hertz * np.arange(round(seconds * RATE)) / RATE)


def write(path, wav):
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, wav, RATE)
    return path


@pytest.fixture
def ramp(tmp_path):
    """Two channels of 4 s whose samples say where they lie: the left one rises, the right one falls."""
    rise = np.linspace(0, 0.9, 4 * RATE)
    return write(tmp_path / "corpus" / "long.wav", np.stack([rise, -rise], axis=1))


def rising(start, end):
    return torch.linspace(0, 0.9, 4 * RATE)[round(start * RATE) : round(end * RATE)]


def test_a_csv(tmp_path):
    write(tmp_path / "a.wav", tone(1))
    (tmp_path / "m.csv").write_text(
        HEADER + "a.wav,train,c,c/1,1,en,CC0\nb.wav,test,c,c/2,1,en,CC0\na.wav,train,c,3,2.5,,\n"
    )
    first, second = read(tmp_path / "m.csv")
    assert first.path == str(tmp_path / "a.wav") and first.load(RATE).shape == (RATE,)
    assert (first.speaker, first.corpus, first.seconds, first.language, first.licence) == ("c/1", "c", 1, "en", "CC0")
    assert (second.speaker, second.seconds, second.language) == ("c/3", 2.5, "")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("path,split\n", "needs the columns corpus, seconds, speaker too"),
        (HEADER, "no rows of split 'train'"),
        (HEADER + "a.wav,train,c,c/1,long,en,CC0\n", "line 2: 'long' is not a number of seconds"),
        (HEADER + "a.wav,train,c,c/1\n", "line 2: None is not a number"),
        (HEADER + "a.wav,train,c,,1,en,CC0\n", "line 2: path, corpus or speaker is empty"),
        (b"\xff\xfe,split\n", "cannot be read as text in UTF-8"),
    ],
)
def test_a_bad_csv(tmp_path, text, message):
    (tmp_path / "m.csv").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ConfigError, match=message):
        read(tmp_path / "m.csv")


def test_a_folder_of_speakers(tmp_path, caplog):
    root = tmp_path / "corpus"
    for name in ("anna/1.wav", "anna/deep/er/2.FLAC", "bert/3.ogg", "bert/4.mp3", "bert/notes.txt", "bert/5.m4a"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        if name.endswith((".txt", ".m4a")):
            (root / name).write_text("no sound")
        else:
            audio.save(root / name, torch.from_numpy(tone(0.5)).float()[None], RATE)
    (root / "carl").symlink_to(root / "anna")
    found = [(r.path.removeprefix(f"{root}/"), r.speaker) for r in read(root)]
    assert found == [
        ("anna/1.wav", "corpus/anna"), ("anna/deep/er/2.FLAC", "corpus/anna"),
        ("bert/3.ogg", "corpus/bert"), ("bert/4.mp3", "corpus/bert"),
        ("carl/1.wav", "corpus/carl"), ("carl/deep/er/2.FLAC", "corpus/carl"),
    ]  # fmt: skip
    assert ".m4a is not read here" in caplog.text and "no speaker" not in caplog.text
    assert all(r.load(RATE).shape[0] >= RATE / 2 and r.seconds is None for r in read(root))
    write(root / "alone.wav", tone(0.5))
    assert {r.speaker for r in read(root)} >= {"corpus/alone.wav/unlabelled"}
    assert "no speaker for 1 recordings" in caplog.text
    (root / "manifest.csv").write_text(HEADER)
    with pytest.raises(ConfigError, match="which knows the splits"):
        read(root)


def kaldi(folder, **tables):
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in tables.items():
        (folder / name.replace("wav_scp", "wav.scp")).write_text(text)
    return folder


def test_a_kaldi_directory(tmp_path, caplog):
    wav = write(tmp_path / "my wavs" / "a.wav", tone(1))
    write(tmp_path / "corpus" / "near.wav", tone(2))
    folder = kaldi(
        tmp_path / "corpus", wav_scp=f"u1 {wav}\nu2   near.wav\n", utt2spk="u1 anna\nu2 bert\n", utt2dur="u1 1.0\n",
        utt2lang="u2 fa\n",
    )  # fmt: skip
    first, second = read(folder)
    assert (first.speaker, first.seconds, first.path) == ("corpus/anna", 1.0, f"{wav}#u1")
    assert (second.speaker, second.seconds, second.language) == ("corpus/bert", None, "fa")
    assert [len(r.load(RATE)) for r in (first, second)] == [RATE, 2 * RATE]
    assert read(folder / "wav.scp") == [first, second] and not caplog.records
    (folder / "utt2spk").unlink()
    assert [r.speaker for r in read(folder)] == ["corpus/u1/unlabelled", "corpus/u2/unlabelled"]
    assert "no speaker for 2 recordings" in caplog.text


def test_kaldi_segments_are_the_samples_between_their_times(tmp_path, ramp):
    text = "a long 0.5 1.25\nb long 2 -1\nc long 3.5 4.4\nd long 4.5 5\ne long 3 4.6\n"
    folder = kaldi(ramp.parent, wav_scp="long long.wav\n", segments=text, utt2spk="".join(f"{u} s\n" for u in "abcde"))
    parts = [dataclasses.replace(r.source, channel=0) for r in read(folder)]
    torch.testing.assert_close(parts[0].load(RATE), rising(0.5, 1.25), atol=1e-4, rtol=0)
    torch.testing.assert_close(parts[1].load(RATE), rising(2, 4), atol=1e-4, rtol=0)
    torch.testing.assert_close(parts[2].load(RATE), rising(3.5, 4), atol=1e-4, rtol=0)  # 0.4 s past the end is allowed
    for part in parts[3:]:
        with pytest.raises(AudioError, match="in 4.00 s of sound"):
            part.load(RATE)
    assert [r.seconds for r in read(folder)][:2] == [0.75, None]
    assert read(folder)[0].load(RATE).abs().max() < 1e-4  # the mean of a channel and its opposite
    assert read(folder)[0].load(2 * RATE).shape == (round(0.75 * 2 * RATE),)


def test_a_long_file_is_decoded_once_for_its_segments(ramp, monkeypatch):
    whole_file.cache_clear()
    decoded, load = [], audio.load
    monkeypatch.setattr(audio, "load", lambda *args, **kwargs: decoded.append(args) or load(*args, **kwargs))
    for start in range(4):
        assert len(Part(str(ramp), start, start + 1).load(RATE)) == RATE
    assert len(decoded) == 1


@pytest.mark.parametrize(
    ("tables", "message"),
    [
        ({"wav_scp": "u sox x.wav -t wav - |\n"}, "u is a pipe, and commands are not run"),
        ({"wav_scp": "u x.ark:1234\n"}, "lies in a Kaldi archive"),
        ({"wav_scp": "u\n"}, "line 1: u has no value"),
        ({"wav_scp": "u a.wav\nu b.wav\n"}, "line 2: u comes twice"),
        ({"wav_scp": "\n"}, "no recordings in it"),
        ({"wav_scp": "u a.wav\nv b.wav\n", "utt2spk": "u s\n"}, "v is not in utt2spk; run utils/fix_data_dir.sh"),
        ({"wav_scp": "r a.wav\n", "segments": "u q 0 1\n"}, "followed by a recording of wav.scp, start and end"),
        ({"wav_scp": "r a.wav\n", "segments": "u r 0 1 A\n"}, "followed by a recording of wav.scp, start and end"),
        ({"wav_scp": "r a.wav\n", "segments": "u r 0 x\n"}, "'x' is not a number of seconds"),
    ],
)
def test_kaldi_directories_that_are_refused(tmp_path, tables, message):
    with pytest.raises(ConfigError, match=message):
        read(kaldi(tmp_path, **tables))


def a_cut(path, speakers=("anna",), channel=0, start=0.5, duration=1.0, **changes):
    """A cut as Lhotse 1.33 writes it with `CutSet.to_file`."""
    recording = {
        "id": "rec", "sources": [{"type": "file", "channels": [0, 1], "source": str(path)}], "sampling_rate": RATE,
        "num_samples": 4 * RATE, "duration": 4.0, "channel_ids": [0, 1],
    }  # fmt: skip
    supervisions = [
        {"id": f"s{i}", "recording_id": "rec", "start": 0.0, "duration": 0.2, "channel": 0, "text": "so\u2028so",
         "language": "English", "speaker": speaker}
        for i, speaker in enumerate(speakers)
    ]  # fmt: skip
    cut = {"id": "rec-0", "start": start, "duration": duration, "channel": channel, "supervisions": supervisions,
           "recording": recording, "type": "MonoCut"}  # fmt: skip
    return {**cut, **changes}


def jsonl(path, *lines):
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines).encode()
    path.write_bytes(gzip.compress(text) if path.suffix == ".gz" else text)
    return path


def test_lhotse_cuts(tmp_path, ramp, caplog):
    both = a_cut("corpus/long.wav", channel=[0, 1], type="MultiCut", id="both", supervisions=[])
    right = a_cut(ramp, channel=1, id="right")
    resampled = a_cut(ramp, id="resampled")
    resampled["recording"]["transforms"] = [{"name": "Resample", "kwargs": {}}]
    for name in ("talk.jsonl", "talk.jsonl.gz"):
        cuts = read(jsonl(tmp_path / name, a_cut(ramp), both, right, resampled))
        assert [r.speaker for r in cuts] == ["talk/anna", "talk/both/unlabelled", "talk/anna", "talk/anna"]
        assert (cuts[0].seconds, cuts[0].language, cuts[0].corpus) == (1.0, "English", "talk")
        torch.testing.assert_close(cuts[0].load(RATE), rising(0.5, 1.5), atol=1e-4, rtol=0)
        assert cuts[1].load(RATE).abs().max() < 1e-4
        torch.testing.assert_close(cuts[2].load(RATE), -rising(0.5, 1.5), atol=1e-4, rtol=0)
        assert torch.equal(cuts[3].load(RATE), cuts[0].load(RATE))
    assert "no speaker for 1 recordings" in caplog.text


def with_source(**source):
    cut = a_cut("long.wav")
    cut["recording"]["sources"] = [{"channels": [0], **source}]
    return cut


def with_transforms(*names):
    cut = a_cut("long.wav")
    cut["recording"]["transforms"] = [{"name": name, "kwargs": {}} for name in names]
    return cut


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (with_source(type="command", source="touch /tmp/x"), "of type command .*save_audios"),
        (with_source(type="url", source="https://example.org/a.wav"), "of type url .*save_audios"),
        (with_source(type="memory", source="UklGRg=="), "of type memory .*save_audios"),
        (with_transforms("Resample", "Speed"), "Speed is left to Lhotse; .*save_audios"),
        ({"id": "mix", "tracks": [], "type": "MixedCut"}, "a mix is left to Lhotse"),
        (a_cut("long.wav", speakers=("anna", "bert")), "2 speakers in one cut; use cuts.trim_to_supervisions"),
        (a_cut("long.wav", channel=2), "in 0 of type none"),
        (a_cut("long.wav", recording=None), "no Lhotse cut with a recording"),
        ({"id": "s", "start": 0, "duration": 1, "recording_id": "r", "speaker": "anna"}, "no Lhotse cut"),
        (a_cut("long.wav", duration=float("nan")), "nan is not a number of seconds"),
        ([1, 2], "holds list, not an object"),
    ],
)
def test_cuts_that_are_refused(tmp_path, line, message):
    with pytest.raises(ConfigError, match=message) as error:
        read(jsonl(tmp_path / "cuts.jsonl", a_cut("long.wav"), line))
    assert "line 2" in str(error.value)


def test_damaged_cut_files(tmp_path):
    (tmp_path / "cuts.jsonl").write_text("{oops\n")
    with pytest.raises(ConfigError, match="line 1 is not JSON"):
        read(tmp_path / "cuts.jsonl")
    whole = jsonl(tmp_path / "cuts.jsonl.gz", *[a_cut("long.wav")] * 9).read_bytes()
    (tmp_path / "cuts.jsonl.gz").write_bytes(whole[:-20])
    with pytest.raises(ConfigError, match="cannot be read as text"):
        read(tmp_path / "cuts.jsonl.gz")


def encoded(seconds, container="WAV"):
    buffer = io.BytesIO()
    soundfile.write(buffer, tone(seconds), RATE, format=container)
    return buffer.getvalue()


def shard(path, members):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            item = tarfile.TarInfo(name)
            item.size = len(data)
            tar.addfile(item, io.BytesIO(data))
    return path


def test_shards(tmp_path, caplog):
    facts = {"speaker": "anna", "language": "en", "license": "CC0", "duration": 0.5, "text": "hello"}
    members = {"d/1.json": json.dumps(facts).encode(), "d/1.wav": encoded(0.5), "d/1.txt": b"hello there"}
    shard(tmp_path / "talk-08.tar", members)
    shard(tmp_path / "talk-09.tar", {"2.close.flac": encoded(1, "FLAC"), "2.far.wav": encoded(1.5), "2.spk": b"bert\n"})
    shard(tmp_path / "talk-10.tar", {"3.wav": encoded(2), "3.cls": b"17", "4.mp3": encoded(2.5, "MP3"), "4.txt": b"hi"})
    found = read(f"{tmp_path}/talk-{{08..10}}.tar")
    assert [(r.path.removeprefix(f"{tmp_path}/"), r.speaker) for r in found] == [
        ("talk-08.tar#d/1.wav", "talk/anna"), ("talk-09.tar#2.close.flac", "talk/bert"),
        ("talk-09.tar#2.far.wav", "talk/bert"), ("talk-10.tar#3.wav", "talk/17"),
        ("talk-10.tar#4.mp3", "talk/4/unlabelled"),
    ]  # fmt: skip
    assert (found[0].seconds, found[0].language, found[0].licence) == (0.5, "en", "CC0")
    assert [round(len(r.load(RATE)) / RATE, 1) for r in found[:4]] == [0.5, 1.0, 1.5, 2.0]
    expected = torch.from_numpy(tone(0.5)).float()
    torch.testing.assert_close(found[0].load(RATE), expected, atol=1e-4, rtol=0)
    assert "no speaker for 1 recordings" in caplog.text
    assert [r.speaker for r in read(tmp_path / "talk-08.tar")] == ["talk/anna"]  # the same name without its brothers
    assert sorted(p.name for p in tmp_path.iterdir()) == ["talk-08.tar", "talk-09.tar", "talk-10.tar"]


def test_a_damaged_member_is_named_and_links_are_not_followed(tmp_path, caplog):
    path = shard(tmp_path / "s.tar", {"good.wav": encoded(0.5), "bad.wav": b"not audio", "good.spk": b"x"})
    with tarfile.open(path, "a") as tar:
        link = tarfile.TarInfo("link.wav")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    good, bad = read(path)
    assert "s.tar#link.wav is a link or has holes, and is not read" in caplog.text
    with pytest.raises(AudioError, match=r"s.tar#bad.wav is not audio"):
        bad.load(RATE)
    path.unlink()
    with pytest.raises(AudioError, match="s.tar cannot be read"):
        good.load(RATE)


def test_shards_that_are_refused(tmp_path):
    path = shard(tmp_path / "s-0.tar", {"a.wav": encoded(0.5), "a.json": b'{"speaker": "x"}'})
    with pytest.raises(ConfigError, match=r"s-1.tar: no such shard \(2 of 3 are missing\)"):
        read(f"{tmp_path}/s-{{0..2}}.tar")
    (tmp_path / "zip.tar").write_bytes(gzip.compress(path.read_bytes()))
    (tmp_path / "cut.tar").write_bytes(path.read_bytes()[:3_000])
    for name in ("zip.tar", "cut.tar"):
        with pytest.raises(ConfigError, match="no whole, uncompressed tar file"):
            read(tmp_path / name)
    with pytest.raises(ConfigError, match=r"b.tar#a.json holds list"):
        read(shard(tmp_path / "b.tar", {"a.wav": encoded(0.5), "a.json": b"[]"}))
    with pytest.raises(ConfigError, match="no recordings in it"):
        read(shard(tmp_path / "c.tar", {"a.txt": b"text"}))


def test_what_is_no_manifest_names_the_kinds_there_are(tmp_path):
    (tmp_path / "list.txt").write_text("a.wav\n")
    (tmp_path / "empty").mkdir()
    for path in (tmp_path / "list.txt", tmp_path / "none.csv", tmp_path / "empty"):
        with pytest.raises(ConfigError, match=r"there are a CSV .* Kaldi .* speaker/.* Lhotse cuts .* shards"):
            read(path)


def test_recordings_load_at_the_asked_rate(tmp_path, caplog):
    caplog.set_level(logging.WARNING)
    write(tmp_path / "c" / "anna" / "a.wav", np.stack([tone(1), tone(1)], axis=1))
    (recording,) = read(tmp_path / "c")
    assert recording.load(16_000).shape == (16_000,) and recording.load(16_000).dtype == torch.float32
