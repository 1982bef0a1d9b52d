"""A judge's words from the benchmark's own script, which the user has: its source is parsed, never run."""

import ast
from collections.abc import Mapping

from ...blocks.errors import BifronsError


def words_of_script(source: bytes, fields: Mapping[str, str], name: str) -> tuple[str, str, bool]:
    """The user's text, the system text and whether the picture comes first, from the first list of chat
    messages in a Python source.

    fields: what stands for an expression in the text, such as {"item['Prompt']": "{prompt}"}. Raises
    BifronsError where the source is no Python or holds no such messages.
    """
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise BifronsError(f"{name} is no Python source: {error}") from error
    named = {
        target.id: node.value
        for node in tree.body
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    for node in ast.walk(tree):
        messages = [_literal_dict(item) for item in node.elts] if isinstance(node, ast.List) else []
        by_role = {_text(m.get("role"), {}, {}): m.get("content") for m in messages}
        if len(messages) == 2 and {*by_role} == {"system", "user"}:
            text, picture_first = _parts(by_role["user"], fields, named)
            if text:
                return text, _parts(by_role["system"], fields, named)[0], picture_first
    raise BifronsError(f"{name} holds no messages to a judge; accepted: the benchmark's own script")


def _literal_dict(node: ast.expr) -> dict[str, ast.expr]:
    if not isinstance(node, ast.Dict):
        return {}
    pairs = zip(node.keys, node.values, strict=True)
    return {str(key.value): value for key, value in pairs if isinstance(key, ast.Constant)}


def _parts(
    content: ast.expr | None, fields: Mapping[str, str], named: Mapping[str, ast.expr]
) -> tuple[str, bool]:
    """The text of a message's content, and whether a picture comes before it."""
    if not isinstance(content, ast.List):
        return _text(content, fields, named), False
    parts = [_literal_dict(item) for item in content.elts]
    kinds = [_text(part.get("type"), {}, {}) for part in parts]
    texts = [_text(part["text"], fields, named) for part in parts if "text" in part]
    return "".join(texts), kinds[:1] == ["image_url"]


def _text(node: ast.expr | None, fields: Mapping[str, str], named: Mapping[str, ast.expr]) -> str:
    """The text of a literal, an f-string or a name for one; empty for anything else."""
    if isinstance(node, ast.Name):
        node = named.get(node.id)
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else ""
    if not isinstance(node, ast.JoinedStr):
        return ""
    pieces = []
    for piece in node.values:
        if isinstance(piece, ast.Constant):
            pieces.append(str(piece.value))
        elif isinstance(piece, ast.FormattedValue):
            pieces.append(fields.get(ast.unparse(piece.value), "{?}"))
    return "".join(pieces)
