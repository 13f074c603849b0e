"""The results as Markdown."""

from __future__ import annotations

__all__ = ["markdown"]

from .cells import KINDS, OPERATIONS
from .contenders import COMPILED, PEERS


def markdown(results: dict) -> str:
    settings = results["settings"]
    versions = ", ".join(f"{package} {version}" for package, version in settings["versions"].items())
    run = f"{settings['processor']}, threads: {settings['threads']}, one run of {settings['minutes']:.0f} minutes"
    parts = [f"{run}; {versions}."]
    for kind in KINDS:
        rows = sorted((row for row in results["cells"] if row["kind"] == kind), key=_order)
        if rows:
            parts += [f"### {kind.capitalize()}: times of the floor", _ratios(rows)]
            parts += [f"### {kind.capitalize()}: milliseconds", _milliseconds(rows)]
    if results["memory"]:
        parts += ["### Megabytes of live tensors", _memory(results["memory"])]
    return "\n\n".join(parts)


def _order(row: dict) -> tuple:
    return row["dim"], row["batch"], OPERATIONS.index(row["operation"])


def _label(row: dict) -> str:
    return f"D{row['dim']} B{row['batch']} {row['operation']}"


def _ratios(rows: list[dict]) -> str:
    """Every contender by the floor, and the fastest torch peer by ours; seconds of compilation, where there was one."""
    names = [name for name in rows[0]["contenders"] if name != "floor"]
    peers = [name for name in PEERS if name in names]
    compiled = [name for name in COMPILED if name in names]
    heads = ["cell", *names] + ["best torch peer / ours"] * bool(peers) + ["compilation (s)"] * bool(compiled)
    lines = []
    for row in rows:
        medians = {name: facts["median"] for name, facts in row["contenders"].items()}
        line = [_label(row), *(f"{medians[name] / medians['floor']:.2f}" for name in names)]
        if peers:
            best = min(peers, key=medians.get)
            line.append(f"{medians[best] / medians['pyro_coupling']:.2f} ({best})")
        if compiled:
            line.append(", ".join(f"{row['contenders'][name]['compilation']:.0f}" for name in compiled))
        lines.append(line)
    return _table(heads, lines)


def _milliseconds(rows: list[dict]) -> str:
    """Medians and, in brackets, quartiles, or the number of calls where it is too small for them."""
    names = list(rows[0]["contenders"])
    lines = [[_label(row), *(_spread(row["contenders"][name]) for name in names)] for row in rows]
    return _table(["cell", *names], lines)


def _spread(facts: dict[str, float]) -> str:
    spread = f"{_short(facts['low'])}-{_short(facts['high'])}" if facts["calls"] > 3 else f"n = {facts['calls']}"
    return f"{_short(facts['median'])} ({spread})"


def _short(number: float) -> str:
    """Three digits."""
    return f"{number:.{max(0, 3 - len(str(int(number))))}f}"


def _memory(rows: list[dict]) -> str:
    names = list(rows[0]["megabytes"])
    lines = []
    for row in rows:
        peaks = row["megabytes"]
        best = min(PEERS, key=peaks.get)
        ours, frugal = peaks["pyro_coupling"], peaks["pyro_coupling, checkpoint"]
        figures = [f"{peaks[name]:.0f}" for name in names]
        lines.append([row["kind"], str(row["layers"]), *figures, f"{ours / peaks[best]:.2f}", f"{frugal / ours:.2f}"])
    return _table(["couplings", "layers", *names, "ours / best peer", "checkpoint / ours"], lines)


def _table(heads: list[str], lines: list[list[str]]) -> str:
    rule = "|---" + "|--:" * (len(heads) - 1) + "|"
    return "\n".join([f"| {' | '.join(heads)} |", rule, *(f"| {' | '.join(line)} |" for line in lines)])
