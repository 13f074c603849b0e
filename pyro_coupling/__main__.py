"""``python -m pyro_coupling`` tells what is installed; ``python -m pyro_coupling doctor`` tries it out."""

from __future__ import annotations

__all__ = ["main"]

import argparse
import sys
from collections.abc import Sequence

from .doctor import examine, report


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit status: 1 if something that every fit needs is broken."""
    parser = argparse.ArgumentParser(prog="python -m pyro_coupling", description="Version, devices, packages.")
    parser.add_argument("command", nargs="?", choices=["doctor"], help="check the environment by using it")
    if parser.parse_args(arguments).command is None:
        print(report())
        return 0
    well = True
    for finding in examine():
        print(finding, flush=True)
        well = well and not (finding.needed and finding.status == "broken")
    print("All that a fit needs is in order." if well else "Something that every fit needs is broken.")
    return 0 if well else 1


if __name__ == "__main__":
    sys.exit(main())
