"""`speaker stream`: a line every hop, decisions, exit status, and what cannot be done."""

import io
import json
import subprocess
import sys

import numpy as np
import pytest
import soundfile

from engine import audio
from speaker import stream_cli
from speaker.calibration import Calibration
from speaker.collections import Collection
from speaker.evidence import Evidence
from speaker.model import load
from speaker.recordings import list_recordings
from speaker.resumable import embed_resumably
from speaker.stream import LiveEmbeddings


@pytest.fixture(scope="module")
def prints(tmp_path_factory, recordings):
    path = tmp_path_factory.mktemp("prints") / "prints.npz"
    embed_resumably(load("ecapa"), list_recordings(recordings), path)
    return path


def pcm(recording) -> bytes:
    return audio.to_pcm16(audio.load(recording, 16_000, mono=True)[0][0]).numpy().astype("<i2").tobytes()


def speaker(*arguments, stdin: bytes) -> tuple[int, list[str], str]:
    command = [sys.executable, "-m", "speaker.cli", "stream", *map(str, arguments)]
    done = subprocess.run(command, input=stdin, capture_output=True)
    return done.returncode, done.stdout.decode().splitlines(), done.stderr.decode()


def test_tells_who_speaks(prints, recordings):
    allison = next(path for path in recordings if path.stem == "allison_2")
    others = [str(path) for path in recordings if path.stem in ("allison_1", "carlo_1")]
    chosen = [argument for name in others for argument in ("--enrolled", name)]
    arguments = ("--prints", prints, *chosen, "--json", "--false-accept", "0.1", "--until-decided")
    status, lines, _ = speaker(*arguments, stdin=pcm(allison))
    rows = [json.loads(line) for line in lines]
    assert status == 0 and rows[-1]["decision"] == "same" and "allison_1" in rows[-1]["speaker"]
    assert [row["seconds"] for row in rows] == [0.5 * (i + 1) for i in range(len(rows))]
    assert all(row["decision"] == "undecided" for row in rows[:-1])
    assert rows[-1]["seconds"] < len(pcm(allison)) / 32_000, "it decides before the end"


def test_of_several_that_are_accepted_the_best_is_named():
    rng = np.random.default_rng(0)
    voice = rng.normal(size=8)
    vectors = np.stack([voice + 0.5 * rng.normal(size=8), rng.normal(size=8), voice + 0.1 * rng.normal(size=8)])
    made = Calibration(["x@1:cosine"], ["seconds"], [60.0, 0.0, 0.0, 0.0], -20.0, 0.1, 10, 5, 0.0)
    names = ["Alice", "Carl", "Bob"]
    matcher = stream_cli.Matcher(Collection(names, vectors, np.full(3, 3.0), "x@1"), Evidence(made), 0.01, 0.01)
    found = LiveEmbeddings(2.0, np.array([2.0]), [voice.astype(np.float32)])
    line = matcher.update(found)
    assert [test.update(0.0) for test in matcher.tests].count("same") == 2
    assert (line.speaker, line.decision) == ("Bob", "same")


def test_wav_input_and_text(prints, recordings):
    carlo = next(path for path in recordings if path.stem == "carlo_1")
    wav, rate = soundfile.read(carlo, dtype="float32")
    file = io.BytesIO()
    soundfile.write(file, np.stack([wav, wav], axis=1), rate, format="WAV", subtype="PCM_16")
    status, lines, errors = speaker("--prints", prints, "--hop", "1", stdin=file.getvalue())
    assert status == 0 and not errors
    assert "s of speech" in lines[0] and lines[-1].endswith(f"it is {carlo}")


def test_no_decision_is_told_by_the_status(prints, recordings):
    status, lines, errors = speaker("--prints", prints, "--until-decided", stdin=pcm(recordings[0])[:20_000])
    assert status == 2 and len(lines) == 2 and "undecided" in lines[-1] and not errors


@pytest.mark.parametrize(
    ("arguments", "stdin", "message"),
    [
        ((), b"", "nothing came in; is the microphone on"),
        ((), bytes(48_000), "1.5 s of silence came in"),
        (("--enrolled", "bob"), b"", "nobody is enrolled as bob"),
        (("--hop", "nan"), b"", "--hop nan: it is a number of seconds"),
        (("--rate", "5"), b"", "from 1000 to 768000"),
        (("--false-accept", "0"), b"", "probabilities"),
    ],
)
def test_trouble(prints, arguments, stdin, message):
    status, _, errors = speaker("--prints", prints, *arguments, stdin=stdin)
    assert status == 2 and message in errors and "Traceback" not in errors


def test_prints_of_another_model(prints, tmp_path):
    with np.load(prints) as parts:
        np.savez(tmp_path / "other.npz", **{**parts, "model": np.array("ecapa@0123456789ab")})
        without = {name: parts[name] for name in ("names", "embeddings", "model")}
        np.savez(tmp_path / "bare.npz", **without)
    status, _, errors = speaker("--prints", tmp_path / "other.npz", stdin=b"")
    assert status == 2 and "are embeddings of ecapa@0123456789ab, not of ecapa@" in errors
    status, _, errors = speaker("--prints", tmp_path / "bare.npz", stdin=b"")
    assert status == 2 and "how much speech" in errors


def test_importing_the_command_is_quick():
    """`speaker --help` must not wait for torch."""
    code = "import sys, speaker.stream_cli; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
    assert stream_cli.stream.__doc__
