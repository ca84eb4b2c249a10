"""What devices can do at most, by the names that they tell."""

import pytest

from dist_train.flops import peak_flops


@pytest.mark.parametrize(
    ("device", "half", "single"),
    [
        ("NVIDIA H100 80GB HBM3", 989.4e12, 494.7e12),
        ("NVIDIA H100 PCIe", 756e12, 378e12),
        ("NVIDIA H200", 989.4e12, 494.7e12),
        ("NVIDIA H200 NVL", 835.5e12, 417.5e12),
        ("NVIDIA A100-SXM4-80GB", 312e12, 156e12),
        ("NVIDIA L40S", 362e12, 183e12),
        ("Tesla V100-SXM2-32GB", 125e12, 15.7e12),
        ("Tesla V100-PCIE-16GB", 112e12, 14e12),
    ],
)
def test_the_longest_name_counts(device: str, half: float, single: float) -> None:
    assert peak_flops(device, "bf16") == peak_flops(device, "fp16") == pytest.approx(half)
    assert peak_flops(device, "fp32") == pytest.approx(single)


@pytest.mark.parametrize("device", ["cpu", "NVIDIA H1000", "NVIDIA H100 80GB HBM3 MIG 1g.10gb"])
def test_nothing_is_said_of_what_is_not_known(device: str) -> None:
    assert peak_flops(device, "bf16") is None
