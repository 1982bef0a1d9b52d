"""Prompts to train by rewards on: a file of sentences to paint or of conversations to answer."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..blocks.errors import BifronsError, OptionError, one_line, shown
from ..blocks.json_config import decode_json
from ..blocks.sampling.request import check_context
from ..blocks.vocabulary import Vocabulary, Work, last_question
from .reward import Prompt
from .rows import Fault, numbered_lines, read_text, with_paths


def read_prompts(path: Path) -> tuple[list[tuple[str, Prompt]], list[Fault]]:
    """The prompts of a file with where each stands, and the faults of lines left out.

    `.txt` has a prompt to paint a line; `.jsonl` an object a line with a `prompt`, or with the `messages` of
    a conversation that ends with the user's, and with anything else that the reward reads. Pictures of
    messages are relative to the file. Raises `OptionError` if the file can't be read, or mixes prompts and
    messages.
    """
    if path.suffix.lower() not in (".txt", ".jsonl"):
        raise OptionError(f"{path} holds no prompts; accepted: a .txt or .jsonl file")
    text = read_text(path)
    prompts: list[tuple[str, Prompt]] = []
    faults: list[Fault] = []
    for where, line in numbered_lines(text, path.name):
        try:
            prompt = {"prompt": line} if path.suffix.lower() == ".txt" else _prompt(line, path.parent)
            prompts.append((where, prompt))
        except (BifronsError, ValueError) as error:
            faults.append(Fault(where, one_line(str(error))))
    if len({"prompt" in prompt for _, prompt in prompts}) > 1:
        raise OptionError(f"{path} has prompts to paint and messages to answer; accepted: one kind in a file")
    return prompts, faults


def _prompt(line: str, folder: Path) -> Prompt:
    try:
        row = decode_json(line.encode())
    except ValueError as error:
        raise OptionError(f"it is not JSON: {error}") from error
    if not isinstance(row, Mapping):
        raise OptionError(f"it is {shown(row)}; accepted: an object with a prompt, or with messages")
    if "messages" in row:
        messages = row["messages"]
        if (
            not isinstance(messages, list)
            or not messages
            or not all(isinstance(m, Mapping) for m in messages)
        ):
            raise OptionError(f"messages is {shown(messages)}; accepted: a list of messages")
        rest = {name: value for name, value in row.items() if name != "prompt"}
        return rest | {"messages": [with_paths(message, folder) for message in messages]}
    if not isinstance(row.get("prompt"), str) or not row["prompt"].strip():
        raise OptionError(f"its prompt is {shown(row.get('prompt'))}; accepted: a text that is not empty")
    return row


def asked(prompt: Prompt) -> str:
    """What a prompt asks for: its sentence, or the last question of its conversation."""
    return prompt["prompt"] if "prompt" in prompt else last_question(prompt["messages"])


def new_words(prompts: Sequence[Prompt], known: Vocabulary) -> dict[Work, frozenset[str]]:
    """The words of prompts that a model doesn't know."""
    painted = [asked(prompt) for prompt in prompts if "prompt" in prompt]
    return known.new_words(painted, [asked(prompt) for prompt in prompts if "prompt" not in prompt])


def token_counts(pipe: Any, prompt: Prompt, max_new_tokens: int) -> tuple[int, int]:
    """The tokens of a prompt, and the most that a sample of it has. Raises `BifronsError`."""
    if "prompt" in prompt:
        return len(pipe.processor.generation_ids(prompt["prompt"])[0]), pipe.model.config.num_codes
    return len(pipe.processor.chat_inputs(prompt["messages"]).ids), max_new_tokens


def check_prompts(
    pipe: Any,
    prompts: Sequence[tuple[str, Prompt]],
    max_new_tokens: int,
    check: Callable[[Prompt], None] = lambda prompt: None,
) -> tuple[list[Prompt], list[Fault]]:
    """The prompts that the model can take and the reward can score (by `check`), and the faults of others."""
    good: list[Prompt] = []
    faults: list[Fault] = []
    most = pipe.model.decoder.config.max_positions
    for where, prompt in prompts:
        try:
            check_context(*token_counts(pipe, prompt, max_new_tokens), most)
            check(prompt)
            good.append(prompt)
        except (BifronsError, OSError) as error:
            faults.append(Fault(where, one_line(str(error))))
    return good, faults
