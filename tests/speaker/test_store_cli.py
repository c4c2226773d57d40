"""The commands on voiceprints, as a user meets them: with the shipped encoder and the bundled recordings."""

import io
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from engine import audio
from engine.errors import AudioError, SpeechError, StoreError
from speaker.cli import app


@pytest.fixture
def run(tmp_path, monkeypatch, recordings):
    """Run a command with a store of its own; returns stdout, or raises what `main` prints."""
    monkeypatch.setenv("VOXCODE_STORE", str(tmp_path / "new" / "v.db"))
    monkeypatch.delenv("VOXCODE_STORE_KEY", raising=False)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)

    def call(*arguments, status=0, stdin=None):
        result = CliRunner().invoke(app, [str(each) for each in arguments], input=stdin)
        if isinstance(result.exception, SpeechError):
            raise result.exception
        assert result.exit_code == status, result.output
        return result.stdout

    yield call
    torch.set_num_threads(threads)


def test_enroll_identify_and_look_after(run, recordings, tmp_path):
    a1, a2, c1, c2 = recordings
    with pytest.raises(StoreError, match="speaker enroll NAME"):
        run("identify", a1)
    assert "1 print added, 1 in" in run("enroll", "Allison", a1, "--metadata", '{"team": "north"}')
    run("enroll", "Carlo", c1)
    found = json.loads(run("identify", a2, "--json"))
    assert found["speaker"] == "Allison" and found["posterior"] > 0.9 and found["score"] > found["threshold"]
    assert run("identify", "-", stdin=_wav(c2)).startswith("Carlo: score")
    run("store", "delete", "Carlo")
    assert "nobody we know, the nearest is Allison" in run("identify", c2, status=1)
    assert json.loads(run("identify", c2, "--threshold", "0.99", "--json", status=1))["speaker"] is None
    run("store", "rename", "Allison", "Ally")
    assert json.loads(run("store", "show", "Ally", "--json"))["metadata"] == {"team": "north"}
    assert run("store", "list").startswith("Ally\t1 print\t4.")
    run("enroll", "Other", a2)
    assert "sound like one person" in run("store", "audit", status=1)
    run("store", "merge", "Other", "Ally")
    assert "nothing found" in run("store", "audit")
    run("store", "export", tmp_path / "out.npz")
    with pytest.raises(StoreError, match="--force"):
        run("store", "export", tmp_path / "out.npz")
    assert "2 prints added" in run("store", "import", tmp_path / "out.npz", "--store", tmp_path / "copy.db")
    assert "2 prints of 1 speakers" in run("store", "rescue", tmp_path / "copy.db", "--out", tmp_path / "whole.db")
    assert json.loads(run("store", "show", " Ally ", "--json"))["prints"]  # as names are stored
    # A store is replaced by a better one, or not at all.
    kept = (tmp_path / "whole.db").read_bytes()
    with pytest.raises(StoreError, match="is the damaged store itself"):
        run("store", "rescue", tmp_path / "whole.db", "--out", tmp_path / "whole.db", "--force")
    (tmp_path / "junk.db").write_bytes(b"junk")
    with pytest.raises(StoreError, match="no print could be read"):
        run("store", "rescue", tmp_path / "junk.db", "--out", tmp_path / "whole.db", "--force")
    assert (tmp_path / "whole.db").read_bytes() == kept
    run("store", "rescue", tmp_path / "copy.db", "--out", tmp_path / "whole.db", "--force")
    # What is no export leaves no empty store behind.
    (tmp_path / "cut.npz").write_bytes(b"PK\x03\x04")
    with pytest.raises(StoreError, match="holds no prints"):
        run("store", "import", tmp_path / "cut.npz", "--store", tmp_path / "none.db")
    assert not (tmp_path / "none.db").exists()


def test_nothing_is_stored_twice_or_mapped_to_what_it_is(run, recordings, tmp_path):
    run("enroll", "Allison", recordings[0])
    assert "0 prints added, 1 was there already, 1 in" in run("enroll", "Allison", recordings[0])
    run("store", "export", tmp_path / "out.npz")
    assert "0 prints added, 1 was there already" in run("store", "import", tmp_path / "out.npz")
    before = (tmp_path / "new" / "v.db").read_bytes()
    with pytest.raises(StoreError, match="holds prints of ecapa@.* already; give --to another"):
        run("store", "migrate", "--to", "ecapa", "--recordings", recordings[0].parent, "--yes")
    assert (tmp_path / "new" / "v.db").read_bytes() == before
    run("store", "delete", "Allison", "--print", "1")
    with pytest.raises(StoreError, match="holds no prints"):
        run("identify", recordings[0])
    odd = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.wav"))
    odd.write_bytes(_wav(recordings[0]))
    run("enroll", "Allison", odd)
    shown = json.loads(run("store", "show", "Allison", "--json"))
    assert shown["prints"][0]["source"].endswith("\\xff.wav")


def test_bad_recordings_are_refused_with_the_reason(run, recordings, tmp_path):
    rng = np.random.default_rng(0)
    audio.save(tmp_path / "silent.wav", torch.zeros(1, 32000), 16000)
    wav = audio.load(recordings[0], 16000, mono=True)[0]
    audio.save(tmp_path / "short.wav", wav[:, 16000:24000], 16000)
    audio.save(tmp_path / "tiny.wav", torch.from_numpy(rng.normal(size=(1, 50)).astype(np.float32)) / 9, 16000)
    with pytest.raises(AudioError, match="silent.wav is not enrolled: no speech"):
        run("enroll", "Eve", recordings[0], tmp_path / "silent.wav", "--force-quality")
    with pytest.raises(AudioError, match="it is silence|too short"):
        run("enroll", "Eve", tmp_path / "tiny.wav")
    with pytest.raises(AudioError, match="only .* s of speech.*--force-quality"):
        run("enroll", "Eve", tmp_path / "short.wav")
    assert not (tmp_path / "new").exists()  # nothing was stored, not even an empty store
    run("enroll", "Eve", tmp_path / "short.wav", "--force-quality")
    with pytest.raises(AudioError, match="silence"):
        run("identify", tmp_path / "silent.wav")
    with pytest.raises(AudioError, match="stdin is empty"):
        run("identify", "-", stdin=b"")
    with pytest.raises(AudioError, match="^stdin"):
        run("identify", "-", stdin=b"no sound")
    with pytest.raises(SpeechError, match="--threshold nan: it is a cosine"):
        run("identify", recordings[0], "--threshold", "nan")
    with pytest.raises(StoreError, match="one line"):
        run("enroll", " ", recordings[0], "--store", tmp_path / "never.db")
    assert not (tmp_path / "never.db").exists()
    with pytest.raises(StoreError, match="no JSON"):
        run("enroll", "Eve", recordings[0], "--metadata", "{")


def _wav(path):
    wav, rate = audio.load(path, mono=True)
    data = (wav[0].numpy() * 32767).astype("<i2").tobytes()
    head = io.BytesIO()
    for part in (b"RIFF", (36 + len(data)).to_bytes(4, "little"), b"WAVEfmt ", (16).to_bytes(4, "little"),
                 (1).to_bytes(2, "little"), (1).to_bytes(2, "little"), rate.to_bytes(4, "little"),
                 (2 * rate).to_bytes(4, "little"), (2).to_bytes(2, "little"), (16).to_bytes(2, "little"), b"data",
                 len(data).to_bytes(4, "little"), data):  # fmt: skip
        head.write(part)
    return head.getvalue()
