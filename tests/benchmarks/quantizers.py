"""Quantizers against other implementations, on the same weights: do the same integers come out?

    python -m tests.benchmarks quantizers [--shape 256 512] [--seed 0]

Packages of the extra `bench` that are missing are left out. Weights are float32, so that no scale is rounded to 16
bits; groups are 64 weights along `in`. `same` is the share of equal integers, `gap` the largest difference of two of
them, `error` the root mean square of w − ŵ by the standard deviation of w, and `|error|^0.7` the mean of what HQQ
minimises, by that of its start. `output` is what GPTQ minimises, the mean of (w − ŵ) H (w − ŵ)ᵀ over rows w, by that of
round to nearest; H is the second moment of inputs that go together, twice as many as there are columns. `seconds` are
the processor's, of `gptq` only: with `--shape 4096 4096` those of a matrix of a model of 7B.
"""

import argparse
import functools
import importlib
import importlib.metadata
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from compressor.contracts import Component, CompressedWeight, Compressor, Context, QuantizedMatrix
from compressor_plugins.quantization.gptq import Gptq, Order
from compressor_plugins.quantization.hqq import FloatZerosWeight, Hqq
from compressor_plugins.quantization.int4 import Int4
from compressor_plugins.quantization.nf4 import Nf4, NormalFloatWeight
from compressor_plugins.quantization.rounding import RoundToNearest, fit_range, round_groups

GROUP = 64


class Result(NamedTuple):
    """`integers` and `dense` `[out, in]`; what it took, if that is of interest."""

    integers: Tensor
    dense: Tensor
    seconds: float | None = None


Found = Iterator[tuple[str, Result, Result]]
"""What was compared, by the project, by the other implementation."""


def make_component(weight: Tensor) -> Component:
    return Component("model.layers.0.mlp.up_proj", "up", 0, (weight.shape[0], weight.shape[1]), 32)


def compress(compressor: Compressor, weight: Tensor) -> Result:
    component = make_component(weight)
    data = make_calibration_data(weight.shape[1])
    found: CompressedWeight = compressor.compress(weight, 1 - 4 / 32, Context(component, calibration=data))
    if isinstance(found, NormalFloatWeight):
        return Result(found.indices.int(), found.dense())
    assert isinstance(found, QuantizedMatrix | FloatZerosWeight)
    return Result(found.integers.int(), found.dense())


@functools.cache
def make_calibration_data(width: int) -> dict[str, Tensor]:
    """Of inputs that go together, of different sizes."""
    generator = torch.Generator().manual_seed(7)
    sizes = torch.randn(width, generator=generator).exp()
    mixed = torch.randn(width, width, generator=generator) * sizes
    inputs = torch.randn(2 * width, width, generator=generator) @ mixed
    return {"hessian": inputs.T @ inputs / len(inputs), "tokens": torch.tensor(len(inputs))}


def compare_bitsandbytes(weight: Tensor) -> Found:
    """Its kernel packs two indices into a byte, the first into the higher half."""
    functional = importlib.import_module("bitsandbytes.functional")
    for nested in (False, True):
        packed, state = functional.quantize_4bit(weight, blocksize=GROUP, quant_type="nf4", compress_statistics=nested)
        indices = torch.stack([packed.flatten() >> 4, packed.flatten() & 15], dim=1).view(weight.shape).int()
        theirs = Result(indices, functional.dequantize_4bit(packed, state))
        yield f"nf4, double_quant={nested}", compress(Nf4(GROUP, nested), weight), theirs


def start_hqq(weight: Tensor) -> Result:
    """HQQ's grid before anything moves; zero is in the range of all of these groups."""
    groups = weight.view(-1, 1, GROUP)
    scales, zeros = fit_range(groups.amin(-1), groups.amax(-1), 4, torch.float32, torch.float32)
    integers = round_groups(groups, scales, zeros, 4, torch.float32)
    dense = scales[..., None] * (integers - zeros[..., None])
    return Result(integers.view(weight.shape).int(), dense.view(weight.shape))


def compare_hqq(weight: Tensor) -> Found:
    quantizer = importlib.import_module("hqq.core.quantize").Quantizer
    for optimize in (False, True):
        integers, meta = quantizer.quantize(
            weight, nbits=4, group_size=GROUP, axis=1, optimize=optimize, device="cpu", bitpack=False
        )
        integers = integers.view(-1, GROUP)
        dense = ((integers - meta["zero"]) * meta["scale"]).view(weight.shape)
        theirs = Result(integers.view(weight.shape).int() - 8, dense)
        yield (
            ("hqq", compress(Hqq(group=GROUP), weight), theirs)
            if optimize
            else ("hqq, start", start_hqq(weight), theirs)
        )


def compare_torchao(weight: Tensor) -> Found:
    primitives = importlib.import_module("torchao.quantization.quant_primitives")
    block = (1, GROUP)
    scales, zeros = primitives.choose_qparams_affine(
        weight, primitives.MappingType.ASYMMETRIC, block, torch.int8, -8, 7, zero_point_dtype=torch.int8
    )
    integers = primitives.quantize_affine(weight, block, scales, zeros, torch.int8, -8, 7)
    dense = primitives.dequantize_affine(integers, block, scales, zeros, torch.int8, -8, 7)
    yield "int4, zero points", compress(Int4(GROUP, symmetric=False), weight), Result(integers.int(), dense)
    integers, scales, shift, _ = primitives._choose_qparams_and_quantize_affine_hqq(
        weight, 4, GROUP, compute_dtype=torch.float32, device="cpu", raw_output=True
    )
    # Raw output has the zero point of hqq in its third place.
    dense = ((integers.view(-1, GROUP) - shift.view(-1, 1)) * scales.view(-1, 1)).view(weight.shape)
    theirs = Result(integers.view(weight.shape).int() - 8, dense)
    yield "hqq", compress(Hqq(group=GROUP), weight), theirs


def compare_compressed_tensors(weight: Tensor) -> Found:
    quantization = importlib.import_module("compressed_tensors.quantization")
    helpers = importlib.import_module("compressed_tensors.quantization.utils.helpers")
    forward = importlib.import_module("compressed_tensors.quantization.lifecycle.forward")
    groups = weight.unflatten(1, (-1, GROUP))
    for symmetric in (True, False):
        rule = quantization.QuantizationArgs(num_bits=4, symmetric=symmetric, strategy="group", group_size=GROUP)
        scales, zeros = helpers.calculate_qparams(groups.amin(-1), groups.amax(-1), rule)
        integers = forward.quantize(weight, scales, zeros, rule)
        dense = forward.dequantize(integers, scales, zeros, rule)
        ours = compress(Int4(GROUP, symmetric), weight)
        yield f"int4, symmetric={symmetric}", ours, Result(integers.int(), dense)


def compare_quanto(weight: Tensor) -> Found:
    quanto = importlib.import_module("optimum.quanto")
    ways: dict[str, tuple[Any, bool, Compressor]] = {
        "int4, zero points": (quanto.MaxOptimizer(), True, Int4(GROUP, symmetric=False)),
        "hqq": (quanto.HqqOptimizer(), False, Hqq(group=GROUP)),
    }
    for name, (optimizer, whole, compressor) in ways.items():
        scales, shift = optimizer(weight, quanto.qint4, 0, GROUP, zeropoint=whole)
        integers = torch.ops.quanto.quantize_affine(weight, 4, 0, GROUP, scales, shift).view(-1, GROUP).float()
        scales, shift = scales.view(-1, 1), shift.view(-1, 1)
        dense = (integers - shift) * scales if whole else integers * scales - shift
        theirs = Result(integers.view(weight.shape).int() - 8, dense.view(weight.shape))
        yield name, compress(compressor, weight), theirs


def compare_llmcompressor(weight: Tensor) -> Found:
    """Given the scales here."""
    quantization = importlib.import_module("compressed_tensors.quantization")
    quantize = importlib.import_module("llmcompressor.modifiers.gptq.gptq_quantize").quantize_weight
    hessian = make_calibration_data(weight.shape[1])["hessian"]
    plain = RoundToNearest(4, GROUP).quantize(weight, make_component(weight))
    for order, name in ((Order.none, None), (Order.act, "static")):
        rule = quantization.QuantizationArgs(
            num_bits=4, symmetric=True, strategy="group", group_size=GROUP, actorder=name
        )
        zeros = torch.zeros_like(plain.scales, dtype=torch.int8)
        given = (weight.clone(), hessian.clone(), plain.scales, zeros)
        began = time.process_time()
        dense = quantize(*(part[None] for part in given), None, rule, blocksize=128, percdamp=0.01)[0][0]
        seconds = time.process_time() - began
        integers = (dense.view(-1, GROUP) / plain.scales.view(-1, 1)).round().int().view(weight.shape)
        began = time.process_time()
        ours = compress(Gptq(group=GROUP, order=order), weight)
        yield (
            f"gptq, order={order.name}",
            ours._replace(seconds=time.process_time() - began),
            Result(integers, dense, seconds),
        )


PEERS: dict[str, tuple[str, Callable[[Tensor], Found]]] = {
    "bitsandbytes": ("bitsandbytes", compare_bitsandbytes),
    "hqq": ("hqq.core.quantize", compare_hqq),
    "torchao": ("torchao", compare_torchao),
    "compressed-tensors": ("compressed_tensors", compare_compressed_tensors),
    "optimum-quanto": ("optimum.quanto", compare_quanto),
    "llmcompressor": ("llmcompressor", compare_llmcompressor),
}
"""Distribution -> what to import, and the comparison."""


def make_weights(shape: tuple[int, int], seed: int) -> dict[str, Tensor]:
    """Of the size of a language model's; `heavy` has Student's t with four degrees of freedom."""
    generator = torch.Generator().manual_seed(seed)
    normal, other = (0.02 * torch.randn(shape, generator=generator) for _ in range(2))
    squares = torch.randn((4, *shape), generator=generator).square().mean(0)
    return {"normal": normal, "heavy": other / squares.sqrt(), "shifted": other.abs() - 0.005}


def describe(weight: Tensor, ours: Result, theirs: Result) -> dict[str, Any]:
    start = (weight - start_hqq(weight).dense).abs().pow(0.7).mean()
    hessian, plain = make_calibration_data(weight.shape[1])["hessian"], weight - compress(Int4(GROUP), weight).dense
    row: dict[str, Any] = {
        "same": float((ours.integers == theirs.integers).double().mean()),
        "gap": int((ours.integers - theirs.integers).abs().max()),
    }
    for who, result in (("ours", ours), ("theirs", theirs)):
        error = weight - result.dense
        row[f"error, {who}"] = float(error.square().mean().sqrt() / weight.std())
        row[f"|error|^0.7, {who}"] = float(error.abs().pow(0.7).mean() / start)
        row[f"output, {who}"] = float(((error @ hessian) * error).sum() / ((plain @ hessian) * plain).sum())
        if result.seconds is not None:
            row[f"seconds, {who}"] = result.seconds
    return row


def measure(arguments: list[str]) -> Iterator[dict[str, Any]]:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", nargs=2, type=int, default=[256, 512])
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    for peer, (module, compare) in PEERS.items():
        try:
            importlib.import_module(module)
        except ImportError as missing:
            yield {"peer": peer, "method": f"left out: {missing}"}
            continue
        for name, weight in make_weights((options.shape[0], options.shape[1]), options.seed).items():
            for method, ours, theirs in compare(weight):
                row = {"peer": peer, "version": importlib.metadata.version(peer), "weights": name, "method": method}
                yield row | describe(weight, ours, theirs)
