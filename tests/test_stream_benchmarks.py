"""The commands that measure live coding, end to end on bundled recordings."""

import ctypes.util
import importlib.util
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from engine import audio

needs_eval = pytest.mark.skipif(
    not (importlib.util.find_spec("pesq") and importlib.util.find_spec("pystoi")),
    reason="measuring needs the extra eval",
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory, recordings):
    """Two seconds of two of the bundled recordings."""
    path = tmp_path_factory.mktemp("speech")
    for recording in recordings[:2]:
        wav, rate = audio.load(recording, 16000, mono=True)
        audio.save(path / f"{recording.stem}.wav", wav[:, 16000:48000], 16000)
    return path


@pytest.fixture
def document(tmp_path):
    path = tmp_path / "streaming.md"
    path.write_text("".join(f"<!-- {name} -->\nold\n<!-- /{name} -->\n" for name in ("loss", "silence", "memory")))
    return path


def table(document, name):
    """Cells of the rows of a section."""
    text = document.read_text().split(f"<!-- {name} -->\n")[1].split(f"<!-- /{name} -->")[0]
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines()[2:] if line.startswith("|")]


@needs_eval
def test_losses_lower_the_scores_and_redundancy_costs_its_rate(folder, document):
    from benchmarks import stream_loss

    choice = ["--losses", "0", "20", "--ours", "4:0", "4:1", "--opus", "--write", str(document)]
    assert stream_loss.main([str(folder), *choice]) == 0
    plain, hurt, safe, healed = table(document, "loss")
    assert (float(plain[1]), float(safe[1])) == pytest.approx((6.8, 8.4), abs=0.2)  # 17 and 21 bytes per 20 ms
    scores = [float(row[3].split()[0]) for row in (plain, hurt, safe, healed)]
    assert scores[0] == scores[2] and scores[1] < scores[0] and scores[1] < scores[3] < scores[2]


@pytest.mark.skipif(ctypes.util.find_library("opus") is None, reason="needs libopus")
def test_opus_comes_back_aligned_and_its_redundancy_helps(recordings):
    from benchmarks import opus_fec

    wav = audio.load(recordings[0], 16000, mono=True)[0][0, 16000:64000].numpy()
    packets, lag = opus_fec.encode(wav, 24_000, 20)
    none = np.zeros(len(packets), dtype=bool)
    heard = opus_fec.decode(packets, none, lag, len(wav))
    assert np.corrcoef(wav, heard)[0, 1] > 0.9
    lost = none.copy()
    lost[10::5] = True
    without, lag = opus_fec.encode(wav, 24_000, 20, fec=False)
    errors = []
    for sent in (packets, without):
        errors.append(
            np.square(opus_fec.decode(sent, lost, lag, len(wav)) - opus_fec.decode(sent, none, lag, len(wav))).sum()
        )
    assert errors[0] < 0.7 * errors[1]


@needs_eval
def test_silence_is_counted(folder, document, tmp_path):
    from benchmarks import stream_silence

    quiet = tmp_path / "quiet"
    quiet.mkdir()
    wav = audio.load(next(folder.iterdir()), 16000)[0]
    pause = 1e-4 * torch.randn(1, 64000, generator=torch.Generator().manual_seed(0))
    audio.save(quiet / "x.wav", torch.cat([wav, pause], dim=1), 16000)
    assert stream_silence.main([str(quiet), "--write", str(document)]) == 0
    ((name, active, saved, *_, count),) = table(document, "silence")
    assert (name, count) == ("quiet", "1")
    assert 20 < int(active.split()[0]) < 50 and 45 < int(saved.split()[0]) < 75  # 2 s of 6 are speech


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_memory_is_that_of_a_process_of_its_own(folder, document):
    from benchmarks import stream_memory

    assert stream_memory.main([str(next(folder.iterdir())), "--seconds", "5", "--write", str(document)]) == 0
    at_once, short = table(document, "memory")
    assert at_once[0] == "60 s, at once" and short[0] == "5 s"
    assert all(100 < float(cell.split()[0]) < 2000 for cell in (short[1], short[3]))
    assert all(float(cell) > 0 for cell in (at_once[2], at_once[4], short[2], short[4]))


def test_memory_is_of_the_model_asked_for(folder, root, tmp_path, monkeypatch):
    from benchmarks import stream_memory

    commands = []
    monkeypatch.setattr(stream_memory, "_run", lambda command, folder: commands.append(command) or (1e8, 1.0))
    (tmp_path / "mine").symlink_to(root / "checkpoints" / "esc_live")
    monkeypatch.chdir(tmp_path)
    assert stream_memory.main([str(next(folder.iterdir())), "--seconds", "1", "--model", "mine"]) == 0
    models = [Path(command[command.index("--model") + 1]) for command in commands]
    assert len(models) == 2 and all(path.is_absolute() and path.samefile("mine") for path in models)
    assert stream_memory.elsewhere("esc_live") == "esc_live"


@pytest.mark.parametrize("name", ["stream_loss", "stream_silence"])
def test_folders_without_sound_are_said_to_be(name, tmp_path, capsys):
    command = importlib.import_module(f"benchmarks.{name}")
    assert command.main([str(tmp_path)]) == 2
    assert f"{name}: error: no audio file below {tmp_path}" in capsys.readouterr().err


def test_a_backend_that_fails_at_one_size_keeps_its_columns(monkeypatch):
    from benchmarks import stream_latency

    def two_at_most(model, batch):
        if batch > 2:
            raise RuntimeError("too many")
        return lambda wav: (0.01, 0.01)

    backends = {"all": lambda model, batch: two_at_most(model, 1), "few": two_at_most,
                "none": lambda model, batch: two_at_most(model, 3)}  # fmt: skip
    monkeypatch.setattr(stream_latency, "BACKENDS", backends)
    model = SimpleNamespace(config=SimpleNamespace(samples_per_frame=320))
    rows = stream_latency.capacity(model, ["all", "few", "none"], [4, 2], 10)
    assert rows == [["all", "4", "2"], ["few", "-", "2"]]


def test_latency_of_what_runs_here(tmp_path):
    from benchmarks import stream_latency

    document = tmp_path / "streaming.md"
    document.write_text("<!-- latency -->\n<!-- /latency -->\n")
    backends = ["PyTorch", *(["ONNX Runtime"] if importlib.util.find_spec("onnxruntime") else [])]
    choice = ["--frames", "5", "--sessions", "2", "--backends", *backends, "--write", str(document)]
    assert stream_latency.main(choice) == 0
    rows = table(document, "latency")
    assert [row[0] for row in rows[: len(backends)]] == backends
    for row in rows[: len(backends)]:
        for cell in row[1:4]:
            low, middle, high = map(float, cell.split(" / "))
            assert 0 < low <= middle <= high < 1000
