# PYTHON_ARGCOMPLETE_OK
"""The command `ssl-transfer VERB …`, or `python -m ssl_transfer VERB …`: a verb runs the tool of that name."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import NoReturn

if __name__ == "__main__":  # the current folder, where imports would come from first, may hold a transfer.py
    sys.path[:1] = [str(p) for p in Path(__file__).resolve().parents[1:2] if not (p / "ssl_transfer/configs").is_dir()]

from ssl_transfer.console import COMMANDS, Parser, run_main
from ssl_transfer.environment import ROOT, load_tool
from ssl_transfer.errors import exit_on_interrupt

VERBS = ("pretrain", "evaluate", "convert", "transfer", "launch", "table", "compare", "data", "doctor", "lr-search")


def main() -> NoReturn:
    """Run the verb that the command line names, as its tool would run."""
    exit_on_interrupt()
    command = COMMANDS[Path(sys.argv[0]).name == "__main__.py"]
    sys.argv[0], verb = command, _verb_to_complete() or (sys.argv[1] if len(sys.argv) > 1 else "--help")
    if not _verb_to_complete():
        _parser().parse_args([verb])  # leaves after --help, --version or a wrong word
    sys.argv[:2] = [f"{command} {verb}"]
    run_main(load_tool(verb.replace("-", "_")).main)


def _verb_to_complete() -> str:
    """The verb after which a shell completes words: its tool answers (argcomplete's protocol). Mostly empty."""
    words = os.environ.get("COMP_LINE", "").split(" ")
    if "_ARGCOMPLETE" not in os.environ or len(words) < 3 or words[1] not in VERBS:
        return ""
    os.environ["_ARGCOMPLETE"] = "2"  # the number of the word that counts as the program
    return words[1]


def _parser() -> Parser:
    described = "\n".join(f"  {verb:11s}{_first_line(verb)}" for verb in VERBS)
    text = f"How well do pre-trained ResNet weights transfer to detection?\n\nverbs:\n{described}"
    parser = Parser(description=text, epilog=f"{sys.argv[0]} VERB --help shows a verb's options and examples.")
    parser.add_argument("verb", metavar="VERB", choices=VERBS, help="what to do")
    return parser


def _first_line(verb: str) -> str:
    """The first line of a tool's docstring, read without importing it."""
    with open(ROOT / "tools" / f"{verb.replace('-', '_')}.py", encoding="utf-8") as source:
        return next(line for line in source if line.startswith('"""')).strip().strip('"')


if __name__ == "__main__":
    main()
