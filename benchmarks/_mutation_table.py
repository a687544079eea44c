"""Tables of `mutation.py`."""

import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

RULES = """Not drawn, by rule, since no result can change: annotations (the metadata of `Annotated` is drawn) and blocks
of `TYPE_CHECKING`; decorators that change speed or types only (`njit`, `cache`, `lru_cache`, `overload`, `no_grad`);
the options `frozen`, `slots` and `strict` of `zip`, and `assert`; `copy=False`, and constants that set how much is
done at a time (chunks, buffers, tiles, threads); the text of log records and exceptions; `is` for `==`."""


def render(state: dict, reasons: dict[str, str], command: str, versions: str) -> str:
    """Markdown: what was killed in each room, then the survivors, with reasons."""
    outcomes = {m["number"]: m for m in state["mutants"] if "outcome" in m}
    rooms = list(dict.fromkeys(m["room"] for m in state["mutants"]))
    drawn = Counter(m["room"] for m in state["mutants"])
    total, done = len(state["mutants"]), len(outcomes)
    lines = [
        "# Mutation testing",
        "",
        f"`{command}`: {done} of {total} mutants, drawn over eight rooms with the operators of cosmic-ray.",
        "A mutant is killed if a test that passes on the unchanged code fails, or does not end within the time limit.",
        "",
        *RULES.splitlines(),
        "",
        "| room | places | mutants | killed | of these by time | survived | killed, % | by earlier tests, % |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for room in [*rooms, None]:
        here = [m for m in outcomes.values() if room in (None, m["room"])]
        count = Counter(m["outcome"] for m in here)
        killed = count["killed"] + count["timeout"]
        before = killed - sum(m["outcome"] == "killed" and m.get("by_new_test", False) for m in here)
        places = sum(state["places"].values()) if room is None else state["places"][room]
        cells = [room or "**all**", places, f"{len(here)}" if len(here) == drawn[room] or not room else
                 f"{len(here)} of {drawn[room]}", killed, count["timeout"], count["survived"],
                 _percent(killed, len(here)), _percent(before, len(here))]  # fmt: skip
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    lines += ["", "## Survivors", ""]
    lines += _listed((m for m in outcomes.values() if m["outcome"] == "survived"), reasons)
    lines += ["", "## Killed by tests that were written for this table", ""]
    lines += _listed((m for m in outcomes.values() if m["outcome"] == "killed" and m.get("by_new_test")), None)
    return "\n".join([*lines, "", versions, ""])


def _listed(mutants: Iterable[dict], reasons: dict[str, str] | None) -> list[str]:
    rows = []
    for m in sorted(mutants, key=lambda m: (m["path"], m["line"])):
        place = f"{m['path'].removeprefix('atlasseg/')}:{m['line']}"
        cells = [place, f"`{_cell(m['before'])}` → `{_cell(m['after'])}`"]
        rows.append([*cells, _cell(reasons.get(key(m), ""))] if reasons is not None else cells)
    head = ["place", "change", "reason"][: 2 if reasons is None else 3]
    return [f"| {' | '.join(row)} |" for row in [head, ["---"] * len(head), *rows]] if rows else ["None."]


def key(mutant: dict) -> str:
    """Key of a mutant in the file of reasons: module and change, which stay when lines move."""
    return f"{mutant['path']}: {mutant['before']} -> {mutant['after']}"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").strip()


def _percent(part: int, whole: int) -> str:
    return f"{100 * part / whole:.1f}" if whole else ""


def read(path: Path) -> dict:
    """JSON of a file, empty where there is none."""
    return json.loads(path.read_text()) if path.exists() else {}
