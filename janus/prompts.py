"""Janus's chat template: the text to tokenize for conversations and image prompts.

The strings equal those of the official `VLChatProcessor` byte for byte: the system prompt and a separator,
then for each message `role: content` and the separator of its role, all stripped.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from ..blocks.chat.messages import Turn
from ..blocks.errors import PromptError
from ..blocks.special_tokens import PlainText, strip_pieces
from ..tokenizers.text import EOS, TextTokenizer

SYSTEM_PROMPT = (
    "You are a helpful language and vision assistant. "
    "You are able to understand the visual content that the user provides, "
    "and assist the user with a variety of tasks using natural language."
)
IMAGE_TOKEN = "<image_placeholder>"
IMAGE_START = "<begin_of_image>"
IMAGE_END = "<end_of_image>"


@dataclass(frozen=True)
class Template:
    """Role names and separators: `PRO` of Janus-Pro, `FIRST` of Janus-1.3B."""

    user: str
    assistant: str
    separators: tuple[str, str] = ("\n\n", EOS)

    @classmethod
    def for_tokenizer(cls, tokenizer: TextTokenizer) -> "Template":
        """Janus-Pro's template if the vocabulary has its role tokens, else that of Janus-1.3B.

        `sft_format` in processor_config.json can't decide: "deepseek" once meant the older roles.
        """
        return PRO if tokenizer.has(PRO.user) else FIRST

    def chat_prompt(self, turns: Sequence[Turn], system: str | None = None) -> list[str]:
        """The text of a conversation in pieces, up to the assistant's next message or unfinished one.

        `turns` come from `normalize_messages`. `system` None is the default system prompt, "" is none; a
        system turn replaces either.
        """
        before: Sequence[str] = [SYSTEM_PROMPT if system is None else system]
        if turns[0].role == "system":
            before, turns = turns[0].pieces, turns[1:]
        return self._render(before, turns)

    def generation_prompt(self, text: str) -> list[str]:
        """The text before a generated image, in pieces: special tokens in people's `text` are text.

        Raises PromptError for a prompt that is empty or not a str.
        """
        if not isinstance(text, str):
            raise PromptError(f"a prompt must be a text (str), not {type(text).__name__}")
        if not text.strip():
            raise PromptError("the prompt is empty; say what to paint")
        return [*self._render((), [Turn("user", [PlainText(text)])]), IMAGE_START]

    def _render(self, before: Sequence[str], turns: Sequence[Turn]) -> list[str]:
        pieces = [*before, self.separators[0]] if any(before) else []
        # The reference picks the separator by the message's index, which is the same where the user begins.
        ends = {"user": (self.user, self.separators[0]), "assistant": (self.assistant, self.separators[1])}
        for turn in turns:
            role, separator = ends[turn.role]
            pieces += [f"{role}: ", *strip_pieces(turn.pieces), separator]
        if turns[-1].role == "assistant":
            pieces.pop()  # it is unfinished
        else:
            pieces.append(f"{self.assistant}:")
        return strip_pieces(pieces)


PRO = Template("<|User|>", "<|Assistant|>")
FIRST = Template("User", "Assistant")
