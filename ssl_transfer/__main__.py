"""The command `ssl-transfer VERB …`, or `python -m ssl_transfer VERB …`: a verb runs the tool of that name."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import NoReturn

if __name__ == "__main__":  # the current folder, where imports would come from first, may hold a transfer.py
    sys.path[:1] = [str(p) for p in Path(__file__).resolve().parents[1:2] if not (p / "ssl_transfer/configs").is_dir()]

from ssl_transfer.console import COMMANDS, Parser, run_main
from ssl_transfer.environment import ROOT, load_tool
from ssl_transfer.errors import exit_on_interrupt

VERBS = ("pretrain", "evaluate", "convert", "transfer", "launch", "table", "data", "doctor", "lr-search")


def main() -> NoReturn:
    """Run the verb that the command line names, as its tool would run."""
    exit_on_interrupt()
    command = COMMANDS[Path(sys.argv[0]).name == "__main__.py"]
    sys.argv[0], verb = command, sys.argv[1] if len(sys.argv) > 1 else "--help"
    _parser().parse_args([verb])  # leaves after --help, --version or a wrong word
    sys.argv[:2] = [f"{command} {verb}"]
    run_main(load_tool(verb.replace("-", "_")).main)


def _parser() -> Parser:
    described = "\n".join(f"  {verb:10s}{_first_line(verb)}" for verb in VERBS)
    text = f"How well do pre-trained ResNet weights transfer to detection?\n\nverbs:\n{described}"
    parser = Parser(description=text, epilog=f"{sys.argv[0]} VERB --help shows a verb's options and examples.")
    parser.add_argument("verb", metavar="VERB", choices=VERBS, help="what to do")
    return parser


def _first_line(verb: str) -> str:
    """The first line of a tool's docstring, read without importing it."""
    with open(ROOT / "tools" / f"{verb.replace('-', '_')}.py", encoding="utf-8") as source:
        return source.readline().strip().strip('"')


if __name__ == "__main__":
    main()
