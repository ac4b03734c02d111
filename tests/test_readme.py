"""The README runs: every Python block, in an empty folder, and its printed numbers are true."""

import re
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.S)


@pytest.mark.parametrize("number", range(len(BLOCKS)))
def test_a_block_runs(number, tmp_path, monkeypatch, capsys):
    code = BLOCKS[number]
    if "pl.load(" in code and find_spec("transformers") is None:
        pytest.skip("needs the extra pathline[text]")
    monkeypatch.chdir(tmp_path)
    exec(compile(code, f"README block {number + 1}", "exec"), {})
    printed = capsys.readouterr().out
    for line in code.splitlines():  # a comment after a print says what is printed
        said = re.match(r"print\(f.*\)\s+# ([-+.e\d]+)", line)
        if said:
            assert said[1].rstrip(":") in printed


def test_the_first_block_prints_what_the_readme_shows(capsys):
    shown = README.split(BLOCKS[0])[1].split("```\n")[2]
    exec(compile(BLOCKS[0], "README block 1", "exec"), {})
    assert capsys.readouterr().out == shown


def test_every_link_into_the_repository_leads_somewhere():
    for text in (README, (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")):
        for target in re.findall(r"\]\((?!http)([^)#]+)", text):
            assert (ROOT / target).exists(), target
