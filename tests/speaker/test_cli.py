"""The command `speaker`, as a user meets it."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch

import speaker
from engine import audio
from engine.features import kaldi_fbank
from speaker.backbones.ecapa_tdnn import EcapaTdnnConfig
from speaker.embed import LONG_SECONDS, embed_files
from speaker.model import SpeakerConfig, SpeakerEncoder


@pytest.fixture(scope="module")
def folder(tmp_path_factory, recordings):
    """A small untrained encoder in `mine`, recordings in `in`, one of them no audio, one too short."""
    path = tmp_path_factory.mktemp("speaker")
    torch.manual_seed(0)
    network = EcapaTdnnConfig(num_bins=40, channels=32, mfa_channels=48, embedding_dim=24)
    encoder = SpeakerEncoder(SpeakerConfig(front_end=kaldi_fbank(40), network=network)).eval()
    speaker.save(path / "mine", encoder, "# mine")
    (path / "in").mkdir()
    for recording in recordings[:3]:
        wav, rate = audio.load(recording, mono=True)
        audio.save(path / "in" / f"{recording.stem}.wav", wav, rate)
    audio.save(path / "in" / "short.wav", torch.zeros(1, 100), 16000)
    (path / "in" / "text.wav").write_text("hello")
    return path


def run(*arguments, cwd, root, status=0):
    command = [sys.executable, "-c", "from speaker.cli import main; main()", *map(str, arguments)]
    environment = {"PYTHONPATH": str(root), "PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == status, done.stderr
    return done.stdout, done.stderr


def test_embed_lists_what_failed_and_keeps_the_rest(folder, root):
    told, problems = run("embed", "in", "--model", "mine", "--out", "e.npz", cwd=folder, root=root, status=1)
    assert "3 embeddings of 24 numbers" in told
    assert "short.wav: 0.01 s are too short" in problems and "text.wav is not audio" in problems
    with np.load(folder / "e.npz") as stored:
        assert stored["embeddings"].shape == (3, 24) and stored["embeddings"].dtype == np.float32
        encoder = speaker.load(folder / "mine")
        for name, vector in zip(stored["names"], stored["embeddings"], strict=True):
            wav = audio.load(folder / name, 16000, mono=True)[0]
            np.testing.assert_allclose(vector, encoder(wav)[0].numpy(), atol=1e-4)


def test_embed_takes_lists_and_refuses_to_overwrite_before_it_works(folder, root):
    first = sorted((folder / "in").glob("*.wav"))[0].name
    (folder / "list.csv").write_text(f"path,split\nin/{first},test\n")
    run("embed", "list.csv", "--model", "mine", "--out", "listed.npz", cwd=folder, root=root)
    with np.load(folder / "listed.npz") as stored:
        assert stored["names"].tolist() == [f"in/{first}"]
    told = run("embed", "in", "--model", "./none", "--out", "listed.npz", cwd=folder, root=root, status=2)[1]
    assert "listed.npz exists; --force overwrites it" in told
    told = run("embed", "in", "--model", "./none", "--out", "no/e.npz", cwd=folder, root=root, status=2)[1]
    assert "no such folder to write e.npz to" in told
    run("embed", "list.csv", "--model", "mine", "--out", "listed.npz", "--force", cwd=folder, root=root)


def test_half_precision_points_the_same_way(folder):
    encoder, files = speaker.load(folder / "mine"), sorted((folder / "in").glob("*.wav"))
    whole, half = (np.array(embed_files(encoder, files, bfloat16=flag).vectors, dtype=float) for flag in (False, True))
    cosines = (whole * half).sum(1) / np.linalg.norm(whole, axis=1) / np.linalg.norm(half, axis=1)
    assert len(cosines) == 3 and cosines.min() > 0.999 and (whole != half).any()


def test_verify_decides_by_its_exit_status(folder, root):
    a, b = sorted((folder / "in").glob("*.wav"))[:2]
    told, problems = run("verify", a, b, "--model", "mine", "--json", cwd=folder, root=root, status=2)
    found = json.loads(told)
    assert -1 <= found["cosine"] < 1 and found["same"] is None and "nothing is decided" in problems
    assert (
        "same speaker by the threshold 0.9 (not calibrated"
        in run("verify", a, a, "--model", "mine", "--threshold", "0.9", cwd=folder, root=root)[0]
    )
    assert (
        "different speakers"
        in run("verify", a, b, "--model", "mine", "--threshold", "1", cwd=folder, root=root, status=1)[0]
    )
    for option, message in (("--threshold", "--threshold nan: it is a cosine"), ("--cost-miss", "costs are above 0")):
        assert message in run("verify", a, b, "--model", "mine", option, "nan", cwd=folder, root=root, status=2)[1]


def test_info(folder, root):
    facts = json.loads(run("info", "./mine", "--json", cwd=folder, root=root)[0])
    assert facts["kind"] == "ecapa_tdnn" and facts["embedding_dim"] == 24 and facts["front_end"]["num_bins"] == 40
    assert facts["receptive_field_seconds"] is None and 1e6 < facts["macs_per_second"] < 1e8


def test_errors_say_the_way_out(folder, root):
    told = run("verify", "in/a.wav", "in/b.wav", "--model", "./none", cwd=folder, root=root, status=2)[1]
    assert "there is no model './none'" in told
    assert "must end in .npz" in run("embed", "in", "--out", "e.csv", cwd=folder, root=root, status=2)[1]
    assert "no such file" in run("convert", "none.ckpt", "--out", "x", cwd=folder, root=root, status=2)[1]
    assert "--force" in run("convert", "none.ckpt", "--out", "mine", cwd=folder, root=root, status=2)[1]
    (folder / "taken").write_text("x")
    told = run("convert", "none.ckpt", "--out", "taken", "--force", cwd=folder, root=root, status=2)[1]
    assert "taken is a file; name a folder" in told
    told = run("embed", "in", "--model", "mine", "--device", "meta", "--out", "m.npz", cwd=folder, root=root, status=2)
    assert "no computing on 'meta'" in told[1] and "Traceback" not in told[1]


def test_what_nobody_foresaw_is_no_answer(root):
    """1 is Python's own status, and that of two different speakers."""
    code = "from speaker import cli; cli.app = lambda **_: 1 / 0; cli.main()"
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2 and "Traceback" in done.stderr and "ZeroDivisionError" in done.stderr


def test_a_long_file_equals_the_direct_result(folder):
    encoder = speaker.load(folder / "mine")
    wav = 0.1 * torch.randn(1, int((LONG_SECONDS + 10) * 16000), generator=torch.Generator().manual_seed(0))
    audio.save(folder / "long.flac", wav, 16000)
    found = embed_files(encoder, [folder / "long.flac"]).vectors[0]
    direct = encoder(audio.load(folder / "long.flac")[0])[0].numpy()
    cosine = np.dot(found.astype(float), direct) / np.linalg.norm(found) / np.linalg.norm(direct)
    assert 1 - cosine < 1e-6


def test_digital_silence_does_not_hide_the_voice(recordings):
    """Of a muted or gated microphone; with Kaldi's floor the voice was like nobody, itself included."""
    voices = {path.stem: audio.load(path, sample_rate=16000, mono=True)[0] for path in recordings}
    ada, again, bert = voices["allison_1"], voices["allison_2"], voices["carlo_2"]
    after, between = torch.cat([ada, torch.zeros(1, 32_000)], 1), ada.clone()
    between[:, 20_000:28_000] = 0
    encoder = speaker.load("ecapa")
    with torch.inference_mode():
        whole, after, between, again, bert = (
            torch.nn.functional.normalize(encoder(wav))[0] for wav in (ada, after, between, again, bert)
        )
    for muted in (after, between):
        assert muted @ whole > 0.75 and muted @ again > 0.6 and muted @ bert < 0.45


def test_the_demo_tells_the_bundled_speakers_apart(capsys):
    from speaker import demo

    assert demo.main() == 0
    lines = capsys.readouterr().out.splitlines()[:-1]
    for line in lines:
        first, second = (name.split("_")[0] for name in line.split()[:2])
        assert ("same speaker" if first == second else "different speakers") in line
    assert len(lines) == 6
