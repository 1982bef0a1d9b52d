"""Janus's chat template: conversations and painting prompts as the one text that gets tokenised.

The strings equal those of the official `VLChatProcessor` byte for byte: system prompt and separator, then for
each message `role: content` and a separator that alternates with the message's place, the whole stripped.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from ..blocks.chat.messages import Turn
from ..blocks.errors import PromptError
from ..tokenizers.text import EOS, TextTokenizer

SYSTEM_PROMPT = (
    "You are a helpful language and vision assistant. "
    "You are able to understand the visual content that the user provides, "
    "and assist the user with a variety of tasks using natural language."
)
IMAGE_TAG = "<image_placeholder>"
IMAGE_START = "<begin_of_image>"
IMAGE_END = "<end_of_image>"


@dataclass(frozen=True)
class Template:
    """Role names and separators of one release. `PRO` and `FIRST` below are the two that exist."""

    user: str
    assistant: str
    separators: tuple[str, str] = ("\n\n", EOS)

    @classmethod
    def for_tokenizer(cls, tokenizer: TextTokenizer) -> "Template":
        """Janus-Pro's template if the vocabulary has its role tokens, else that of Janus-1.3B.

        `sft_format` of processor_config.json can't tell: "deepseek" named the older roles once.
        """
        return PRO if tokenizer.has(PRO.user) else FIRST

    def chat_prompt(self, turns: Sequence[Turn], system: str | None = None) -> str:
        """The text of a conversation that waits for the assistant's next message.

        `turns` as `normalize_messages` gives them, ending with the user's. `system` None is the default
        system prompt, "" is none; a system turn in `turns` replaces either. Raises PromptError if no turn
        is the user's last word.
        """
        system = SYSTEM_PROMPT if system is None else system
        if turns and turns[0].role == "system":
            system, turns = turns[0].text, turns[1:]
        if not turns or turns[-1].role != "user":
            raise PromptError("a conversation must end with a message of the user")
        roles = {"user": self.user, "assistant": self.assistant}
        return self._render([(roles[turn.role], turn.text) for turn in turns], system)

    def generation_prompt(self, text: str) -> str:
        """The text that a picture is painted after. Raises PromptError for anything but a text with words."""
        if not isinstance(text, str):
            raise PromptError(f"a prompt must be a text (str), not {type(text).__name__}")
        if not text.strip():
            raise PromptError("the prompt is empty; say what to paint")
        return self._render([(self.user, text)], "") + IMAGE_START

    def _render(self, messages: Sequence[tuple[str, str]], system: str) -> str:
        parts = [system + self.separators[0]] if system else []
        # The reference takes the separator by the message's place, not by its role.
        for index, (role, content) in enumerate(messages):
            parts.append(f"{role}: {content.strip()}{self.separators[index % 2]}")
        parts.append(f"{self.assistant}:")
        return "".join(parts).strip()


PRO = Template("<|User|>", "<|Assistant|>")
FIRST = Template("User", "Assistant")
