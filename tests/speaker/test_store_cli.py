"""`speaker enroll`, `identify` and `store`, as a user meets them."""

import json

import pytest
import torch
from typer.testing import CliRunner

from engine import audio
from engine.errors import SpeechError
from speaker.cli import app


@pytest.fixture
def run(tmp_path, monkeypatch):
    """The command line in an empty folder, with a store of its own; errors are raised, as `main` would print them."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("VOXCODE_STORE", str(tmp_path / "voices.db"))

    def call(*arguments, status=0, stdin=b""):
        result = CliRunner().invoke(app, [str(each) for each in arguments], input=stdin)
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        assert result.exit_code == status, result.output
        return result

    return call


@pytest.fixture
def voices(recordings):
    return {path.stem: path for path in recordings}


@pytest.fixture
def known(run, voices):
    run("enroll", "Allison", voices["allison_1"], "--metadata", '{"team": "x"}')
    run("enroll", "Carlo", voices["carlo_1"])
    return run


def test_enrolled_speakers_are_found_and_strangers_are_not(known, run, voices):
    found = json.loads(run("identify", voices["allison_2"], "--json").stdout)
    assert found["speaker"] == "Allison" and found["score"] > found["threshold"] and found["posterior"] > 0.9
    assert "Carlo: score" in run("identify", "-", stdin=voices["carlo_2"].read_bytes()).stdout
    run("store", "delete", "Carlo")
    told = run("identify", voices["carlo_2"], status=1).stdout
    assert told.startswith("nobody we know, the nearest is Allison")
    # One enrolled speaker is enough for voice log-in.
    assert json.loads(run("identify", voices["allison_2"], "--json").stdout)["speaker"] == "Allison"


def test_the_store_is_looked_at_and_changed(known, run, voices, tmp_path):
    run("enroll", "Allison", voices["allison_2"])
    listed = json.loads(run("store", "list", "--json").stdout)
    assert listed["model"].startswith("ecapa@")
    assert [(each["name"], each["num_prints"]) for each in listed["speakers"]] == [("Allison", 2), ("Carlo", 1)]
    assert "Allison    2 prints" in run("store", "list").stdout
    shown = json.loads(run("store", "show", "Allison", "--json").stdout)
    assert shown["metadata"] == {"team": "x"} and shown["prints"][0]["source"].endswith("allison_1.flac")
    assert shown["prints"][0]["quality"]["seconds"] > 3 and shown["prints"][0]["quality"]["snr"] > 10
    assert "team: x" in run("store", "show", "Allison").stdout
    run("store", "rename", "Allison", "Ally")
    run("store", "merge", "Carlo", "Ally")
    run("store", "delete", "Ally", "--print", shown["prints"][1]["id"])
    assert [each["num_prints"] for each in json.loads(run("store", "list", "--json").stdout)["speakers"]] == [2]
    # Allison's first and Carlo's under one name: two voices.
    findings = json.loads(run("store", "audit", "--json", status=1).stdout)["findings"]
    assert [each["kind"] for each in findings] == ["mixture"]
    run("store", "export", "--out", "all.json")
    with pytest.raises(SpeechError, match="--force"):
        run("store", "export", "--out", "all.json")
    assert "2 prints added" in run("store", "import", "all.json", "--store", "other.db").stdout
    (tmp_path / "broken.db").write_bytes(b"\0" * 4096 + (tmp_path / "voices.db").read_bytes()[4096:])
    assert "2 prints of broken.db" in run("store", "rescue", "broken.db", "--out", "rescued.db").stdout


def test_audit_finds_one_voice_under_two_names(known, run, voices):
    assert "0 findings" in run("store", "audit").output
    run("enroll", "Alison", voices["allison_2"])
    (finding,) = json.loads(run("store", "audit", "--json", status=1).stdout)["findings"]
    assert finding["kind"] == "duplicate" and {finding["name"], finding["other"]} == {"Alison", "Allison"}


def test_what_is_of_no_use_is_not_enrolled(run, voices, tmp_path):
    wav, rate = audio.load(voices["allison_1"], 16_000)
    other, _ = audio.load(voices["carlo_1"], 16_000)
    audio.save(tmp_path / "silence.wav", torch.zeros(1, 32_000), rate)
    audio.save(tmp_path / "short.wav", wav[:, 8_000:24_000], rate)
    audio.save(tmp_path / "two.wav", torch.cat([wav, other], dim=1), rate)
    (tmp_path / "broken.wav").write_bytes(b"RIFF, and no more")
    result = run("enroll", "Ally", voices["allison_1"], *(f"{n}.wav" for n in ("silence", "short", "two", "broken")),
                 status=1)  # fmt: skip
    assert "Ally: 1 print in" in result.stdout
    for name, reason in {"silence": "it is silence", "short": "s of speech", "two": "two voices", "broken": ""}.items():
        assert f"{name}.wav is not taken" in result.output and reason in result.output
    with pytest.raises(SpeechError, match="Bob is not enrolled: none of 1 recordings"):
        run("enroll", "Bob", "short.wav")
    assert len(json.loads(run("store", "list", "--json").stdout)["speakers"]) == 1
    run("enroll", "Bob", "short.wav", "--anyway")
    with pytest.raises(SpeechError, match="not enrolled"):
        run("enroll", "Cy", "silence.wav", "--anyway")


def test_trouble(run, voices, known, tmp_path, monkeypatch):
    with pytest.raises(SpeechError, match="nothing came in"):
        run("identify", "-")
    audio.save(tmp_path / "silence.wav", torch.zeros(1, 32_000), 16_000)
    with pytest.raises(SpeechError, match="not enough speech"):
        run("identify", "silence.wav")
    with pytest.raises(SpeechError, match="there is no store"):
        run("identify", voices["carlo_2"], "--store", "none.db")
    with pytest.raises(SpeechError, match="JSON object"):
        run("enroll", "X", voices["carlo_2"], "--metadata", "[1]")
    with pytest.raises(SpeechError, match="false positive rate"):
        run("identify", voices["carlo_2"], "--false-positive-rate", "0")
    monkeypatch.setenv("VOXCODE_STORE_KEY", "key")
    with pytest.raises(SpeechError, match="is not encrypted"):
        run("store", "list")


def test_prints_name_the_speakers_of_a_stream_and_of_a_recording(known, run, voices, tmp_path):
    pytest.importorskip("scipy")
    wav = torch.cat([audio.load(voices[name], 16_000)[0] for name in ("allison_2", "carlo_2")], dim=1)
    audio.save(tmp_path / "both.wav", wav, 16_000)
    found = json.loads(run("diarize", "both.wav", "--num-speakers", "2", "--store", "voices.db", "--json").stdout)
    assert found["speakers"] == ["Allison", "Carlo"]
