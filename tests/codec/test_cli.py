"""The command `codec` as people use it, on a tiny model with random weights: what is said, written, refused."""

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
import soundfile
import torch

from codec import bitstream, cli, files
from codec.config import EscLiveConfig
from codec.live import EscLive
from engine import audio, checkpoint

TINY = EscLiveConfig(
    channels=(16, 16, 16, 16),
    encoder_depths=(1, 0, 0, 1),
    decoder_depths=(1, 0, 0, 0, 0, 1),
    codebook_dims=(4, 4, 4, 4, 4, 4),
)


def save_model(folder, seed):
    torch.manual_seed(seed)
    checkpoint.save(folder, EscLive(TINY), kind="esc_live", config=TINY, card="# tiny\n\nRandom weights for tests.")
    return folder


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A folder of two models, `tiny` and `other`."""
    folder = tmp_path_factory.mktemp("models")
    save_model(folder / "tiny", 0)
    save_model(folder / "other", 1)
    return folder


@pytest.fixture
def speech(tmp_path, recordings):
    """Three seconds of a bundled recording as `speech.wav`."""
    wav, rate = audio.load(recordings[0])
    audio.save(tmp_path / "speech.wav", wav[:, : 3 * rate], rate)
    return tmp_path / "speech.wav"


@pytest.fixture
def codec(tmp_path, models, monkeypatch, capsys):
    """Run a command line in `tmp_path`, with `tiny` shipped and the default; return (status, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(models / "tiny", tmp_path / ".shipped" / "tiny")
    monkeypatch.setattr(checkpoint, "_roots", lambda: [tmp_path / ".shipped"])
    files.load_model.cache_clear()

    def run(*arguments):
        argv = [str(a) for a in arguments]
        if argv[0] == "encode" and "--model" not in argv:
            argv += ["--model", "tiny"]
        monkeypatch.setattr(sys, "argv", ["codec", *argv])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            cli.main()
        out, err = capsys.readouterr()
        return ended.value.code or 0, out, err

    return run


def run_outside(*arguments, **options):
    """Run the command in a process of its own."""
    code = "from codec.cli import main; main()"
    root = os.path.dirname(os.path.dirname(cli.__file__))
    environment = {**os.environ, "PYTHONPATH": root, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)], capture_output=True, env=environment, timeout=120, **options
    )


@pytest.mark.parametrize(
    ("suffix", "rate", "channels", "num_samples"),
    [(".wav", 44100, 2, 30001), (".flac", 8000, 1, 4097), (".wav", 16000, 3, 1), (".wav", 48000, 1, 3)],
)
def test_every_sample_comes_back(codec, tmp_path, suffix, rate, channels, num_samples):
    wav = 0.1 * torch.randn(channels, num_samples, generator=torch.Generator().manual_seed(0))
    audio.save(tmp_path / f"in{suffix}", wav, rate)
    assert codec("encode", f"in{suffix}", "a.esc")[0] == 0
    assert codec("decode", "a.esc", "out.wav")[0] == 0
    decoded = audio.probe(tmp_path / "out.wav")
    assert (decoded.sample_rate, decoded.channels, decoded.num_samples) == (rate, channels, num_samples)
    assert codec("encode", f"in{suffix}", "mono.esc", "--mono")[0] == 0
    assert json.loads(codec("info", "mono.esc", "--json")[1])["channels"] == 1


def test_files_equal_the_model_called_directly(codec, speech, tmp_path, models):
    """Blocks, headers and rates in between must change nothing."""
    codec("encode", "speech.wav", "a.esc", "--bitrate", "6")
    codec("decode", "a.esc", "out.wav")
    model = files.load_model(str(models / "tiny"))
    wav, _ = audio.load(speech)
    codes = model.encode(wav, levels=4)
    header, stored, lost = bitstream.unpack((tmp_path / "a.esc").read_bytes())
    assert (torch.from_numpy(stored) == codes).all() and lost == []
    assert (header.model_name, header.model_id, header.num_samples) == ("tiny", model.model_id, wav.shape[1])
    audio.save(tmp_path / "direct.wav", model.decode(codes, wav.shape[1]), 16000)
    assert (tmp_path / "direct.wav").read_bytes() == (tmp_path / "out.wav").read_bytes()


def test_bitrate_is_what_is_written(codec, speech, tmp_path):
    for levels, bitrate in enumerate((1.5, 3, 4.5, 6, 7.5, 9), start=1):
        status, out, _ = codec("encode", "speech.wav", f"{levels}.esc", "--bitrate", bitrate, "--json")
        report = json.loads(out)["files"][0]
        size = (tmp_path / f"{levels}.esc").stat().st_size
        assert status == 0 and report["bytes"] == size and report["bitrate"] == 1000 * bitrate
        # 3 s and the frame that completes them; 48 bytes of header, 4 a chunk
        assert 0 <= size - 3.02 * 1000 * bitrate / 8 < 48 + 3 * 4 + levels
    codec("encode", "speech.wav", "default.esc")
    assert (tmp_path / "default.esc").read_bytes() == (tmp_path / "6.esc").read_bytes()
    status, _, err = codec("encode", "speech.wav", "x.esc", "--bitrate", "5")
    assert status == 2 and "1.5, 3, 4.5, 6, 7.5, 9" in err and not (tmp_path / "x.esc").exists()


def test_truncate_equals_encoding_at_the_lower_rate(codec, speech, tmp_path):
    codec("encode", "speech.wav", "9.esc")
    codec("encode", "speech.wav", "3.esc", "--bitrate", "3")
    assert codec("truncate", "9.esc", "cut.esc", "--bitrate", "3")[0] == 0
    assert (tmp_path / "cut.esc").read_bytes() == (tmp_path / "3.esc").read_bytes()
    status, _, err = codec("truncate", "3.esc", "up.esc", "--bitrate", "4.5")
    assert status == 2 and "it holds 1.5, 3" in err and not (tmp_path / "up.esc").exists()


def test_nothing_is_overwritten_without_force(codec, speech, tmp_path):
    codec("encode", "speech.wav", "a.esc")
    target = tmp_path / "taken"
    for name, arguments in {
        "taken.esc": ("encode", "speech.wav"),
        "taken.wav": ("decode", "a.esc"),
        "taken2.esc": ("truncate", "a.esc"),
    }.items():
        target = tmp_path / name
        target.write_text("mine")
        more = ["--bitrate", "3"] if arguments[0] == "truncate" else []
        status, out, err = codec(*arguments, name, *more)
        assert (status, out) == (2, "") and err == f"codec: error: {name} exists; --force overwrites it\n"
        assert target.read_text() == "mine"
        assert codec(*arguments, name, *more, "--force")[0] == 0
        assert target.read_bytes() != b"mine"
    assert not [p for p in tmp_path.iterdir() if "part" in p.name]


def test_dangerous_or_senseless_outputs_are_refused(codec, speech, tmp_path):
    codec("encode", "speech.wav", "a.esc")
    for arguments, message in {
        ("encode", "speech.wav", "other.wav", "-f"): "is an audio name",
        ("encode", "speech.wav"): "an input and an output are needed",
        ("decode", "a.esc", "a.esc", "-f"): "input and output at once",
        ("decode", "a.esc", "missing/out.wav"): "no such folder: missing",
        ("encode", "speech.wav", "speech.wav", "a.esc", "-f"): "is not one",
        ("encode", "speech.wav", "-", "--json"): "both need stdout",
        ("encode", "speech.wav", "x.esc", "--device", "abacus"): "unknown device",
        ("encode", "speech.wav", "x.esc", "--model", "nobody"): "nobody",
    }.items():
        status, out, err = codec(*arguments)
        assert (status, out) == (2, "") and message in err, (arguments, err)
        assert err.startswith("codec: error: ") and err.count("\n") == 1


def test_bad_input_is_one_line_and_status_2(codec, tmp_path):
    (tmp_path / "text.wav").write_text("this is not audio")
    (tmp_path / "empty.wav").write_bytes(b"")
    (tmp_path / "text.esc").write_text("this is not coded speech")
    (tmp_path / "folder.wav").mkdir()
    soundfile.write(tmp_path / "nothing.wav", torch.zeros(0).numpy(), 16000)
    soundfile.write(tmp_path / "nan.wav", torch.full((99,), torch.nan).numpy(), 16000, subtype="FLOAT")
    for name in ("text.wav", "empty.wav", "nothing.wav", "nan.wav", "absent.wav", "folder.wav"):
        status, out, err = codec("encode", name, "out.esc")
        assert (status, out, err.count("\n")) == (2, "", 1) and err.startswith("codec: error: "), err
    for name in ("text.esc", "absent.esc", "folder.wav"):
        status, out, err = codec("decode", name, "out.wav")
        assert (status, out, err.count("\n")) == (2, "", 1) and err.startswith("codec: error: "), err
    assert not list(tmp_path.glob("out*"))


def test_one_bad_file_does_not_stop_the_rest(codec, speech, tmp_path):
    (tmp_path / "bad.wav").write_text("no audio")
    shutil.copy(speech, tmp_path / "second.wav")
    status, out, err = codec("encode", "speech.wav", "bad.wav", "second.wav", "coded")
    assert status == 1 and "bad.wav" in err and "1 of 3 files failed" in err
    assert sorted(p.name for p in (tmp_path / "coded").iterdir()) == ["second.esc", "speech.esc"]
    assert out.count("\n") == 2
    status, out, err = codec("decode", "coded", "decoded", "--json")
    assert status == 0 and len(json.loads(out)["files"]) == 2
    assert sorted(p.name for p in (tmp_path / "decoded").iterdir()) == ["second.wav", "speech.wav"]
    status, out, err = codec("encode", "speech.wav", "second.wav", "coded", "--json")  # both exist by now
    assert status == 1 and len(json.loads(out)["failed"]) == 2 and err.count("--force") == 2


def test_folders_keep_their_tree_and_names_that_collide_are_refused(codec, speech, tmp_path):
    for name in ("in/a/x.wav", "in/b/x.wav", "in/.hidden/x.wav"):
        (tmp_path / name).parent.mkdir(parents=True)
        shutil.copy(speech, tmp_path / name)
    assert codec("encode", "in", "out")[0] == 0
    assert sorted(str(p.relative_to(tmp_path / "out")) for p in (tmp_path / "out").rglob("*.esc")) == [
        "a/x.esc",
        "b/x.esc",
    ]
    status, _, err = codec("encode", "in/a/x.wav", "in/b/x.wav", "flat")
    assert status == 2 and "would both become" in err and not (tmp_path / "flat").exists()
    (tmp_path / "void").mkdir()
    assert codec("encode", "void", "out")[0] == 2


def test_info_of_a_file(codec, speech, tmp_path):
    codec("encode", "speech.wav", "a.esc", "--bitrate", "3")
    facts = json.loads(codec("info", "a.esc", "--json")[1])
    assert facts["intact"] is True and facts["problem"] is None and facts["lost_seconds"] == []
    assert (facts["bitrate"], facts["levels"], facts["num_samples"], facts["seconds"]) == (3000, 2, 48000, 3.0)
    assert facts["bytes"] == (tmp_path / "a.esc").stat().st_size and facts["chunks"] == 3
    text = codec("info", "a.esc")[1]
    assert "3 kbit/s (2 levels)" in text and "intact    yes" in text and "48000 at 16000 Hz" in text
    damage(tmp_path / "a.esc")
    facts = json.loads(codec("info", "a.esc", "--json")[1])
    assert facts["intact"] is False and "chunk 2 of 3" in facts["problem"]
    assert facts["lost_seconds"] == [[1.28, 2.56]]
    status, _, err = codec("info", "absent.esc")
    assert status == 2 and "no such file: absent.esc" in err


def test_info_of_a_model(codec, models):
    facts = json.loads(codec("info", "tiny", "--json")[1])
    assert facts["parameters"] == sum(p.numel() for p in EscLive(TINY).parameters())
    assert facts["bitrates"] == [1500, 3000, 4500, 6000, 7500, 9000]
    assert facts["delay_ms"] == 1000 * EscLive(TINY).delay / 16000
    assert facts["encode_macs_per_second"] > facts["decode_macs_per_second"] > 0
    assert facts["model_id"] == checkpoint.read(models / "tiny")[3][:12]
    assert "GMAC per second" in codec("info", models / "tiny")[1]


def damage(path):
    """Flip a bit in the second chunk of a file."""
    data = bytearray(path.read_bytes())
    data[bitstream.read_header(bytes(data)).offset(1) + 7] ^= 1
    path.write_bytes(data)


def test_recover_conceals_with_silence_and_says_what_was_lost(codec, speech, tmp_path):
    codec("encode", "speech.wav", "a.esc")
    codec("decode", "a.esc", "whole.wav")
    damage(tmp_path / "a.esc")
    status, _, err = codec("decode", "a.esc", "out.wav")
    assert status == 2 and "--recover" in err and not (tmp_path / "out.wav").exists()
    status, _, err = codec("decode", "a.esc", "out.wav", "--recover")
    assert status == 0 and "lost 1.28 to 2.56 s" in err
    whole, recovered = (audio.load(tmp_path / name)[0][0] for name in ("whole.wav", "out.wav"))
    assert len(recovered) == len(whole) == 48000
    first, end = int(1.28 * 16000), int(2.56 * 16000)
    assert (recovered[first:end] == 0).all()
    assert torch.equal(recovered[: first - 320], whole[: first - 320])
    assert whole[end:].abs().max() > 0 and recovered[end + 320 :].abs().max() > 0


def test_recover_ignores_bytes_that_are_not_the_file_s(codec, speech, tmp_path):
    """Nothing is lost of these files; around what is intact there is more."""
    codec("encode", "speech.wav", "a.esc")
    codec("decode", "a.esc", "whole.wav")
    data = (tmp_path / "a.esc").read_bytes()
    start = bitstream.read_header(data).offset(0)
    for name, changed in (("after", data + b"junk\n"), ("inside", data[:start] + b"xx" + data[start:])):
        (tmp_path / f"{name}.esc").write_bytes(changed)
        assert codec("decode", f"{name}.esc", f"{name}.wav")[0] == 2
        assert codec("decode", f"{name}.esc", f"{name}.wav", "--recover")[0] == 0
        assert (tmp_path / f"{name}.wav").read_bytes() == (tmp_path / "whole.wav").read_bytes()


@pytest.mark.skipif(os.name != "posix", reason="names of files are bytes on POSIX alone")
def test_a_name_that_is_no_text_does_not_stop_the_others(codec, speech, tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    try:
        shutil.copy(speech, os.fsencode(folder) + b"/sp\xffch.wav")
    except OSError:
        pytest.skip("this file system takes names in UTF-8 alone")
    shutil.copy(speech, folder / "a.wav")
    assert codec("encode", "in", "out")[0] == 0
    assert sorted(os.listdir(os.fsencode(tmp_path / "out"))) == [b"a.esc", b"sp\xffch.esc"]


def test_told_to_end_it_leaves_nothing_unfinished(tmp_path, models):
    audio.save(tmp_path / "long.wav", 0.1 * torch.randn(1, 16000 * 600), 16000)
    command = ["codec", "encode", "long.wav", "long.esc", "--model", str(models / "tiny")]
    code = f"from codec.cli import main; import sys; sys.argv = {command}; main()"
    environment = {**os.environ, "PYTHONPATH": os.path.dirname(os.path.dirname(cli.__file__)), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path, env=environment, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob(".*.partial")) and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.05)
    process.terminate()
    assert process.wait(30) == 128 + signal.SIGTERM
    assert [path.name for path in tmp_path.iterdir()] == ["long.wav"]


def test_a_wrong_model_is_named_together_with_the_right_one(codec, speech, models):
    codec("encode", "speech.wav", "a.esc")
    codec("encode", "speech.wav", "b.esc", "--model", models / "other")
    ids = {name: checkpoint.read(models / name)[3][:12] for name in ("tiny", "other")}
    status, _, err = codec("decode", "a.esc", "out.wav", "--model", models / "other")
    assert status == 2 and all(word in err for word in ("'tiny'", "'other'", *ids.values()))
    status, _, err = codec("decode", "b.esc", "out.wav")
    assert status == 2 and "'other'" in err and "--model" in err
    assert codec("decode", "b.esc", "out.wav", "--model", models / "other")[0] == 0


def test_a_file_does_not_decide_what_is_opened_or_downloaded(codec, speech, tmp_path):
    codec("encode", "speech.wav", "a.esc")
    header, codes, _ = bitstream.unpack((tmp_path / "a.esc").read_bytes())
    shutil.move(tmp_path / ".shipped" / "tiny", tmp_path / "trap")
    for name in ("./trap", "trap", "hf://a/b"):
        changed = bitstream.Header(**{**vars(header), "model_name": name})
        (tmp_path / "b.esc").write_bytes(bitstream.pack(changed, codes))
        status, _, err = codec("decode", "b.esc", "out.wav")
        assert status == 2 and "not shipped" in err, name


def test_standard_input_and_output(speech, models, tmp_path):
    encoded = run_outside("encode", "-", "-", "--model", models / "tiny", input=speech.read_bytes())
    assert encoded.returncode == 0 and b"kbit/s" in encoded.stderr
    assert bitstream.read_header(encoded.stdout).num_samples == 48000
    decoded = run_outside("decode", "-", "-", "--model", models / "tiny", input=encoded.stdout)
    assert decoded.returncode == 0
    samples, rate = soundfile.read(io.BytesIO(decoded.stdout))
    assert (len(samples), rate) == (48000, 16000)


def test_a_reader_that_leaves_is_no_traceback(speech, models, tmp_path):
    read_end, write_end = os.pipe()
    os.close(read_end)
    root = os.path.dirname(os.path.dirname(cli.__file__))
    with os.fdopen(write_end, "wb") as stdout:
        ended = subprocess.run(
            [sys.executable, "-c", "from codec.cli import main; main()", "--help"],
            stdout=stdout,
            stderr=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": root},
            timeout=120,
        )
    assert ended.returncode == 1 and ended.stderr == b""


def test_interrupt_is_status_130_and_leaves_no_half_file(codec, speech, tmp_path, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupted)
    status, out, err = codec("encode", "speech.wav", "a.esc")
    assert status == 128 + signal.SIGINT and "Traceback" not in err
    assert sorted(p.name for p in tmp_path.iterdir()) == [".shipped", "speech.wav"]


def test_help_is_fast_because_torch_is_not_loaded():
    code = "import resource, sys; from codec import cli; heavy = {'torch', 'numpy', 'soundfile'} & set(sys.modules)"
    code += "; print(heavy or '', resource.getrusage(resource.RUSAGE_SELF).ru_utime)"
    root = os.path.dirname(os.path.dirname(cli.__file__))
    ended = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": root}, capture_output=True, text=True, check=True
    )
    assert float(ended.stdout) < 0.5  # CPU seconds; not a number if anything heavy was imported


def test_help_names_every_command(codec):
    status, out, _ = codec("--help")
    assert status == 0
    for command in ("encode", "decode", "info", "truncate", "evaluate", "import-esc"):
        assert command in out
        assert codec(command, "--help")[0] == 0
