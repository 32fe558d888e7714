"""The Triton kernels: run where they can be, compiled for a GPU anywhere, and absent where Triton is."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, CompiledKernel
from triton.compiler import compile as compiled
from triton.runtime.jit import JITFunction

from acmix.ops import _triton_kernels as kernels
from acmix.ops import triton_local_attention as door

AMPERE = GPUTarget("cuda", 80, 32)
SHARED_BYTES = 99 << 10  # what the smallest cards of compute capability 8.x give a block
WITHOUT_TRITON = """
import sys
sys.modules["triton"] = None
import torch
from acmix.ops.triton_local_attention import supported
assert not supported(*torch.ones(3, 1, 1, 16, 8, 8).unbind())
"""


def test_the_kernels_pass_their_cases_on_the_gpu_or_in_the_interpreter():
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "--noconftest",
        Path(__file__).with_name("triton_cases.py"),
    ]
    environment = os.environ if torch.cuda.is_available() else {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]


@pytest.mark.parametrize("kernel", [kernels.forward, kernels.backward_queries, kernels.backward_keys_values])
def test_the_kernels_compile_to_tensor_core_code(kernel: JITFunction):
    assert "mma.sync" in compiled_for_a_gpu(kernel, channels=16, dtype=torch.bfloat16).asm["ptx"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("dtype", "channels"),
    [(torch.bfloat16, 64), (torch.bfloat16, 256), (torch.float32, 64), (torch.float32, 256), (torch.float64, 128)],
)
def test_the_hungriest_kernel_finds_room_on_the_smallest_card(dtype: torch.dtype, channels: int):
    binary = compiled_for_a_gpu(kernels.backward_keys_values, channels=channels, dtype=dtype, window=13)
    assert binary.metadata.shared <= SHARED_BYTES


def test_without_triton_nothing_is_supported():
    assert subprocess.run([sys.executable, "-c", WITHOUT_TRITON], check=False).returncode == 0


def test_the_cpu_is_refused_by_name():
    inputs = torch.ones(3, 1, 1, 16, 8, 8).unbind()
    assert not door.supported(*inputs)
    with pytest.raises(ValueError, match="float32 on cpu"):
        door.triton_local_attention(*inputs, window=7)


def compiled_for_a_gpu(kernel: JITFunction, *, channels: int, dtype: torch.dtype, window: int = 7) -> CompiledKernel:
    """The kernel as a launch on a 56 x 56 map has it compiled: strides by specialization, last one 1."""
    q = torch.empty(2, 4, channels, 56, 56, dtype=dtype, device="meta")
    cut = door._Cut.of(q, q, window, 1, 1)
    constants = cut.key_constants if kernel is kernels.backward_keys_values else cut.query_constants
    pointer = {torch.float16: "*fp16", torch.bfloat16: "*bf16", torch.float32: "*fp32", torch.float64: "*fp64"}
    sums = pointer[torch.float64 if dtype == torch.float64 else torch.float32]
    signature, known = {}, {}
    for place, name in enumerate(kernel.arg_names):
        if name in constants:
            signature[name], known[place,] = "constexpr", constants[name]
        elif name.endswith("_strides"):
            signature[name], known[place, 4] = ("i64",) * 4 + ("constexpr",), 1
        elif name.endswith("_ptr"):
            signature[name] = sums if name in {"log_total_ptr", "expected_ptr"} else pointer[dtype]
        else:
            signature[name] = "i32"
    return compiled(ASTSource(kernel, signature, known), target=AMPERE)
