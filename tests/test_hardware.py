"""What accelerate's own settings mean here, and who wins."""

import pytest

from dist_train.errors import UserError
from dist_train.runtime import resolve_compile, resolve_precision


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
