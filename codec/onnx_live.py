"""The live codec on ONNX Runtime: the same states, codes and sound, at a fraction of the time of a step.

A frame of 20 ms is hundreds of tiny operations, and what they cost in PyTorch is mostly getting to them. `OnnxLive`
stands in for `EscLive` where audio is live: stages, sessions and saved states take either, also one after the other.
The transforms between waveform and spectrum stay in PyTorch. Codes equal those of `EscLive` but for near ties (another
order of summation); sound is equal to 1e-4.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from codec.live import DecoderState, EncoderState, EscLive
from engine.errors import AudioError, SpeechError
from engine.streaming import State, StateList


class OnnxLive:
    """An `EscLive` whose live steps run on ONNX Runtime, on the CPU. Whole signals are the business of the model."""

    def __init__(self, model: EscLive, threads: int = 1) -> None:
        """Takes a moment; the graph of another number of levels is made when it is first needed."""
        try:
            import onnx  # noqa: F401  # what builds the graphs
            import onnxruntime
        except ImportError as error:
            raise SpeechError(f"the fast backend needs {error.name}: pip install 'voxcode[onnx]'") from error
        self.model = model
        self.config, self.name, self.model_id, self.delay = model.config, model.name, model.model_id, model.delay
        self.istft, self.check_levels = model.istft, model.check_levels
        self.initial_encoder_state, self.initial_decoder_state = (
            model.initial_encoder_state, model.initial_decoder_state,
        )  # fmt: skip
        self._runtime, self._threads = onnxruntime, threads
        self._sessions: dict[tuple[str, int], Any] = {}

    @torch.no_grad()
    def encode(self, wav: Tensor, *, state: EncoderState, levels: int | None = None) -> Tensor:
        """Whole frames (B, k * samples_per_frame) of live signals -> codes (B, L, G, k)."""
        self.model.check_wav(wav, None)
        levels = self.check_levels(levels)
        if wav.shape[1] % self.config.samples_per_frame:
            raise AudioError(
                f"a live chunk is a multiple of {self.config.samples_per_frame} samples, got {wav.shape[1]}"
            )
        patches = self.model.patches(self.model.analyze(wav.float(), state.stft))
        codes = [self._step("encode", levels, x, [state.stages, state.decoder]) for x in patches.unbind(1)]
        return torch.stack(codes, dim=-1)

    @torch.no_grad()
    def decode(self, codes: Tensor, *, state: DecoderState) -> Tensor:
        """Codes (B, L, G, k) -> (B, k * samples_per_frame), one hop late."""
        codes = self.model.check_codes(codes)
        steps = [self._step("decode", codes.shape[1], code, [state.stages]) for code in codes.unbind(-1)]
        return self.model.synthesize(self.model.unpatch(torch.stack(steps, dim=1)), state.istft)

    def _step(self, what: str, levels: int, x: Tensor, states: list[StateList]) -> Tensor:
        """Run a graph; the states that it knows, the first ones, are replaced by the new ones."""
        session = self._sessions.get((what, levels)) or self._open(what, levels)
        slots = [slot for part in states for slot in _slots(part)]
        names = [name.name for name in session.get_inputs()]
        slots = slots[: len(names) - 1]
        inputs = [x, *(getattr(holder, name) for holder, name in slots)]
        arrays = [tensor.contiguous().numpy() for tensor in inputs]
        result, *new = session.run(None, dict(zip(names, arrays, strict=True)))
        for (holder, name), array in zip(slots, new, strict=True):
            setattr(holder, name, torch.from_numpy(array))
        return torch.from_numpy(result)

    def _open(self, what: str, levels: int) -> Any:
        from codec.onnx_graph import decoder_step, encoder_step

        options = self._runtime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = self._threads, 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # a call shares its machine
        graph = (encoder_step if what == "encode" else decoder_step)(self.model, levels)
        session = self._runtime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
        self._sessions[what, levels] = session
        return session


def _slots(state: State) -> Iterator[tuple[State, str]]:
    """Where each tensor of a tree of states is held, in the order of `State.tensors`."""
    if isinstance(state, StateList):
        for child in state.children:
            yield from _slots(child)
        return
    for field in dataclasses.fields(state):
        value = getattr(state, field.name)
        if isinstance(value, Tensor):
            yield state, field.name
        else:
            yield from _slots(value)
