"""`codec evaluate`: pairing, warnings, figures; the same figures as a second implementation where that is at hand."""

import importlib.util
import json
import sys

import pytest
import torch

from codec import cli
from codec.evaluate import evaluate
from codec.metrics import METRICS
from engine import audio
from engine.errors import AudioError


@pytest.fixture
def folders(tmp_path, recordings):
    """References as flac; decoded as wav: the same with noise. Stems `one` and `two`."""
    generator = torch.Generator().manual_seed(0)
    for stem, path in zip(("one", "two"), recordings[:2], strict=True):
        wav, rate = audio.load(path)
        wav = wav[:, : 3 * rate]
        (tmp_path / "ref").mkdir(exist_ok=True)
        (tmp_path / "dec").mkdir(exist_ok=True)
        audio.save(tmp_path / "ref" / f"{stem}.flac", wav, rate)
        audio.save(tmp_path / "dec" / f"{stem}.wav", wav + 0.01 * torch.randn(wav.shape, generator=generator), rate)
    return tmp_path / "ref", tmp_path / "dec"


def run(monkeypatch, capsys, *arguments):
    monkeypatch.setattr(sys, "argv", ["codec", "evaluate", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return ended.value.code or 0, *capsys.readouterr()


def test_table_and_json_agree(folders, monkeypatch, capsys):
    status, out, err = run(monkeypatch, capsys, *folders, "--json")
    result = json.loads(out)
    assert status == 0 and err == "" and result["delay"] == 0
    assert [row["file"] for row in result["files"]] == ["one", "two"]
    for name in METRICS:
        mean = result["mean"][name]
        values = [row[name] for row in result["files"]]
        assert mean["mean"] == pytest.approx(sum(values) / 2) and mean["n"] == 2
        assert mean["low"] <= mean["mean"] <= mean["high"]
    status, text, _ = run(monkeypatch, capsys, *folders)
    lines = text.splitlines()
    assert lines[0].split()[:4] == ["file", "seconds", "PESQ-WB", "STOI"] and len(lines) == 5
    assert f"{result['files'][0]['pesq_wb']:.2f}" in lines[1] and lines[3].startswith("mean of 2")


def test_other_rates_are_resampled(folders):
    exact = evaluate(*folders)
    wav, rate = audio.load(folders[1] / "one.wav")
    audio.save(folders[1] / "one.wav", audio.resample(wav, rate, 48000), 48000, subtype="PCM_24")
    assert evaluate(*folders).files[0].metrics["pesq_wb"] == pytest.approx(exact.files[0].metrics["pesq_wb"], abs=0.1)
    assert evaluate(*folders).files[0].length_difference == 0


def test_what_the_figures_do_not_show_is_said(folders, monkeypatch, capsys):
    wav, rate = audio.load(folders[1] / "one.wav")
    audio.save(folders[1] / "one.wav", wav[:, :-480], rate)
    audio.save(folders[0] / "alone.wav", wav, rate)
    status, out, err = run(monkeypatch, capsys, *folders)
    assert status == 0 and "mean of 2" in out
    assert "alone.wav has no partner" in err and "one: decoded is 480 samples shorter" in err


def test_what_is_undefined_for_a_file_is_not_counted(folders):
    for folder in folders:
        audio.save(next(folder.glob("one.*")), torch.zeros(1, 48000), 16000)
    lines = evaluate(*folders).to_text().splitlines()
    assert lines[3].split()[0] == "mean" and " of 2" not in lines[3]
    assert lines[5].split() == ["files", "counted", "1", "1", "1", "2"]


def test_a_shift_costs_unless_aligned(folders):
    straight = evaluate(*folders)
    for stem in ("one", "two"):
        wav, rate = audio.load(folders[1] / f"{stem}.wav")
        audio.save(folders[1] / f"{stem}.wav", torch.nn.functional.pad(wav, (100, 0)), rate)
    shifted, aligned = evaluate(*folders), evaluate(*folders, align=True)
    assert shifted.mean()["si_sdr"].mean < straight.mean()["si_sdr"].mean - 5
    assert aligned.delay == 100
    for name in METRICS:
        assert aligned.mean()[name].mean == pytest.approx(straight.mean()[name].mean)


def test_folders_that_do_not_match_are_refused(folders, tmp_path):
    (tmp_path / "void").mkdir()
    with pytest.raises(AudioError, match="paired by name"):
        evaluate(folders[0], tmp_path / "void")
    with pytest.raises(AudioError, match="is not a directory"):
        evaluate(folders[0], tmp_path / "nowhere")
    (folders[1] / "one.flac").write_bytes((folders[0] / "one.flac").read_bytes())
    with pytest.raises(AudioError, match="which one is meant"):
        evaluate(*folders)


def test_figures_equal_the_oracle(folders, shared, tmp_path):
    """The script behind the published comparison table, on the same files."""
    spec = importlib.util.spec_from_file_location("oracle", shared / "peers" / "evaluate.py")
    assert spec is not None and spec.loader is not None
    oracle = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(oracle)
    for stem in ("one", "two"):
        wav, rate = audio.load(folders[0] / f"{stem}.flac")
        audio.save(folders[0] / f"{stem}.wav", wav, rate)
        (folders[0] / f"{stem}.flac").unlink()
    rows, _ = oracle.evaluate(*map(str, folders), metrics=["pesq", "stoi", "sisdr", "mel"], delay=0, verbose=False)
    for row, file in zip(rows, evaluate(*folders).files, strict=True):
        expected = [row["pesq"], row["stoi"], row["sisdr"], row["mel"]]
        assert list(file.metrics.values()) == pytest.approx(expected, rel=1e-5)
