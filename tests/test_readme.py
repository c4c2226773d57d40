"""What the README shows is what happens: its commands and programs run, in order, in an empty folder."""

import os
import re
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest

BLOCK = re.compile(r"^```(sh|python)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@pytest.fixture
def folder(tmp_path: Path, root: Path, recordings: list[Path]) -> Path:
    """An empty folder with a recording as `speech.wav`, and the command `codec` of this checkout on the path."""
    from engine import audio

    wav, rate = audio.load(recordings[0])
    (tmp_path / "work").mkdir()
    audio.save(tmp_path / "work" / "speech.wav", wav, rate)
    (tmp_path / "bin").mkdir()
    command = tmp_path / "bin" / "codec"
    command.write_text(f"#!{sys.executable}\nfrom codec.cli import main\nmain()\n")
    command.chmod(command.stat().st_mode | stat.S_IXUSR)
    return tmp_path / "work"


def test_examples_run(folder: Path, root: Path) -> None:
    blocks = BLOCK.findall((root / "README.md").read_text())
    assert [language for language, _ in blocks].count("sh") >= 3
    assert [language for language, _ in blocks].count("python") >= 3
    bash = shutil.which("bash")
    assert bash, "the examples need bash"
    environment = {
        **os.environ,
        "PATH": f"{folder.parent / 'bin'}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(root),
        "PYTHONWARNINGS": "error",
        "OMP_NUM_THREADS": "1",
    }
    for language, text in blocks:
        start = [bash, "-euo", "pipefail", "-c"] if language == "sh" else [sys.executable, "-c"]
        done = subprocess.run(
            [*start, text], cwd=folder, env=environment, capture_output=True, text=True, timeout=600, check=False
        )
        assert done.returncode == 0, f"{text}\n{done.stderr}"
    assert (folder / "copy.esc").read_bytes() == (folder / "speech.esc").read_bytes()
    assert (folder / "copy.wav").read_bytes() == (folder / "decoded.wav").read_bytes()


LIVE = re.compile(r"^\$ (.*codec stream .*)$", re.MULTILINE)
# A microphone, a loudspeaker and a network made of files. What comes from a microphone has a header without a length.
FAKES = {
    "arecord": "head -c 40 speech48.wav; printf '\\0\\0\\0\\0'; tail -c +45 speech48.wav",
    "aplay": "cat > played",
    "sox": 'case "$*" in *"-d -t wav"*) cat speech.wav;; *) cat > played;; esac',
    "ffmpeg": "tail -c +45 speech.wav",
    "nc": 'case "$*" in "-l "*) cat network;; *) cat > network;; esac',
}


def test_live_examples_run_with_files_in_place_of_a_microphone(folder: Path, root: Path) -> None:
    from engine import audio

    wav, rate = audio.load(folder / "speech.wav")
    audio.save(folder / "speech48.wav", audio.resample(wav[:1], rate, 48000), 48000)
    audio.save(folder / "speech.wav", audio.resample(wav[:1], rate, 16000), 16000)
    for name, script in FAKES.items():
        command = folder.parent / "bin" / name
        command.write_text(f"#!/bin/sh\n{script}\n")
        command.chmod(command.stat().st_mode | stat.S_IXUSR)
    environment = {
        **os.environ,
        "PATH": f"{folder.parent / 'bin'}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(root),
        "OMP_NUM_THREADS": "1",
    }
    examples = LIVE.findall((root / "README.md").read_text())
    assert len(examples) >= 4 and {name for name in FAKES if any(name in text for text in examples)} == set(FAKES)
    for text in examples:
        (folder / "played").unlink(missing_ok=True)
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", text], cwd=folder, env=environment, capture_output=True, text=True,
            timeout=300, check=False,
        )  # fmt: skip
        assert done.returncode == 0 and not done.stderr, f"{text}\n{done.stderr}"
        if "aplay" in text or "sox" in text:
            played_rate = 48000 if "48000" in text else 16000
            expected = -(-wav.shape[1] * played_rate // rate)
            assert abs((folder / "played").stat().st_size // 2 - expected) <= 1


def test_the_two_commands_of_the_readme_exist(root: Path) -> None:
    readme, makefile = (root / "README.md").read_text(), (root / "Makefile").read_text()
    for target in ("demo", "test"):
        assert f"$ make {target}" in readme
        assert re.search(rf"^{target}:", makefile, re.MULTILINE)


def test_links_lead_somewhere(root: Path) -> None:
    links = re.findall(r"\]\(([^)#]+)\)", (root / "README.md").read_text())
    assert links
    assert [link for link in links if "://" not in link and not (root / link).exists()] == []
