"""What results were made with: where they differ in method file, rows or weights; their dates and machines."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from harness.results import Result

COMMON_TO_AN_ENTRY = ("method source", "rows", "backbone weights")
"""What all runs of one entry must share: a mean over runs that differ in it means nothing."""
COMMON_TO_A_COLUMN = ("protocols", "rows", "backbone weights")
"""What all runs of one column must share for its scores to be comparable. Its methods differ, of course."""


def find_differences(results: list[Result], kinds: Sequence[str]) -> list[str]:
    """Which of `kinds` (SOURCES or COMMON_TO_A_COLUMN) differ between the results that have it."""
    fingerprints = {
        "protocols": {run.cell.protocol.title for run in results},
        "method source": {run.method_sha256 for run in results},
        "rows": {run.data.fingerprint for run in results if run.data},
        "backbone weights": {run.backbone.fingerprint for run in results if run.backbone and run.backbone.num_params},
    }
    return [kind for kind in kinds if len(fingerprints[kind]) > 1]


def commits_of(results: Iterable[Result]) -> list[str]:
    """The commits of the harness that made the results, 10 hex digits each, as far as results name them."""
    made = [r.provenance for r in results]
    return sorted(
        {f"{p['commit'][:10]}{' with local changes' if p.get('dirty') else ''}" for p in made if p.get("commit")}
    )


def origin_of(results: list[Result]) -> str:
    """One line on protocols, dates, commits, torch versions and hardware; what the results do not state is left out."""
    days = sorted({r.finished_at[:10] for r in results if r.finished_at})
    made = [r.provenance for r in results]
    commits = commits_of(results)
    machines = sorted({f"{p['processor']} ({p['num_cpus']} CPUs)" for p in made if p.get("processor")})
    devices = sorted({p["device"] for p in made if p.get("device") not in (None, "cpu", "unknown")})
    torch = sorted({p["versions"]["torch"] for p in made if p.get("versions", {}).get("torch")})
    texts = [
        "Protocol " + " and ".join(sorted({r.cell.protocol.title for r in results})),
        "Runs of " + " to ".join(dict.fromkeys((days[0], days[-1]))) if days else "",
        "commit " + ", ".join(commits) if commits else "",
        *("torch " + version for version in torch),
        *machines,
        *devices,
    ]
    return "; ".join(text for text in texts if text)
