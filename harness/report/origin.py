"""What results were made with: the same method file, rows and weights or others; dates, commits, machines."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from harness.schema import Result

SOURCES = ("method source", "rows", "backbone weights")
COMMON_TO_A_COLUMN = ("protocols", "rows", "backbone weights")


def find_differences(results: list[Result], kinds: Sequence[str]) -> list[str]:
    """Which of `kinds` is not the same in all results that have it."""
    marks = {
        "protocols": {run.cell.protocol.title for run in results},
        "method source": {run.method_sha256 for run in results},
        "rows": {run.data.fingerprint for run in results if run.data},
        "backbone weights": {run.backbone.fingerprint for run in results if run.backbone and run.backbone.num_params},
    }
    return [kind for kind in kinds if len(marks[kind]) > 1]


def commits_of(results: Iterable[Result]) -> list[str]:
    """The commits of the harness at which results were made, as far as they say."""
    made = [r.provenance for r in results]
    return sorted(
        {f"{p['commit'][:10]}{' with local changes' if p.get('dirty') else ''}" for p in made if p.get("commit")}
    )


def origin_of(results: list[Result]) -> str:
    """One line on dates, commits, versions and hardware; empty where the results do not say."""
    days = sorted({r.finished_at[:10] for r in results if r.finished_at})
    made = [r.provenance for r in results]
    commits = commits_of(results)
    machines = sorted({f"{p['processor']} ({p['num_cpus']} CPUs)" for p in made if p.get("processor")})
    devices = sorted({p["device"] for p in made if p.get("device") not in (None, "cpu", "unknown")})
    torch = sorted({p["versions"]["torch"] for p in made if p.get("versions", {}).get("torch")})
    parts = [
        "Protocol " + " and ".join(sorted({r.cell.protocol.title for r in results})),
        "Runs of " + " to ".join(days[:: max(1, len(days) - 1)]) if days else "",
        "commit " + ", ".join(commits) if commits else "",
        *("torch " + version for version in torch),
        *machines,
        *devices,
    ]
    return "; ".join(part for part in parts if part)
