"""Compile a kernel ahead of time, without a GPU, and read what the compiler made of it."""

import re
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from types import FunctionType
from typing import Any

import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.interpreter import InterpretedFunction
from triton.runtime.jit import JITFunction

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_100": GPUTarget("cuda", 100, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}


@dataclass(frozen=True)
class Code:
    """What the GPU will run: bits of each global access in order, registers a thread, bytes spilled, opcodes."""

    loads: tuple[int, ...]
    stores: tuple[int, ...]
    registers: int
    spills: int
    opcodes: frozenset[str]


def compile_kernel(
    kernel: Any, target: str, arguments: dict[str, Any], num_warps: int = 4, num_stages: int = 3
) -> Code:
    """Compile `kernel` as the launcher would for `arguments`.

    A string is a runtime argument of that type (`"*i16"` a 16-byte aligned pointer, `"i32"`, `"i32:16"` an
    integer known to be a multiple of 16, `"tensordesc<bf16[1, 64]>"` blocks for the copy engine); anything else
    is a constexpr, a string as `tl.constexpr("...")`.
    """
    function = _compilable(kernel)
    signature, constexprs, attrs = {}, {}, {}
    for position, name in enumerate(function.arg_names):
        value = arguments[name]
        if isinstance(value, str):
            signature[name] = value.removesuffix(":16")
            if value.startswith("*") or value.endswith(":16"):
                attrs[(position,)] = [["tt.divisibility", 16]]
        else:
            signature[name] = "constexpr"
            constexprs[(position,)] = value.value if isinstance(value, tl.constexpr) else value
    source = ASTSource(function, signature, constexprs, attrs)
    # fusion named, because triton 3.9 warns that its default will change
    options = {"num_warps": num_warps, "num_stages": num_stages, "enable_fp_fusion": True}
    compiled = triton.compile(source, target=TARGETS[target], options=options)
    return _read_amd(compiled.asm["amdgcn"]) if "amdgcn" in compiled.asm else _read_nvidia(compiled.asm)


def _compilable(kernel: Any) -> JITFunction:
    """The kernel for the compiler: the test process imports it, and what it calls, for the interpreter."""
    function = kernel.fn
    names = dict(function.__globals__)
    for name in function.__code__.co_names:
        if isinstance(names.get(name), InterpretedFunction):
            names[name] = _compilable(names[name])
    # a copy, so that the interpreter keeps its own
    copy = FunctionType(function.__code__, names, function.__name__)
    copy.__module__, copy.__annotations__ = function.__module__, function.__annotations__
    return JITFunction(copy)


def _read_nvidia(asm: dict[str, Any]) -> Code:
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder, "kernel.cubin")
        cubin.write_bytes(asm["cubin"])
        sass = _run("cuobjdump", "-sass", "-res-usage", str(cubin))
    registers = int(re.search(r"REG:(\d+)", sass)[1])  # type: ignore[index]
    local = int(re.search(r"LOCAL:(\d+)", sass)[1])  # type: ignore[index]
    stack = int(re.search(r"STACK:(\d+)", sass)[1])  # type: ignore[index]
    # LDGSTS copies to shared memory through no register
    opcodes = frozenset(re.findall(r"^\s*/\*[0-9a-f]{4,}\*/\s+(?:@!?\w+ )?(\w+)", sass, re.MULTILINE))
    return Code(_widths(sass, "LDG|LDGSTS"), _widths(sass, "STG"), registers, local + stack, opcodes)


def _widths(sass: str, instructions: str) -> tuple[int, ...]:
    found = []
    for match in re.finditer(rf"\b(?:{instructions})((?:\.\w+)+)", sass):
        width = re.search(r"\.(?:[US]?)(8|16|64|128|256)\b", match[1])
        found.append(int(width[1]) if width else 32)
    return tuple(found)


def _read_amd(text: str) -> Code:
    bits = {"ubyte": 8, "sbyte": 8, "byte": 8, "ushort": 16, "sshort": 16, "short": 16}
    bits |= {"dword": 32, "dwordx2": 64, "dwordx3": 96, "dwordx4": 128}

    def widths(kind: str) -> tuple[int, ...]:
        names = re.findall(rf"\b(?:global|buffer|flat)_{kind}_([a-z0-9]+)", text)
        return tuple(bits[name] for name in names)

    registers = int(re.search(r"\.vgpr_count:\s+(\d+)", text)[1])  # type: ignore[index]
    spills = int(re.search(r"\.vgpr_spill_count:\s+(\d+)", text)[1])  # type: ignore[index]
    opcodes = frozenset(re.findall(r"^\s+([a-z]\w+)", text, re.MULTILINE))
    return Code(widths("load"), widths("store"), registers, spills, opcodes)


@lru_cache
def _tool(name: str) -> str:
    bundled = Path(triton.__file__).parent / "backends/nvidia/bin" / name
    found = str(bundled) if bundled.exists() else shutil.which(name)
    if not found:
        raise FileNotFoundError(f"expected {name} in triton's package or on the PATH, found neither")
    return found


def _run(name: str, *arguments: str) -> str:
    return subprocess.run([_tool(name), *arguments], check=True, capture_output=True, text=True).stdout
