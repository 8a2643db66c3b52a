"""What a look at the data gives: figures, and findings with their remedies."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal, TypeAlias

Severity: TypeAlias = Literal["error", "warning", "note"]
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "note")


@dataclass(frozen=True)
class Finding:
    """Something in the data that changes what a model learns or how it is scored.

    Attributes:
        code: its name, such as ``"duplicates"``; stays the same from version to version.
        severity: ``"error"``: training refuses the data; ``"warning"``: the result is another; ``"note"``: little is.
        count: events, targets, users or ids that it is about, as ``what`` says.
        share: of all of them, 0 … 1.
        examples: up to three, each with "user", "item" and "time" as far as it is about them; ids are raw.
        what: with count and share.
        consequence: what it does to the result.
        remedy: what to change, with the configuration's key.
    """

    code: str
    severity: Severity
    count: int
    share: float
    examples: tuple[dict[str, Any], ...]
    what: str
    consequence: str
    remedy: str


@dataclass(frozen=True)
class DataReport:
    """Figures of interactions, and what was found.

    Attributes:
        users, items, events: how many.
        density: distinct pairs of user and item, as a share of all users × items.
        lengths: events of a user: mean, min, quantiles and max by their names.
        histogram: (from, to, users) of history lengths, both included: 1, 2, 3 to 4, 5 to 8, … up to the longest.
        tied_share: of events that have the time of a neighbour; None without timestamps.
        max_seq_len: L, or None.
        beyond: share of training targets (without a split of all) with more than L events before them; None without L.
        split: name and sizes of the split; None without one.
        findings: the gravest first.
    """

    users: int
    items: int
    events: int
    density: float
    lengths: dict[str, float]
    histogram: tuple[tuple[int, int, int], ...]
    tied_share: float | None
    max_seq_len: int | None
    beyond: float | None
    split: dict[str, Any] | None
    findings: tuple[Finding, ...]

    def __getitem__(self, code: str) -> Finding:
        """The first finding of that name; KeyError where there is none."""
        for finding in self.findings:
            if finding.code == code:
                return finding
        raise KeyError(code)

    def to_dict(self) -> dict[str, Any]:
        """All of it, ready for JSON."""
        histogram = [{"from": low, "to": high, "users": users} for low, high, users in self.histogram]
        return asdict(self) | {"histogram": histogram, "findings": [asdict(each) for each in self.findings]}


def by_severity(findings: list[Finding]) -> tuple[Finding, ...]:
    """The gravest first, and among equals in their order."""
    return tuple(sorted(findings, key=lambda finding: SEVERITIES.index(finding.severity)))
