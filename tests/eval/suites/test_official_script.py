"""A judge's words from a benchmark's own script, on small scripts of the same form."""

from pathlib import Path

import pytest
from bifrons.blocks.errors import BifronsError
from bifrons.eval.suites.catalog import CATALOG
from bifrons.eval.suites.suite import Wording, read_wording

WISE = '''
import os
raise SystemExit("it is never run")
def ask(item, coded):
    return [
        {"role": "system", "content": [{"type": "text", "text": "Judge."}]},
        {"role": "user", "content": [
            {"type": "text", "text": f"""For {prompt_data['Prompt']} {{so}}:
{prompt_data['Explanation']}"""},
            {"type": "image_url", "image_url": {"url": f"data:{coded}"}}]},
    ]
'''
PLUS = '''
RULES = """Strictly: {"correct": 1}"""
messages = [{"role": "system", "content": RULES}, {"role": "user", "content": [
    {"type": "image_url", "image_url": {"url": "x"}},
    {"type": "text", "text": f"{instruction}|{explanation}"}]}]
'''


def test_the_words_of_scripts(tmp_path: Path) -> None:
    path = tmp_path / "judge.py"
    path.write_text(WISE)
    words = read_wording(path, CATALOG["wise"])
    assert words == Wording("For {prompt} {so}:\n{explanation}", "Judge.", picture_first=False)
    CATALOG["wise"].check_wording(words)
    path.write_text(PLUS)
    words = read_wording(path, CATALOG["geneval++"])
    assert words == Wording("{prompt}|This image should contain:\n{checklist}", 'Strictly: {"correct": 1}')
    row = {"prompt": "p ", "include": [{"class": "dog", "count": 2, "color": "red", "size": "big"},
           {"class": "cup", "region": "left"}], "exclude": [{"class": "cow", "count": 3}]}  # fmt: skip
    assert CATALOG["geneval++"].ask(row, words)[0].text == (
        "p|This image should contain:\n- red-colored big 2 dogs present in the image.\n"
        "- 1 cup located in the left part of the image.\n- No more than 2 cows should appear."
    )


@pytest.mark.parametrize(
    ("suite", "source", "reason"),
    [
        ("wise", "def (", "is no Python source"),
        ("wise", "x = [1, {}]", "holds no messages to a judge; accepted: the benchmark's own script"),
        ("wise", "(" * 5000, "is no Python source"),
        ("dpg", WISE, "is a script; accepted for dpg: a text or .json"),
    ],
)
def test_other_sources(suite: str, source: str, reason: str, tmp_path: Path) -> None:
    path = tmp_path / "judge.py"
    path.write_text(source)
    with pytest.raises(BifronsError, match=reason):
        read_wording(path, CATALOG[suite])
    path.write_text(PLUS.replace("explanation", "other"))
    if suite == "wise":
        with pytest.raises(BifronsError, match=r"lacks \{prompt\}, \{explanation\}"):
            CATALOG["wise"].check_wording(read_wording(path, CATALOG["wise"]))
