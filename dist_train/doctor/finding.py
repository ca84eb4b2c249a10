"""What a check says: one line."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Finding:
    """The outcome of one check."""

    verdict: Literal["ok", "FAIL", "skip"]
    name: str
    found: str
    """What was found; of a check that was skipped, why; of one that failed, also the remedy."""

    def __str__(self) -> str:
        found = f"({self.found})" if self.verdict == "skip" else self.found
        return f"{self.verdict:<5} {self.name:<12} {found}"


def ok(name: str, found: str) -> Finding:
    """All is well."""
    return Finding("ok", name, found)


def failed(name: str, found: str, remedy: str) -> Finding:
    """Training would fail, or do what nobody wants."""
    return Finding("FAIL", name, f"{found}; {remedy}")


def skipped(name: str, why: str) -> Finding:
    """There is nothing to check here."""
    return Finding("skip", name, why)
