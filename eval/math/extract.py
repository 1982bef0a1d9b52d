"""What an answer to a question comes to: in a box, in tags, or its last number."""

import re

from ..suites.questions import NUMBERS

MOST_CHARACTERS = 1 << 17
"""Of a text; what comes before its last ones is not read."""
_BOX = re.compile(r"\\(?:boxed|fbox)(?![a-zA-Z])\s*")
_TAGS = re.compile(r"<answer>((?:(?!<answer>).)*?)</answer>", re.DOTALL)
_NUMBER = re.compile(
    r"(?<![\w.])[-+\u2212]?\s?[$\u20ac\u00a3]?"
    r"(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)?(?:\.\d+|(?<=\d)(?!\d))(?:\s?/\s?\d+)?(?:\s?\\?%)?"
)
_WORD = re.compile(rf"\b(?:{'|'.join(NUMBERS)})\b", re.IGNORECASE)
_MOST_BOXES, _LONGEST_BOX = 20, 4000


def after_thought(text: str) -> str:
    """What follows the last `</think>`; nothing of a thought that does not end."""
    _, end, after = text[-MOST_CHARACTERS:].rpartition("</think>")
    return after if end else "" if "<think>" in after else after


def boxed(text: str) -> str | None:
    r"""The content of the last `\boxed{...}` or `\fbox{...}`, braces within it too; None where there is none.

    A box that does not end is no box. Without braces it is the character that follows, as in TeX.
    """
    for match in list(_BOX.finditer(text))[: -_MOST_BOXES - 1 : -1]:
        content = text[match.end() : match.end() + _LONGEST_BOX]
        if not content.startswith("{"):
            if content[:1].isalnum():
                return content[0]
            continue
        depth = 0
        for place, character in enumerate(content):
            escaped = place > 0 and content[place - 1] == "\\"
            depth += 0 if escaped else (character == "{") - (character == "}")
            if depth == 0:
                return content[1:place]
    return None


def marked(text: str) -> str | None:
    """The answer that a text marks as its own: in the last box, else within the last `<answer>` tags, else
    after the last `####`; None where it marks none."""
    found = boxed(text)
    if found is None and (tagged := _TAGS.findall(text)):
        found = tagged[-1]
    if found is None and "####" in text:
        found = text.rpartition("####")[2].strip().partition("\n")[0]
    return None if found is None else found.strip()


def last_number(text: str) -> str | None:
    """The last number of a text, with a fraction's denominator and a percent sign; without digits, the last
    word from zero to ten; None where there is none."""
    found = [match[0].strip() for match in _NUMBER.finditer(text)] or _WORD.findall(text)
    return found[-1] if found else None


def last_words(text: str) -> str:
    """What the last line has after its last colon or equals sign."""
    return re.split("[:=]", text.strip().rpartition("\n")[2])[-1].strip()
