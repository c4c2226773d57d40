"""The measuring commands end to end on the bundled recordings; their arithmetic against known answers."""

import importlib.util
import json
import math
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import coders, explain, report
from codec import files, metrics
from engine import audio
from engine.errors import SpeechError

missing = {name: importlib.util.find_spec(name) is None for name in ("pesq", "pystoi", "matplotlib", "lightning")}
needs_eval = pytest.mark.skipif(missing["pesq"] or missing["pystoi"], reason="measuring needs the extra eval")
needs_opus = pytest.mark.skipif(not (shutil.which("opusenc") and shutil.which("opusdec")), reason="needs opus-tools")


@pytest.fixture(scope="module")
def folder(tmp_path_factory, recordings):
    """Two seconds of two of the bundled recordings."""
    path = tmp_path_factory.mktemp("speech")
    for recording in recordings[::2]:
        wav, rate = audio.load(recording, mono=True)
        audio.save(path / f"{recording.stem}.wav", wav[:, rate : 3 * rate], rate)
    return path


@pytest.fixture(scope="module")
def document(tmp_path_factory):
    path = tmp_path_factory.mktemp("docs") / "quality.md"
    names = ("quality", "more", "paired", "worst", "correlations", "run", "weaknesses", "throughput", "learning")
    path.write_text("".join(f"text\n<!-- {name} -->\nold\n<!-- /{name} -->\n" for name in names))
    return path


def section(path: Path, name: str) -> str:
    return path.read_text().partition(f"<!-- {name} -->\n")[2].partition(f"<!-- /{name} -->")[0]


@needs_eval
def test_quality_writes_tables_and_figures(folder, document, tmp_path, capsys):
    from benchmarks import quality

    given = [str(folder), "--no-opus", "--more", "estoi", "--json", str(tmp_path / "all.json")]
    given += [] if missing["matplotlib"] else ["--images", str(tmp_path / "images")]
    assert quality.main([*given, "--write", str(document)]) == 0
    lines = section(document, "quality").splitlines()
    assert len(lines) == 2 + 6 and all(line.startswith("| esc_live |") for line in lines[2:])
    pesq = [float(line.split("|")[4].split("[")[0]) for line in lines[2:]]
    assert pesq[-1] > pesq[0] > 1  # 9 kbit/s against 1.5
    figures = json.loads((tmp_path / "all.json").read_text())
    # The table's mean is the mean of the files, and a file's figure is what decoding it here gives.
    best = figures["coders"][-1]["label"]
    scores = [file[best]["pesq_wb"] for file in figures["files"]]
    assert pesq[-1] == pytest.approx(np.mean(scores), abs=0.006)
    sample = coders.load_samples([folder])[0]
    decoded = coders.ours(files.load_model("esc_live")).code(sample.wav)[-1].wav
    assert scores[0] == pytest.approx(metrics.pesq_wb(sample.wav, decoded), abs=1e-6)
    assert "estoi" in figures["files"][0][best] and "ESTOI" in section(document, "more")
    assert section(document, "weaknesses") == "old\n"  # not its to write
    if not missing["matplotlib"]:
        assert (tmp_path / "images" / "rate_quality.png").read_bytes().startswith(b"\x89PNG")
    assert section(document, "quality").strip() in capsys.readouterr().out


@needs_eval
@needs_opus
def test_weaknesses_measures_each_condition_beside_opus(folder, document, tmp_path):
    from benchmarks import weaknesses

    audio.save(tmp_path / "noise.wav", 0.1 * torch.randn(16000, generator=torch.Generator().manual_seed(0)), 16000)
    given = ["--speech", str(folder), "--noise", str(tmp_path), "--snr", "0", "--levels", "-46", "--seconds", "2"]
    assert weaknesses.main([*given, f"copy={folder}", "--limit", "1", "--write", str(document)]) == 0
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in section(document, "weaknesses").splitlines()]
    lines = {row[0]: dict(zip(rows[0], row, strict=True)) for row in rows[2:]}
    assert list(lines) == ["clean speech", "copy", "noise at 0 dB SNR", "level -46 dBFS"]
    assert list(lines["copy"].values())[1:] == list(lines["clean speech"].values())[1:]
    pesq = {label: float(row["PESQ-WB esc_live 9"].split()[0]) for label, row in lines.items()}
    assert pesq["noise at 0 dB SNR"] < pesq["clean speech"]
    difference = float(lines["copy"]["PESQ-WB esc_live 9 against Opus VBR 9"].split()[0])
    assert difference == pytest.approx(pesq["copy"] - float(lines["copy"]["PESQ-WB Opus VBR 9"]), abs=0.011)


def test_noise_and_levels_are_what_they_say(recordings):
    from benchmarks.weaknesses import at_level, with_noise

    wav = audio.load(recordings[0], sample_rate=coders.RATE, mono=True)[0][0].numpy()
    noise = np.random.default_rng(0).standard_normal(5000).astype(np.float32)
    for snr in (20, -3):
        noisy = with_noise(wav, noise, snr)
        gain = np.dot(noisy, wav) / np.dot(wav, wav)  # it may have been made quieter to keep from clipping
        rest = noisy - gain * wav
        assert 10 * np.log10(gain**2 * np.dot(wav, wav) / np.dot(rest, rest)) == pytest.approx(snr, abs=0.3)
    assert 20 * np.log10(np.sqrt(np.mean(at_level(wav, -40) ** 2))) == pytest.approx(-40, abs=1e-3)
    assert np.abs(at_level(wav, 0)).max() <= 0.99
    late = np.concatenate([np.zeros(len(wav), np.float32), noise])
    assert np.array_equal(with_noise(wav, late, 10), with_noise(wav, noise, 10))


def test_features_of_a_known_sound():
    time = np.arange(2 * coders.RATE) / coders.RATE
    tone = sum(np.sin(2 * np.pi * 200 * k * time) / k for k in range(1, 11))  # a voice of 200 Hz, nothing above 2 kHz
    wav = (0.1 * tone * (time < 1)).astype(np.float32)
    wav += 1e-3 * np.random.default_rng(0).standard_normal(len(wav)).astype(np.float32)
    found = explain.features(wav)
    assert found["pitch"] == pytest.approx(200, rel=0.02)
    assert found["active"] == pytest.approx(0.5, abs=0.03) and found["seconds"] == 2
    power = np.mean((0.1 * tone[: coders.RATE]) ** 2)
    assert found["level"] == pytest.approx(10 * np.log10(power), abs=0.3)
    assert found["snr"] == pytest.approx(10 * np.log10(power / 1e-6), abs=0.6)
    assert found["high"] == pytest.approx(10 * np.log10(0.5e-6 / power), abs=1)  # half of the white noise


def test_rank_correlation_and_what_folders_explain():
    rng = np.random.default_rng(0)
    a = rng.standard_normal(300)
    assert explain.spearman(a, np.exp(a)) == pytest.approx(1) and explain.spearman(a, -a) == pytest.approx(-1)
    assert explain.spearman(np.array([1.0, 1, 2, 3]), np.array([1.0, 1, 2, 3])) == pytest.approx(1)  # ties
    groups = ["x"] * 150 + ["y"] * 150
    offset = np.repeat([0.0, 10.0], 150)
    b, c = rng.standard_normal((2, 300)) + offset  # nothing in common but the folder
    assert explain.spearman(b, c) > 0.7 and abs(explain.spearman(b, c, groups)) < 0.2
    noise = rng.standard_normal((2, 300))
    assert explain.explained([a, noise[0]], a + 0.1 * noise[1], groups) > 0.95
    assert abs(explain.explained([b, noise[0]], c, groups)) < 0.05
    interval = explain.spearman_interval(a, a + rng.standard_normal(300))
    assert interval.low < interval.mean < interval.high and 0.5 < interval.mean < 0.85


def test_excerpts_are_the_parts_they_say(folder, tmp_path, capsys):
    whole = {sample.name: sample.wav for sample in coders.load_samples([folder])}
    name = min(whole)
    listing = tmp_path / "files.csv"
    listing.write_text(f"source,start_sample_16k,seconds\n{name}.flac,800,0.5\nelsewhere.wav,0,1\n")
    (sample,) = coders.load_samples([folder], excerpts=listing)
    assert np.array_equal(sample.wav, whole[name][800:8800])
    assert "1 of 2 excerpts" in capsys.readouterr().err
    listing.write_text(f"source,start_sample_16k,seconds\n{name}.wav,999999,1\n")
    with pytest.raises(SpeechError, match="no excerpt from 999999 on"):
        coders.load_samples([folder], excerpts=listing)
    listing.write_text(f"source,start_sample_16k,seconds\n{name}.wav,0,1\n")
    shutil.copytree(folder, tmp_path / "again")
    with pytest.raises(SpeechError, match="may be any of"):
        coders.load_samples([folder, tmp_path / "again"], excerpts=listing)


def test_files_without_a_figure_are_not_counted():
    from benchmarks import quality

    scores = [[2.0, 1.0, 3.0, math.nan], [1.0, 2.0, 1.0, 1.0]]
    own, peer = (
        quality.Row(name, 6.0, 6.0, [{"pesq_wb": value, "stoi": 0.9} for value in values])
        for name, values in zip(("ours", "theirs"), scores, strict=True)
    )
    assert quality.main_table([own], ["pesq_wb"]).endswith("| 3 |")
    assert quality.main_table([own], ["pesq_wb", "stoi"]).endswith("| 3 to 4 |")
    assert quality.paired_table([own], [peer]).splitlines()[-1].split("|")[4].strip() == "67 %"
    assert report.share_above([math.nan]) == "-"


def test_notices_are_no_part_of_the_speeds(monkeypatch, capsys):
    from benchmarks import codec_speed

    monkeypatch.setitem(sys.modules, "transformers", None)
    assert codec_speed.encodec(1.0) == [] and codec_speed.live_model("no such model").config.levels
    told = capsys.readouterr()
    assert told.out == "" and "transformers" in told.err and "random weights" in told.err


@needs_opus
def test_opus_is_aligned_and_its_container_left_out(recordings):
    wav = coders.load_samples([recordings[0].parent], limit=1)[0].wav[:32000]
    coded = coders.code_with_opus(wav, 24)
    assert 0 < coded.payload_bits / 8 < coded.size
    ((reference, decoded),) = coders.aligned([(wav, coded.wav)], align=True)
    assert len(reference) == len(decoded) and metrics.si_sdr(reference, decoded) > 5


def test_lyra_at_its_three_rates(shared):
    """The mel distances of Lyra v2 on 40 excerpts are 2.8, 2.5 and 2.4; one file must be near and ordered alike."""
    pytest.importorskip("ai_edge_litert", reason="runs the graphs of Lyra")
    from benchmarks.lyra import lyra

    coder = lyra(shared / "peers" / "lyra")
    wav = coders.load_samples([shared / "data" / "test" / "vctk"], limit=1)[0].wav[: 4 * coders.RATE]
    results = coder.code(wav)
    assert [round(r.payload_bits / 4000, 1) for r in results] == [3.2, 6.0, 9.2]
    distances = [metrics.mel_distance(*coders.aligned([(wav, r.wav)], coder.align)[0]) for r in results]
    assert 4 > distances[0] > distances[1] > distances[2] > 1.5


def test_lyra_and_marks_that_are_missing_say_what_to_do(tmp_path):
    from benchmarks.lyra import lyra

    with pytest.raises(SpeechError, match="model_coeffs"):
        lyra(tmp_path)
    (tmp_path / "x.md").write_text("no marks")
    with pytest.raises(SpeechError, match="<!-- quality -->"):
        report.write_sections(tmp_path / "x.md", {"quality": "table"})
    with pytest.raises(SpeechError, match="there is no"):
        report.write_sections(tmp_path / "y.md", {"quality": "table"})


@pytest.mark.skipif(missing["lightning"], reason="training needs the extra train")
@pytest.mark.filterwarnings("ignore:You defined a `validation_step`:UserWarning")
@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize(("recipe", "seconds"), [("esc_live:tiny", 4 * 24 * 0.02), ("speaker:tiny", 8 * 0.75)])
def test_throughput_divides_the_whole_step(document, monkeypatch, recipe, seconds):
    from benchmarks import train_throughput

    monkeypatch.setattr(train_throughput, "WARM_UP", 1)
    given = [recipe, "--precision", "32-true", "--steps", "2", "--write", str(document)]
    assert train_throughput.main(given) == 0
    cells = [cell.strip() for cell in section(document, "throughput").splitlines()[2].split("|")[1:-1]]
    assert cells[:2] == [recipe, "32-true"]
    step, phases = float(cells[3].split()[0]), [float(cell) for cell in cells[4:]]
    assert sum(phases) == pytest.approx(step, abs=1) and all(phase > 0 for phase in phases)
    assert float(cells[2]) == pytest.approx(seconds / step * 1000, rel=0.1)  # a batch of the tiny recipe


@pytest.mark.skipif(missing["lightning"], reason="training needs the extra train")
@pytest.mark.filterwarnings("ignore:You defined a `validation_step`:UserWarning")
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_throughput_of_a_training_that_was_stopped_is_none(monkeypatch, capsys):
    """As on a signal: the trainer ends after the step it is in."""
    from benchmarks import train_throughput

    monkeypatch.setattr(train_throughput.Stop, "on_train_start", lambda stop, *_: setattr(stop, "caught", 15))
    assert train_throughput.main(["speaker:tiny", "--precision", "32-true", "--steps", "2"]) == 2
    assert "stopped after 1 of 6 steps" in capsys.readouterr().err


@pytest.mark.skipif(missing["lightning"] or missing["matplotlib"], reason="needs the extras train and eval")
def test_learning_curve_finds_the_gain_of_a_doubling(tmp_path, document):
    from benchmarks import learning_curve

    run = tmp_path / "run" / "metrics.csv"
    run.parent.mkdir()
    hours = np.arange(1, 17)
    lines = [f"{10 * h},{h},{1.5 + 0.2 * np.log2(h) + 0.01 * (-1) ** h}" for h in hours]
    run.write_text("\n".join(["step,hours_seen,valid/pesq6", *lines]) + "\n")
    assert learning_curve.main([str(run), "--png", str(tmp_path / "x.png"), "--write", str(document)]) == 0
    cells = [cell.strip() for cell in section(document, "learning").splitlines()[2].split("|")[1:-1]]
    assert cells[0] == "run" and float(cells[1]) == 16
    slope, error = map(float, cells[3].split(" ± "))
    assert abs(slope - 0.2) < error < 0.1
    value, error = map(float, cells[5].split(" ± "))
    assert abs(value - (1.5 + 0.2 * 6)) < error < 0.2
    assert (tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")
    run.write_text("step,hours_seen,valid/pesq6\n10,1,2\n")
    assert learning_curve.main([str(run)]) == 2


@pytest.mark.skipif(missing["lightning"], reason="needs the extra train")
def test_learning_curves_of_odd_tables(tmp_path, capsys):
    from benchmarks import learning_curve

    def table(name: str, hours: list[float], values: list[float], column: str = "hours_seen") -> str:
        path = tmp_path / name / "run" / "metrics.csv"
        path.parent.mkdir(parents=True)
        lines = [f"{step},{h},{v}" for step, (h, v) in enumerate(zip(hours, values, strict=True))]
        path.write_text("\n".join([f"step,{column},valid/pesq6", *lines]) + "\n")
        return str(path)

    whole, holes = table("a", [1, 2, 4, 8], [1, 2, 3, 4]), table("b", [1, 2, 3, 4, 8], [1, 2, math.nan, 3, 4])
    assert learning_curve.main([whole, holes]) == 0
    rows = [line.split(" | ") for line in capsys.readouterr().out.splitlines()[2:]]
    assert [row[0].strip("| ") for row in rows] == [whole, holes] and rows[0][1:] == rows[1][1:]
    for path, message in ((table("c", [3] * 9, range(9)), "all at 3 hours"),
                          (table("d", [1, 2, 3, 4], [1] * 4, "hours"), "no column hours_seen")):  # fmt: skip
        assert learning_curve.main([path]) == 2
        assert message in capsys.readouterr().err
