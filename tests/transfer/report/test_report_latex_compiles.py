"""The LaTeX table through pdflatex, and what its page says."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.needs import missing
from tests.transfer.report.made_results import Run, result, whole
from tests.transfer.report.test_report_evidence import put_kept
from transfer.report.collect import collect
from transfer.report.render import latex
from transfer.report.tables import Options, build_report

pytestmark = pytest.mark.slow
FRAME = r"""\documentclass{article}
\usepackage[a4paper,landscape,margin=15mm]{geometry}
\usepackage[T1]{fontenc}
\usepackage{booktabs,graphicx}
\begin{document}
%s
\end{document}
"""


def compiled(text: str, folder: Path) -> Path:
    if shutil.which("pdflatex") is None:
        missing("pdflatex is not installed: apt-get install texlive-latex-base texlive-latex-recommended")
    (folder / "table.tex").write_text(FRAME % text)
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "-no-shell-escape", "table.tex"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, errors="replace", timeout=120)
    assert done.returncode == 0, done.stdout[-3000:]
    assert "Overfull" not in done.stdout
    return folder / "table.pdf"


def test_a_whole_run_compiles_and_reads_right(tmp_path: Path) -> None:
    pdf = compiled(latex.render(build_report(collect([whole(tmp_path / "run")]), Options(published="rows"))), tmp_path)
    if shutil.which("pdftotext") is None:
        missing("pdftotext is not installed: apt-get install poppler-utils")
    words = subprocess.run(["pdftotext", "-layout", pdf, "-"], capture_output=True, text=True, check=True).stdout
    named = [line for line in words.splitlines() if line.strip().startswith("SimSiam, base ")]
    line = next(line for line in named if "published" not in line)
    assert line.split()[2:6] == ["75.6±0.2", "47.1±0.2", "50.0±0.2", "mixed"]
    assert "Bold entries are within 0.5 below the best" in " ".join(words.split())


def test_intervals_and_verdicts_compile_and_stand_below_their_means(tmp_path: Path) -> None:
    put_kept(tmp_path / "run", "supervised", [42.0], extra=0.0)
    put_kept(tmp_path / "run", "mine", [42.1], extra=0.2)
    pdf = compiled(latex.render(build_report(collect([tmp_path / "run"]), Options())), tmp_path)
    if shutil.which("pdftotext") is None:
        missing("pdftotext is not installed: apt-get install poppler-utils")
    words = subprocess.run(["pdftotext", "-layout", pdf, "-"], capture_output=True, text=True, check=True).stdout
    line = words.index("mine"), words.index("[41.0, 43.2]", words.index("mine"))
    assert line[0] < line[1] and "mine cannot be told from supervised: -0.3 " in " ".join(words.split())


def test_hostile_labels_compile(tmp_path: Path) -> None:
    run = Run(tmp_path / "run", [("a", r"50% & $x_1^2$ #{~}\input{/etc/passwd} ± … é", None)], {"my_task": 1})
    run.finetune("a", "my_task", 1, result("a", "my_task", 1, [1.0, 2.0, 3.0]))
    compiled(latex.render(build_report(collect([run.save()]), Options())), tmp_path)
