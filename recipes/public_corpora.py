"""Public repositories whose speech lies in git itself, under licences that allow training (docs/training_data.md)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import inf
from pathlib import PurePosixPath

from recipes.harness.recordings import UNLABELLED

CLIENTS = "client_id"  # speakers are in the tables of Common Voice beside the clips
NOBODY = UNLABELLED.removeprefix("/")


@dataclass(frozen=True)
class Corpus:
    """Recordings of `repository` (owner/name) below `folder`; `speaker` tells who speaks from the path there."""

    name: str
    repository: str
    folder: str
    speaker: Callable[[PurePosixPath], str] | str
    language: str
    licence: str
    speaker_seconds: float = inf  # more of a speaker is left out
    joined: int = 1  # short recordings of a speaker that are put together
    people: str = ""  # a person of another corpus of the same people is left out of those further down


def _folder(path: PurePosixPath) -> str:
    return path.parent.name


def _stem(path: PurePosixPath) -> str:
    return path.stem


def _reader(path: PurePosixPath) -> str:
    """Of LibriSpeech: reader-chapter-utterance."""
    return path.stem.split("-")[0]


def _participant(path: PurePosixPath) -> str:
    """Of Speech Commands: participant_nohash_number."""
    return path.stem.split("_")[0]


def _contributor(path: PurePosixPath) -> str:
    """Of the Arabic Speech Commands: eight digits, before what was said and how often."""
    return path.stem[:8]


CORPORA = (
    Corpus("speechocean762", "jimbozhang/speechocean762", "WAVE", _folder, "en (L1 Mandarin)", "CC BY 4.0"),
    # Those with much of each reader first: what they hold is not taken from the others.
    Corpus("librispeech-100-long", "Walleclipse/Deep_Speaker-speaker_recognition_system", "audio/LibriSpeechSamples",
           _reader, "en", "CC BY 4.0", people="LibriSpeech"),
    Corpus("libri-test-clean", "lalking52/compressor_project", "LibriSpeech/test-clean", _reader, "en",
           "CC BY 4.0", 240, people="LibriSpeech"),
    Corpus("libri-train-5", "zhangrui0712/Voice-Age", "LibriSpeech/train-clean-5", _reader, "en", "CC BY 4.0", 240,
           people="LibriSpeech"),
    Corpus("libri-dev-clean", "felixbastian/Speaker_partition_module", "data/LibriSpeech/dev-clean", _reader, "en",
           "CC BY 4.0", 240, people="LibriSpeech"),
    Corpus("librispeech-100", "resemble-ai/Resemblyzer", "audio_data/librispeech_train-clean-100", _reader, "en",
           "CC BY 4.0", people="LibriSpeech"),
    Corpus("common-voice-en", "korliu/whisper", "dataset/clips", CLIENTS, "en", "CC0", 300, people="Common Voice"),
    Corpus("common-voice-fa", "yasaman999/SR", "clips", CLIENTS, "fa", "CC0", 300, people="Common Voice"),
    Corpus("common-voice", "omnilingo/rsample-100-cv-corpus-6.1-2020-12-11", "", CLIENTS, "59 languages", "CC0",
           people="Common Voice"),
    Corpus("picovoice-wakeword", "Picovoice/wake-word-benchmark", "audio", NOBODY, "en", "Apache-2.0"),
    Corpus("picovoice-s2i", "Picovoice/speech-to-intent-benchmark", "data/speech/clean", NOBODY, "en", "Apache-2.0"),
    Corpus("precise-community", "MycroftAI/Precise-Community-Data", "", NOBODY, "en/es", "public domain"),
    Corpus("wuw-corpus-ii", "wake-up-word/wuw-corpus-ii", "calls", NOBODY, "en", "CC BY-SA 4.0"),
    Corpus("kerstin", "rhasspy/dataset-voice-kerstin", "verified", "kerstin", "de", "CC0", 3600),
    Corpus("arabic-speech-commands", "abdulkaderghandoura/arabic-speech-commands-dataset", "dataset",
           _contributor, "ar", "CC BY 4.0"),
    Corpus("dspspeech20", "zhongyuchen/DSPSpeech-20", "speech_data", _folder, "zh+en", "MIT", 360),
    Corpus("alphanumeric", "Sakshee5/alphanumeric-audio-dataset", "audio_data", _stem,
           "en (mostly L1 Indian languages)", "MIT"),
    Corpus("speech-commands", "thegtagamer/PICO-tinyML-benchmark", "MLTK_keyworkSpotting/dataset", _participant, "en",
           "CC BY 4.0", joined=4, people="Speech Commands"),
    Corpus("speech-commands-more", "vinsis/speech-commands-recognition", "speech_commands_v0.01", _participant, "en",
           "CC BY 4.0", joined=4, people="Speech Commands"),
    Corpus("speech-commands-isolated", "anshulgupta0803/isolated-speech-commands", "recipe/audio", _participant, "en",
           "CC BY 4.0", joined=4, people="Speech Commands"),
)  # fmt: skip
