"""One live step of `EscLive` as an ONNX graph: one frame of any number of sessions, states in and out.

Built node by node from the weights rather than traced: the graph stays small and readable, takes a fraction of a second
to make, holds for any batch, and does not depend on which of torch's exporters lives. It mirrors `codec.causal` and
`codec.live`; shapes are theirs without the time axis: tokens (B, H, C). What a step derives from weights (the bias of
attention, the scale of queries, codebooks as columns) is computed here, once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor

from codec.causal import CausalBlock
from codec.live import EscLive
from codec.quantizers import ProductQuantizer

OPSET, IR_VERSION = 17, 8  # old enough for every onnxruntime that still gets security fixes
Array = NDArray[Any]


class Graph:
    """Nodes in their order, each named by its number; one method for each building block."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self.inputs: list[onnx.ValueInfoProto] = []
        self.outputs: list[str] = []

    def input(self, name: str, shape: Sequence[int], kind: int = TensorProto.FLOAT) -> str:
        """Declare an input (B, *shape)."""
        self.inputs.append(helper.make_tensor_value_info(name, kind, ["batch", *shape]))
        return name

    def constant(self, value: Tensor | Array | Sequence[int]) -> str:
        name = f"c{len(self.constants)}"
        array = value.detach().cpu().numpy() if isinstance(value, Tensor) else np.asarray(value)
        self.constants.append(numpy_helper.from_array(np.ascontiguousarray(array), name))
        return name

    def __call__(self, kind: str, *inputs: str, num_outputs: int = 1, **attributes: Any) -> Any:
        """Add a node, return the name of its output (or a list of names)."""
        names = [f"n{len(self.nodes)}_{i}" for i in range(num_outputs)]
        self.nodes.append(helper.make_node(kind, inputs, names, **attributes))
        return names[0] if num_outputs == 1 else names

    def reshape(self, x: str, *shape: int) -> str:
        """(B, ...) -> (B, *shape)."""
        return self("Reshape", x, self.constant([0, *shape]))

    def slice(self, x: str, axis: int, start: int, stop: int) -> str:
        return self("Slice", x, *(self.constant([i]) for i in (start, stop, axis)))

    def linear(self, x: str, weight: Tensor, bias: Tensor | None = None) -> str:
        """weight (out, in), as in torch."""
        y = self("MatMul", x, self.constant(weight.T))
        return y if bias is None else self("Add", y, self.constant(bias))

    def block(self, block: CausalBlock, x: str, key: str, value: str, past: str) -> tuple[str, list[str]]:
        """(B, H, C) and the state of a `CausalBlock` -> (B, H, C) and its new state."""
        attended, states = self._attention(block, self._norm(block.norm1, x), key, value)
        x = self("Add", x, attended)
        joined = self("Concat", past, self("Unsqueeze", x, self.constant([1])), axis=1)
        x = self("Add", x, self._conv(block, joined))
        hidden, out = block.mlp[0], block.mlp[2]
        y = self.linear(self._norm(block.norm2, x), hidden.weight, hidden.bias)  # type: ignore[arg-type]
        y = self("Mul", y, self("Sigmoid", y))
        y = self.linear(y, out.weight, out.bias)  # type: ignore[arg-type]
        return self("Add", x, y), [*states, self.slice(joined, 1, 1, 3)]

    def encode(self, quantizer: ProductQuantizer, residual: str) -> str:
        """(B, H, C) -> codes (B, G) int64, the lowest of equally near entries."""
        groups, dim = quantizer.num_groups, quantizer.codebook_dim
        z = self.reshape(self.linear(self.reshape(residual, -1), quantizer.down.weight), groups, dim)  # type: ignore[arg-type]
        tables = _tables(quantizer)
        near = self("MatMul", self("Transpose", z, perm=[1, 0, 2]), self.constant(-2 * tables.transpose(0, 2, 1)))
        distance = self("Add", near, self.constant(np.square(tables).sum(-1)[:, None]))
        return self("Transpose", self("ArgMin", distance, axis=-1, keepdims=0), perm=[1, 0])

    def decode(self, quantizer: ProductQuantizer, codes: str, height: int) -> str:
        """codes (B, G) -> (B, H, C)."""
        tables = _tables(quantizer)
        groups, size, dim = tables.shape
        places = self("Add", codes, self.constant(np.arange(groups) * size))
        entries = self("Gather", self.constant(tables.reshape(-1, dim)), places, axis=0)
        y = self.linear(self.reshape(entries, groups * dim), quantizer.up.weight)  # type: ignore[arg-type]
        return self.reshape(y, height, quantizer.dim // height)

    def model(self) -> bytes:
        """The graph as a file."""
        outputs = [helper.make_empty_tensor_value_info(name) for name in self.outputs]
        graph = helper.make_graph(self.nodes, "step", self.inputs, outputs, self.constants)
        opsets = [helper.make_opsetid("", OPSET)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION).SerializeToString()

    def _norm(self, norm: Any, x: str) -> str:
        scale, bias = self.constant(norm.weight), self.constant(norm.bias)
        return self("LayerNormalization", x, scale, bias, axis=-1, epsilon=norm.eps)

    def _attention(self, block: CausalBlock, x: str, key: str, value: str) -> tuple[str, list[str]]:
        attention = block.attention
        heads, bins, height = attention.num_heads, attention.num_bins, attention.height
        channels = attention.proj.in_features
        scales = np.ones((3 * channels, 1), dtype=np.float32)
        scales[:channels] = (channels // heads) ** -0.5
        weight, bias = attention.qkv.weight.detach().cpu().numpy(), attention.qkv.bias.detach().cpu().numpy()
        qkv = self("MatMul", x, self.constant((weight * scales).T))
        qkv = self("Add", qkv, self.constant(bias * scales[:, 0]))
        qkv = self.reshape(qkv, height // bins, bins, 3, heads, channels // heads)
        parts = self("Split", self("Transpose", qkv, perm=[3, 0, 1, 4, 2, 5]), num_outputs=3, axis=0)
        query, new_key, new_value = (self("Squeeze", part, self.constant([0])) for part in parts)
        # The oldest frame leaves, the new one comes.
        states = [
            self("Concat", self.slice(old, 3, bins, attention.num_frames * bins), new, axis=3)
            for old, new in ((key, new_key), (value, new_value))
        ]
        scores = self("MatMul", query, self("Transpose", states[0], perm=[0, 1, 2, 4, 3]))
        scores = self("Add", scores, self.constant(attention.step_bias()))
        y = self("MatMul", self("Softmax", scores, axis=-1), states[1])
        y = self.reshape(self("Transpose", y, perm=[0, 1, 3, 2, 4]), height, channels)
        return self.linear(y, attention.proj.weight, attention.proj.bias), states

    def _conv(self, block: CausalBlock, joined: str) -> str:
        """Three frames (B, 3, H, C) -> (B, H, C)."""
        height, weight = block.conv.height, block.conv.weight.detach()
        padded = self("Pad", joined, self.constant([0, 0, 1, 0, 0, 0, 1, 0]))
        taps = [self("Mul", self.slice(padded, 2, i, i + height), self.constant(weight[:, i, None])) for i in range(3)]
        total = self("Add", self("Add", taps[0], taps[1]), taps[2])
        return self("ReduceSum", total, self.constant([1]), keepdims=0)


def _tables(quantizer: ProductQuantizer) -> Array:
    """Entries of all groups (G, K, d)."""
    return np.stack([book.table().detach().cpu().float().numpy() for book in quantizer.codebooks])  # type: ignore[operator]


class _Step:
    """What encoder and decoder graphs share: states by their place, and the walk down the decoder."""

    def __init__(self, model: EscLive) -> None:
        self.model, self.graph = model, Graph()
        self.num_states = 0
        self.new_states: list[str] = []

    def stage(self, stage: Any, x: str) -> str:
        """A stage whose states are the next inputs."""
        for block in stage.blocks:
            inner = block.initial_state(1)
            states = []
            for tensor in inner.tensors():
                states.append(self.graph.input(f"state{self.num_states}", tensor.shape[1:]))
                self.num_states += 1
            x, new = self.graph.block(block, x, *states)
            self.new_states += new
        return x

    def decoder(self, read: Callable[[int, str | None], str], levels: int, stages: int) -> str:
        """`EscLive.run_decoder`."""
        model, graph = self.model, self.graph
        x, scales = read(0, None), (*model.config.level_scales, 0)
        for level in range(stages):
            if 0 < level < levels:
                x = graph("Add", x, read(level, x))
            x = self.stage(model.decoder[level], x)
            for scale in range(scales[level], scales[level + 1], -1):
                split = model.splits[scale - 1]
                height, channels = self.height(scale - 1), model.config.channels[scale - 1]
                x = graph.reshape(graph.linear(x, split.proj.weight), height, channels)  # type: ignore[union-attr, arg-type]
        return x

    def height(self, scale: int) -> int:
        return self.model.config.num_tokens >> scale

    def finish(self, result: str) -> bytes:
        self.graph.outputs = [result, *self.new_states]
        return self.graph.model()


def encoder_step(model: EscLive, levels: int) -> bytes:
    """Graph: patches (B, H, patch_size), states of the encoder's and the first decoder stages -> codes (B, L, G) and
    the new states, in the order of `EncoderState.stages` and `.decoder`."""
    step = _Step(model)
    graph, config = step.graph, model.config
    x = graph.linear(
        graph.input("patches", (config.num_tokens, config.patch_size)), model.embed.weight, model.embed.bias
    )
    scales: list[str] = []
    for scale, stage in enumerate(model.encoder):
        if scale:
            x = graph.reshape(x, step.height(scale), 2 * config.channels[scale - 1])
            x = graph.linear(x, model.merges[scale - 1].proj.weight)  # type: ignore[union-attr, arg-type]
        x = step.stage(stage, x)
        scales.append(x)
    codes: list[str] = []

    def read(level: int, x: str | None) -> str:
        scale, quantizer = config.level_scales[level], model.quantizers[level]
        assert isinstance(quantizer, ProductQuantizer)
        residual = scales[scale] if x is None else graph("Sub", scales[scale], x)
        codes.append(graph.encode(quantizer, residual))
        return graph.decode(quantizer, codes[-1], step.height(scale))

    last = levels - 1
    read(last, step.decoder(read, last, last) if last else None)
    parts = [graph("Unsqueeze", code, graph.constant([1])) for code in codes]
    return step.finish(graph("Concat", *parts, axis=1))


def decoder_step(model: EscLive, levels: int) -> bytes:
    """Graph: codes (B, L, G) int64, states of the decoder stages -> patches (B, H, patch_size), new states."""
    step = _Step(model)
    graph, config = step.graph, model.config
    all_codes = graph.input("codes", (levels, config.num_groups), TensorProto.INT64)
    codes = graph("Split", all_codes, num_outputs=levels, axis=1) if levels > 1 else [all_codes]

    def read(level: int, x: str | None) -> str:
        quantizer = model.quantizers[level]
        assert isinstance(quantizer, ProductQuantizer)
        code = graph("Squeeze", codes[level], graph.constant([1]))
        return graph.decode(quantizer, code, step.height(config.level_scales[level]))

    x = step.decoder(read, levels, config.levels)
    return step.finish(graph.linear(x, model.deembed.weight, model.deembed.bias))
