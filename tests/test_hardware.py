"""What accelerate's own settings mean here, and who wins; what the machine is."""

import logging
import os
from pathlib import Path

import pytest
import torch

from dist_train import hardware, nvidia
from dist_train.errors import UserError
from dist_train.hardware import refuse_recording, resolve_compile, resolve_precision


@pytest.mark.parametrize(
    ("flag", "accelerate", "expected"),
    [
        ("auto", "bf16", "bf16"),
        ("auto", "fp16", "fp16"),
        ("fp32", "bf16", "fp32"),
        ("bf16", "no", "bf16"),
    ],
)
def test_our_precision_flag_wins_over_accelerates_only_when_given(
    flag: str, accelerate: str, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", accelerate)
    assert resolve_precision(flag, cpu=True) == expected


def test_a_precision_we_do_not_have_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "fp8")
    with pytest.raises(UserError, match=r"--mixed_precision fp8: expected no, bf16 or fp16"):
        resolve_precision("auto", cpu=True)


@pytest.mark.parametrize(
    ("flag", "accelerate", "cpu", "expected"),
    [
        (None, "no", True, None),
        (None, "no", False, "inductor"),
        (None, "EAGER", True, "eager"),
        (True, "no", True, "inductor"),
        (True, "AOT_EAGER", True, "aot_eager"),
        (False, "inductor", False, None),
    ],
)
def test_our_compile_flag_wins_over_accelerates_only_when_given(
    flag: bool | None,
    accelerate: str,
    cpu: bool,
    expected: str | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", accelerate)
    assert resolve_compile(flag, cpu=cpu) == expected


@pytest.mark.parametrize(
    ("cpu", "precision", "processes", "reason"),
    [
        (True, "fp32", "1", "the device is cpu"),
        (False, "fp16", "1", "--runtime.precision fp16"),
        (False, "bf16", "2", "here are 2"),
    ],
)
def test_what_cannot_be_recorded_is_refused(
    cpu: bool, precision: str, processes: str, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", processes)
    with pytest.raises(UserError, match=rf"--runtime.cuda_graphs true: .*{reason}"):
        refuse_recording(cpu=cpu, precision=precision)


def test_without_a_compiler_only_who_asked_for_it_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("CC", "CXX"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    for cpu in (True, False):
        with pytest.raises(UserError, match=r"--runtime.compile true: there is no C.* compiler"):
            resolve_compile(True, cpu=cpu)
    with caplog.at_level(logging.WARNING):
        assert resolve_compile(None, cpu=False) is None
    assert "steps are not compiled: there is no C compiler" in caplog.text
    compiler = tmp_path / "gcc"
    compiler.touch(0o755)
    assert resolve_compile(None, cpu=False) == "inductor"
    monkeypatch.setattr("sysconfig.get_path", lambda name: str(tmp_path))
    with pytest.raises(UserError, match=r"there is no .*Python\.h"):
        resolve_compile(True, cpu=False)


def test_what_accelerate_says_of_devices_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setenv("ACCELERATE_USE_CPU", "True")
    assert hardware.is_for_cpu("auto", processes=1)
    assert not hardware.is_for_cpu("cuda", processes=1)
    monkeypatch.setenv("ACCELERATE_USE_CPU", "False")
    assert not hardware.is_for_cpu("auto", processes=1)
    hardware.refuse_sharding()
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(UserError, match="FSDP"):
        hardware.refuse_sharding()


def test_gpus_are_those_of_nvidia_smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text('#!/bin/sh\necho "$1 of one"\necho "$1 of two"\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    fields = "clocks.sm,clocks.max.sm,power.limit"
    expected = [f"--query-gpu={fields} of {name}" for name in ("one", "two")]
    assert nvidia.ask(fields) == expected
    assert hardware.facts()["gpu_clocks"] == expected

    program.write_text("#!/bin/sh\necho NVIDIA-SMI has failed\nexit 9\n")
    assert nvidia.ask(fields) == []
    monkeypatch.setenv("PATH", str(tmp_path / "nowhere"))
    assert nvidia.ask(fields) == []
    assert hardware.facts()["gpu_clocks"] is None


def test_the_clock_of_a_cpu_is_a_number_where_the_kernel_tells_it() -> None:
    mhz = hardware.facts()["cpu_mhz"]
    assert (mhz is None) == ("cpu MHz" not in Path("/proc/cpuinfo").read_text())
    assert mhz is None or 100 < mhz < 10_000
