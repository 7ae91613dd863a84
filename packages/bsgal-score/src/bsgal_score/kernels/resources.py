"""Compile the kernels ahead of time, without a GPU, and state what they use.

`python -m bsgal_score.kernels.resources` prints one JSON object per kernel variant and target.
The process must not have TRITON_INTERPRET set.
"""

from __future__ import annotations

import json
import re
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from . import cache_update_dot, ghost_dot, ghost_sqnorm, sketch

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}

_AMD_FIELDS = ("count", "spill_count")


@dataclass(frozen=True, kw_only=True)
class Resources:
    """What one compiled kernel uses."""

    kernel: str
    target: str
    registers: int
    """Vector registers per thread."""
    spills: int
    """Bytes (NVIDIA) or registers (AMD) spilled to memory per thread."""
    load_bits: int
    """Width of the widest global loads, those of whole blocks."""
    bytes_per_element: float | None
    """Global bytes of all loads and stores, wide or narrow, per element of a block; None for
    products of matrices, whose tiles are read again and again."""


@dataclass(frozen=True, kw_only=True)
class _Variant:
    name: str
    function: Any
    signature: dict[str, str]
    constants: dict[str, Any]
    n_warps: int
    one_block: Mapping[int, dict[str, Any]] = field(default_factory=dict)
    """Changes that leave one block of some elements to a program, for two numbers of elements:
    then no loop hides how often a load runs, and what does not depend on them cancels out."""
    partial_bytes: int = 0
    """Bytes of partial sums per element that a program writes once, whatever blocks it takes."""
    n_blocks: int = 1
    """Blocks that a program takes."""


def variants() -> list[_Variant]:
    """List what is compiled: contiguous, aligned fp32 tensors."""
    found = []
    for name, switches in {
        "update_score": {"UPDATE": True, "SCORE": True},
        "update": {"UPDATE": True, "SCORE": False},
        "score": {"UPDATE": False, "SCORE": True},
        "update_score_metric": {"UPDATE": True, "SCORE": True, "METRIC": True},
        "update_score_row_decay": {"UPDATE": True, "SCORE": True, "ROW_DECAY": True},
    }.items():
        constants: dict[str, Any] = {
            "CACHE_DTYPE": tl.float32,
            "REFERENCE_DTYPE": tl.float32,
            "CANDIDATE_DTYPE": tl.float32,
            "ROW_DECAY": False,
            "METRIC": False,
            "ALIGNED": True,
            "CHUNK": cache_update_dot.CHUNK,
            "BLOCK": cache_update_dot.BLOCK,
            **switches,
        }
        found.append(
            _Variant(
                name=f"cache_update_dot/{name}",
                function=cache_update_dot._cache_update_dot_kernel,
                signature={
                    "tensors_ptr": "*i64",
                    "scalars_ptr": "*fp32",
                    "chunks_ptr": "*i64",
                    "partials_ptr": "*fp32",
                    "decay": "fp32",
                    "new_weight": "fp32",
                },
                constants=constants,
                one_block={
                    n: {"CHUNK": n, "BLOCK": n} for n in _block_sizes(cache_update_dot.BLOCK)
                },
                n_warps=cache_update_dot.N_WARPS,
            )
        )
    return [*found, *_matrix_variants(), *_sketch_variants()]


def _sketch_variants() -> list[_Variant]:
    return [
        _Variant(
            name=name,
            function=sketch._sketch_kernel,
            signature={
                "blocks_ptr": "*i64",
                "partials_ptr": "*fp32",
                # Not assumed to be a multiple of 16, which sizes are elsewhere.
                "n_blocks_given": "i64",
                "shift_key": "i64",
                "sign_key": "i64",
                "decay": "fp32",
                "new_weight": "fp32",
            },
            constants={
                "DTYPE": tl.float32,
                "REFERENCE_DTYPE": tl.float32,
                "UPDATE": update,
                "ALIGNED": True,
                "WIDTH": 4096,
                "TILE": sketch.TILE,
                "BLOCKS_PER_PROGRAM": sketch.BLOCKS_PER_PROGRAM,
            },
            one_block={n: {"BLOCKS_PER_PROGRAM": 1, "TILE": n} for n in _block_sizes(sketch.TILE)},
            n_warps=sketch.N_WARPS,
            partial_bytes=4 * 4,
            n_blocks=sketch.BLOCKS_PER_PROGRAM,
        )
        for name, update in (("sketch", False), ("cache_update_sketch", True))
    ]


def _matrix_variants() -> list[_Variant]:
    pointers = {"output_grads_ptr": "*fp32", "inputs_ptr": "*fp32", "partials_ptr": "*fp32"}
    strides = {"inputs_stride": "i32", "output_grads_stride": "i32"}
    sizes = {"n_inputs": "i32", "n_outputs": "i32"}
    return [
        _Variant(
            name="ghost_dot",
            function=ghost_dot._ghost_dot_kernel,
            signature=pointers
            | strides
            | sizes
            | {"weights_ptr": "*fp32"}
            | {"weights_stride": "i32", "n_rows": "i32"},
            constants={
                "BLOCK_ROWS": ghost_dot.BLOCK_ROWS,
                "BLOCK_OUTPUTS": ghost_dot.BLOCK_OUTPUTS,
                "BLOCK_INPUTS": ghost_dot.BLOCK_INPUTS,
            },
            n_warps=ghost_dot.N_WARPS,
        ),
        _Variant(
            name="ghost_sqnorm",
            function=ghost_sqnorm._ghost_sqnorm_kernel,
            signature=pointers | strides | sizes | {"order_ptr": "*i64", "tiles_ptr": "*i64"},
            constants={
                "BLOCK_ROWS": ghost_sqnorm.BLOCK_ROWS,
                "BLOCK_COLUMNS": ghost_sqnorm.BLOCK_COLUMNS,
            },
            n_warps=ghost_sqnorm.N_WARPS,
        ),
    ]


def measure(variant: _Variant, target_name: str) -> Resources:
    """Compile one variant for one target and read its machine code."""
    target = TARGETS[target_name]
    shipped = _compile(variant, target, variant.constants)
    accesses = _accesses(shipped, target)
    registers, spills = _registers(shipped, target)
    load_bits = max(bits for kind, bits in accesses if kind in ("ld", "load"))
    bytes_per_element = _bytes_per_element(variant, target) if variant.one_block else None
    return Resources(
        kernel=variant.name,
        target=target_name,
        registers=registers,
        spills=spills,
        load_bits=load_bits,
        bytes_per_element=bytes_per_element,
    )


def _bytes_per_element(variant: _Variant, target: GPUTarget) -> float:
    """Count what one more element in a block costs, in whole blocks and in a tensor's last one.

    Both have a path of their own through the kernel, with the same loads and stores, as wide as can
    be in the one and narrow in the other; partial sums are behind both.
    """
    n_threads = variant.n_warps * target.warp_size
    (few, few_bytes), (many, many_bytes) = (
        (n, n_threads * sum(bits for _, bits in accesses) / 8)
        for n, changes in variant.one_block.items()
        for accesses in [_accesses(_compile(variant, target, variant.constants | changes), target)]
    )
    both_paths: float = (many_bytes - few_bytes) / (many - few) - variant.partial_bytes
    return both_paths / 2 + variant.partial_bytes / variant.n_blocks


def _block_sizes(shipped: int) -> tuple[int, int]:
    return shipped, 2 * shipped


def _compile(variant: _Variant, target: GPUTarget, constants: dict[str, Any]) -> str:
    """Return the assembly text (PTX or AMDGCN)."""
    names = variant.function.arg_names
    signature = {name: variant.signature.get(name, "constexpr") for name in names}
    # Contiguous operands of usual sizes: pointers, sizes and strides are multiples of 16.
    aligned = {
        (i,): [["tt.divisibility", 16]]
        for i, name in enumerate(names)
        if signature[name][0] == "*" or signature[name] == "i32"
    }
    compiled = triton.compile(
        ASTSource(variant.function, signature, constants, aligned),
        target=target,
        options={"num_warps": variant.n_warps},
    )
    text: str = compiled.asm["ptx" if target.backend == "cuda" else "amdgcn"]
    return text


def _accesses(text: str, target: GPUTarget) -> list[tuple[str, int]]:
    """List kind and width in bits of every global load and store."""
    if target.backend == "cuda":
        pattern = r"\b(ld|st)\.global(?:\.\w+::\w+)*(?:\.v(\d))?\.[bfus](\d+)"
        found = [
            (kind, int(count or 1) * int(bits)) for kind, count, bits in re.findall(pattern, text)
        ]
        # Tiles of matrices are copied to shared memory by loads that state their bytes.
        copies = re.findall(r"cp\.async\.c[ag]\.shared\.global \[[^]]*\], \[[^]]*\], (\w+)", text)
        return found + [("ld", 8 * int(n_bytes, 0)) for n_bytes in copies]
    found = re.findall(r"\b(?:buffer|global|flat)_(load|store)_dword(?:x(\d))?\b", text)
    return [(kind, 32 * int(count or 1)) for kind, count in found]


def _registers(text: str, target: GPUTarget) -> tuple[int, int]:
    """Return registers per thread and what was spilled."""
    if target.backend == "hip":
        count, spills = (re.findall(rf"\.vgpr_{n}:\s+(\d+)", text)[0] for n in _AMD_FIELDS)
        return int(count), int(spills)
    architecture = re.findall(r"\.target (sm_\w+)", text)[0]
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "kernel.ptx"
        source.write_text(text)
        # The assembler that Triton ships; what names it changes from release to release.
        assembler = Path(triton.__file__).parent / "backends/nvidia/bin/ptxas"
        command = [str(assembler), "-v", f"--gpu-name={architecture}", str(source)]
        command += ["-o", str(Path(folder) / "kernel.cubin")]
        report = subprocess.run(command, check=True, capture_output=True, text=True).stderr
    spilled = re.findall(r"(\d+) bytes spill (?:stores|loads)", report)
    return int(re.findall(r"Used (\d+) registers", report)[0]), sum(map(int, spilled))


def main() -> None:
    """Print the resources of every kernel variant on every target, one JSON object a line."""
    for target_name in TARGETS:
        for variant in variants():
            print(json.dumps(asdict(measure(variant, target_name))))  # noqa: T201 - a command


if __name__ == "__main__":
    main()
