"""One table in every format."""

from bigain.report.tables import Table

TABLE = Table(["name", "n"], [["a|b_", "1.20"], ["[x] +- † <b>\n", "12"]], "lr", "caption")


def test_plain_text_is_aligned_without_trailing_spaces():
    assert TABLE.plain().splitlines() == ["name             n", "a|b_          1.20", "[x] +- † <b>    12"]
    assert Table([], [["a", "b"], ["ccc", ""]]).plain() == "a    b\nccc"
    assert Table(["a", "b"], []).plain() == "a  b"
    assert Table([], []).plain() == ""


def test_markdown_cells_are_escaped():
    assert [line.replace(" ", "") for line in TABLE.markdown().splitlines()] == [
        "|name|n|",
        "|:----------------|-----:|",
        r"|a\|b\_|1.20|",
        "|[x]+-†&lt;b>|12|",
    ]


def test_latex_cells_are_escaped():
    lines = [" ".join(line.split()) for line in TABLE.latex().splitlines()]
    assert lines == [
        r"\begin{tabular}{@{}lr@{}}",
        r"\toprule",
        r"name & n \\",
        r"\midrule",
        r"a\textbar{}b\_ & 1.20 \\",
        r"{}[x] \(\pm\) \textdagger{} \ensuremath{<}b\ensuremath{>} & 12 \\",
        r"\bottomrule",
        r"\end{tabular}",
    ]
