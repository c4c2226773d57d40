"""Stages and sessions of both codecs: any chunking equals the whole signal; sessions move and mix."""

import pytest
import soundfile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import codec
from codec import files, stream
from codec.config import EscLiveConfig
from codec.esc import Esc
from codec.esc_config import EscConfig
from codec.live import EscLive
from codec.paths import open_output
from engine import audio
from engine.errors import AudioError, CheckpointError, ConfigError
from engine.pipeline import Limit, Pipeline, run
from engine.sessions import Sessions


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return 0.1 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def model() -> EscLive:
    return codec.load("esc_live")


@pytest.fixture(scope="module")
def speech(recordings) -> torch.Tensor:
    """(1, 48000): three seconds of speech."""
    return audio.load(recordings[0], 16000, mono=True)[0][:, :48000]


@pytest.fixture(scope="module")
def published() -> Esc:
    torch.manual_seed(0)
    model = Esc(
        EscConfig(
            sample_rate=1000, samples_per_frame=40, num_bins=24, win_length=40, hop_length=10, channels=(8, 12, 16),
            heads=(2, 4), levels=3, codebook_size=32, codebook_dims=(4, 4, 4),
        )
    ).eval()  # fmt: skip
    for parameter in model.parameters():
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    model.tile_frames = 20
    return model


def cut(wav, sizes):
    """Chunks (1, n) of the given sizes, over and over until the signal ends."""
    start, chunks = 0, []
    while start < wav.shape[1]:
        for size in sizes:
            chunks.append(wav[:, start : start + size])
            start += size
    return chunks


@settings(max_examples=12)
@given(st.lists(st.integers(1, 4000), min_size=1, max_size=5), st.integers(1, 6), st.integers(1, 12000))
def test_live_coding_of_any_chunking_equals_offline(model, speech, sizes, frames, length):
    wav = speech[:, 8000 : 8000 + length]
    offline = model.encode(wav)
    codes = list(run(cut(wav, sizes), stream.live_encoder(model, 16000, frames=frames)))
    assert {c.shape[-1] for c in codes[:-1]} <= {frames}
    joined = torch.cat(codes, dim=-1)
    assert torch.equal(joined, offline)
    heard = torch.cat(list(run(codes, stream.live_decoder(model, 16000), Limit(length))), dim=1)
    torch.testing.assert_close(heard, model.decode(offline, num_samples=length), atol=1e-5, rtol=0)


@pytest.mark.parametrize("threads", [2, 3])
def test_the_number_of_threads_changes_nothing(model, speech, threads):
    one = model.encode(speech)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        codes = torch.cat(list(run(cut(speech, [777]), stream.live_encoder(model, 16000))), dim=-1)
        assert torch.equal(codes, one)
        torch.testing.assert_close(model.decode(codes), model.decode(one), atol=1e-5, rtol=0)
    finally:
        torch.set_num_threads(before)


def test_a_sample_at_a_time(model, speech):
    wav = speech[:, 9000:10300]
    codes = torch.cat(list(run(cut(wav, [1]), stream.live_encoder(model, 16000))), dim=-1)
    assert torch.equal(codes, model.encode(wav))


@pytest.mark.parametrize("rate", [8000, 44100, 48000])
def test_another_rate_live_equals_resampling_first(model, speech, rate):
    wav = audio.resample(speech[:, 8000:24000], 16000, rate)
    codes = list(run(cut(wav, [rate // 100, 7]), stream.live_encoder(model, rate)))
    offline = model.encode(audio.resample(wav, rate, 16000))
    assert torch.equal(torch.cat(codes, dim=-1), offline)
    heard = torch.cat(list(run(codes, stream.live_decoder(model, rate), Limit(wav.shape[1]))), dim=1)
    assert heard.shape == wav.shape


def test_the_rate_may_change_at_any_frame(model, speech):
    """Levels are nested: whatever is sent of each frame are the first levels of what would have been sent."""
    stage = stream.EncodeStage(model)
    decoder, codes = stream.decoder(model), []
    for i, frame in enumerate(speech[:, : 30 * 320].split(320, dim=1)):
        stage.levels = 1 + i % 6
        codes += stage.push(frame)
        heard = decoder.push(codes[-1])[0]
        assert heard.isfinite().all() and heard.abs().max() < 2
    assert [c.shape[1] for c in codes[:6]] == [1, 2, 3, 4, 5, 6]
    assert torch.equal(codes[0], model.encode(speech[:, :320], levels=1)[..., :1])


@settings(max_examples=10)
@given(st.data())
def test_batched_sessions_equal_each_alone(model, speech, data):
    """Sessions that begin and end at different times in changing batches: the codes of each are those of it alone."""
    sessions = Sessions(model.initial_encoder_state, lambda wav, state: model.encode(wav, state=state))
    places: dict[int, int] = {}
    fed: dict[int, list[torch.Tensor]] = {}
    got: dict[int, list[torch.Tensor]] = {}
    for _ in range(12):
        if len(places) < 5 and data.draw(st.booleans()):
            new = sessions.open()
            places[new] = data.draw(st.integers(0, 100)) * 320
            fed[new], got[new] = [], []
        if places and data.draw(st.integers(0, 4)) == 0:
            old = data.draw(st.sampled_from(sorted(places)))
            new = sessions.restore(sessions.save(old))  # moves to "another process"
            sessions.close(old)
            places[new], fed[new], got[new] = places.pop(old), fed.pop(old), got.pop(old)
        talking = data.draw(st.sets(st.sampled_from(sorted(places)))) if places else set()
        items = {s: speech[0, places[s] : places[s] + 320] for s in talking}
        for session, codes in sessions.step(items).items():
            fed[session].append(items[session])
            got[session].append(codes)
            places[session] += 320
    for session, frames in fed.items():
        if frames:
            alone = model.encode(torch.cat(frames)[None])[0, ..., : len(frames)]
            assert torch.equal(torch.cat(got[session], dim=-1), alone)


def test_a_state_of_another_model_is_refused(model):
    other = EscLive(EscLiveConfig(channels=(32, 32, 48, 64), codebook_dims=(4,) * 6, codebook_size=32)).eval()
    data = model.initial_encoder_state(1).to_bytes()
    for template in (other.initial_encoder_state(1), model.initial_decoder_state(1)):
        with pytest.raises(CheckpointError, match="another shape"):
            template.load_bytes(data)


# The published codec


@settings(max_examples=15)
@given(st.integers(1, 6000), st.lists(st.integers(1, 1500), min_size=1, max_size=4), st.integers(1, 3))
def test_published_codec_in_pieces_equals_the_whole(published, length, sizes, levels):
    wav = noise(1, length)
    whole = published.encode(wav, levels=levels)
    codes = list(run(cut(wav, sizes), stream.encoder(published, levels)))
    assert torch.equal(torch.cat(codes, dim=-1), whole)
    ragged = torch.cat(codes, dim=-1).split(sizes[0], dim=-1)
    heard = torch.cat(list(run(ragged, stream.decoder(published))), dim=1)
    assert torch.equal(heard[:, :length], published.decode(whole, num_samples=length))


def test_published_codec_keeps_no_more_than_a_tile_and_its_halos(published):
    pipeline = stream.encoder(published)
    stage = pipeline.stages[0]
    longest = 0
    for chunk in noise(1, 200_000).split(500, dim=1):
        pipeline.push(chunk)
        longest = max(longest, stage._wav.shape[1])
    tiles = stage._tiles
    assert longest <= (tiles.size + 2 * tiles.halo + 2 * stage._reach) * 40 + 2 * 500


def test_published_codec_is_no_live_codec(published):
    with pytest.raises(ConfigError, match="cannot code live; take a model of the kind esc_live"):
        stream.live_encoder(published, 1000)
    with pytest.raises(AudioError, match="one signal at a time"):
        stream.encoder(published).push(noise(2, 10))


# Files


@pytest.mark.parametrize("rate, channels", [(16000, 1), (44100, 2), (8000, 1)])
def test_a_file_equals_the_signal_coded_at_once(model, speech, tmp_path, rate, channels):
    wav = audio.resample(torch.cat([speech, -0.5 * speech])[:channels], 16000, rate)
    soundfile.write(tmp_path / "in.wav", wav.T.numpy(), rate, subtype="FLOAT")
    files.encode_file(model, str(tmp_path / "in.wav"), str(tmp_path / "out.esc"), levels=2)
    file = codec.read(tmp_path / "out.esc")
    expected = files.encode_channels(model, audio.resample(wav, rate, 16000), levels=2)
    assert (file.codes == expected).all() and file.header.num_samples == wav.shape[1]
    files.decode_file(str(tmp_path / "out.esc"), str(tmp_path / "back.wav"))
    back, _ = audio.load(tmp_path / "back.wav")
    whole = files.decode_channels(model, file.header, file.codes)
    at_rate = audio.resample(whole, 16000, rate, wav.shape[1])
    assert back.shape == wav.shape
    torch.testing.assert_close(back, at_rate.clamp(-1, 1), atol=3e-5, rtol=0)


def test_progress_is_told_in_seconds(model, speech, tmp_path):
    soundfile.write(tmp_path / "in.wav", speech[0].numpy(), 16000)
    told = []

    def progress(done: float, total: float) -> None:
        told.append((done, total))

    files.encode_file(model, str(tmp_path / "in.wav"), str(tmp_path / "x.esc"), progress=progress)
    assert told == [(3.0, 3.0)]
    told.clear()
    files.decode_file(str(tmp_path / "x.esc"), str(tmp_path / "back.wav"), progress=progress)
    assert told == sorted(told) and told[-1] == (3.0, 3.0)


def test_nothing_is_left_of_a_file_that_fails(tmp_path):
    with pytest.raises(ZeroDivisionError), open_output(tmp_path / "x.esc") as file:
        file.write(b"half")
        1 / 0  # noqa: B018
    assert list(tmp_path.iterdir()) == []


def test_a_pipeline_of_both_directions_is_a_stage(model, speech):
    """Encoder and decoder as one pipeline: 30 ms late, the sound of the file."""
    there_and_back = Pipeline(stream.live_encoder(model, 16000), stream.live_decoder(model, 16000))
    heard, said = 0, 0
    for chunk in speech.split(500, dim=1):
        said += 500
        heard += sum(out.shape[1] for out in there_and_back.push(chunk))
        assert said - heard <= model.delay + 320
    torch.cat(there_and_back.flush(), dim=1)
