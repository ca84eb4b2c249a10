"""What a process computes with: device, precision, compiler, threads and memory."""

import ctypes
import logging
import os
import shutil
import sysconfig
from pathlib import Path
from typing import Any

import torch

from dist_train import nvidia
from dist_train.errors import UserError

log = logging.getLogger("dist_train")

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def is_for_cpu(device: str, *, processes: int) -> bool:
    """Whether to train on the CPU: `auto` does where accelerate says so, or there is no GPU.

    Raises:
        UserError: there is no GPU, or not one for each process.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError(
            "--runtime.device cuda: torch sees no CUDA device here; "
            "check nvidia-smi, or use --runtime.device cpu"
        )
    asked = device == "auto" and os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true")
    if device == "cpu" or asked or not torch.cuda.is_available():
        return True
    # Processes of torchrun and accelerate see the same GPUs; a cluster may show each its own.
    gpus, shared = torch.cuda.device_count(), "TORCHELASTIC_RUN_ID" in os.environ
    if shared and processes > gpus:
        raise UserError(
            f"{processes} processes for {gpus} GPUs on this machine: start fewer (accelerate "
            "launch --num_processes, torchrun --nproc_per_node), or use --runtime.device cpu"
        )
    return False


def refuse_sharding() -> None:
    """Raises UserError where accelerate's configuration asks for more than data parallelism."""
    for name in ("FSDP", "DEEPSPEED", "MEGATRON_LM", "PARALLELISM_CONFIG"):
        if os.environ.get(f"ACCELERATE_USE_{name}", "").lower() == "true":
            raise UserError(
                f"accelerate's configuration asks for {name}: each process here holds the whole "
                "network; use --config_file launch/many_gpus.yaml or launch/many_nodes.yaml"
            )


def resolve_precision(precision: str, *, cpu: bool) -> str:
    """`auto` becomes what accelerate asks for, else the hardware's fastest 16-bit type."""
    if precision != "auto":
        return precision
    asked = os.environ.get("ACCELERATE_MIXED_PRECISION", "no").lower()
    if asked in DTYPES:
        return asked
    if asked != "no":
        raise UserError(
            f"accelerate's --mixed_precision {asked}: expected no, bf16 or fp16; "
            "or set --runtime.precision"
        )
    if cpu:
        return "bf16" if torch.cpu.get_capabilities().get("avx512_bf16") else "fp32"
    return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"


def resolve_compile(compile: bool | None, *, cpu: bool) -> str | None:
    """The backend to compile with; unset: what accelerate asks for, else inductor on CUDA.

    On CPU, compiling takes longer than it saves in a run of minutes (docs/log.md).

    Raises:
        UserError: it was asked for, and what it needs is not installed.
    """
    asked = os.environ.get("ACCELERATE_DYNAMO_BACKEND", "no").lower()
    backend = "inductor" if asked == "no" else asked
    wanted = compile or (compile is None and asked != "no")
    if compile is False or (cpu and not wanted):
        return None
    lacking = lacks_compiler(cpu=cpu) if backend == "inductor" else ""
    if lacking and wanted:
        raise UserError(
            f"--runtime.compile true: {lacking}; install g++ and python3-dev, or use "
            "--runtime.compile false"
        )
    if lacking:
        log.warning("steps are not compiled: %s; install g++ and python3-dev", lacking)
        return None
    return backend


def refuse_recording(*, cpu: bool, precision: str) -> None:
    """Raises UserError where steps cannot be recorded as CUDA graphs."""
    asked, processes = "--runtime.cuda_graphs true", int(os.environ.get("WORLD_SIZE", 1))
    if cpu:
        raise UserError(f"{asked}: only a GPU has them, and here the device is cpu; leave it out")
    if precision == "fp16":
        raise UserError(
            f"{asked}: with --runtime.precision fp16 each step asks the GPU whether it counts; "
            "choose bf16 or fp32"
        )
    if processes > 1:
        raise UserError(
            f"{asked}: it is for one process, and here are {processes}, whose steps wait for each "
            "other; leave it out"
        )


def lacks_compiler(*, cpu: bool) -> str:
    """What inductor compiles with and is not here; nothing if it all is.

    Triton builds what starts its kernels in C, against Python's headers.
    """
    variable, usual = ("CXX", ("g++",)) if cpu else ("CC", ("gcc", "clang"))
    named = os.environ.get(variable)
    if not any(shutil.which(name) for name in ((named,) if named else usual)):
        return f"there is no {named or ('C++' if cpu else 'C') + ' compiler'} here"
    header = Path(sysconfig.get_path("include"), "Python.h")
    return "" if header.exists() else f"there is no {header}"


def set_threads(threads: int | None, *, processes: int) -> None:
    """Shares the cores out among a node's processes, unless told otherwise.

    accelerate and torchrun set $OMP_NUM_THREADS to 1 whatever the machine: that is no wish.
    """
    launched = "ACCELERATE_MIXED_PRECISION" in os.environ or "TORCHELASTIC_RUN_ID" in os.environ
    wished = os.environ.get("OMP_NUM_THREADS")
    if threads is None and (wished is None or (launched and wished == "1")):
        threads = max(1, len(os.sched_getaffinity(0)) // processes)
    if threads is not None:
        torch.set_num_threads(threads)


def choose_algorithms(*, deterministic: bool) -> None:
    """Those that give the same bits each time, or else the fastest: cuDNN tries them out."""
    # torch looks for it once, at the first matrix product, and refuses deterministic ones without.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(deterministic)
    torch.backends.cudnn.benchmark = not deterministic
    torch.set_float32_matmul_precision("high")


def keep_freed_memory() -> None:
    """Tells glibc not to hand freed tensors back to the kernel.

    It does so above 32 MB at the latest, and a step on the CPU then spends a tenth of its time on
    the page faults of getting the same memory again (docs/log.md).
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        trim_threshold, mmap_max = -1, -4  # malloc.h
        libc.mallopt(mmap_max, 0)
        libc.mallopt(trim_threshold, 2**31 - 1)


def facts() -> dict[str, Any]:
    """The machine, as far as it matters to a throughput.

    Clocks are those of this moment: of the last core, and of each GPU, with its highest clock and
    the limit of its power.
    """
    lines = (line.partition(":") for line in Path("/proc/cpuinfo").read_text().splitlines())
    cpu = {name.strip(): value.strip() for name, _, value in lines}
    mhz = cpu.get("cpu MHz")
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "cpu": cpu.get("model name"),
        "cpu_mhz": mhz and float(mhz),
        "cores": len(os.sched_getaffinity(0)),
        "torch_threads": torch.get_num_threads(),
        "gpu": gpus or None,
        "gpu_clocks": nvidia.ask("clocks.sm,clocks.max.sm,power.limit") or None,
    }
