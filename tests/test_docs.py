"""The documentation's tables are those of the registry, measured anew."""

from pathlib import Path

from pathline.cli.listing import solver_table

DOCS = Path(__file__).resolve().parent.parent / "docs"


def test_the_table_of_solvers_is_fresh():
    """Otherwise: pathline solvers --markdown, between the two marks."""
    page = (DOCS / "solvers.md").read_text(encoding="utf-8")
    assert page.split("<!-- solvers -->\n")[1].split("\n<!-- /solvers -->")[0] == solver_table()
