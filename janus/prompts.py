"""Janus's chat template: the text to tokenize for conversations and image prompts.

The strings equal those of the official `VLChatProcessor` byte for byte: the system prompt and a separator,
then for each message `role: content` and a separator that alternates with the message's index, all stripped.
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

    def chat_prompt(self, turns: Sequence[Turn], system: str | None = None) -> str:
        """The text of a conversation, up to the assistant's next message.

        `turns` come from `normalize_messages`. `system` None is the default system prompt, "" is none; a
        system turn replaces either. Raises PromptError unless the last turn is the user's.
        """
        system = SYSTEM_PROMPT if system is None else system
        if turns and turns[0].role == "system":
            system, turns = turns[0].text, turns[1:]
        if not turns or turns[-1].role != "user":
            raise PromptError("a conversation must end with a message of the user")
        roles = {"user": self.user, "assistant": self.assistant}
        return self._render([(roles[turn.role], turn.text) for turn in turns], system)

    def generation_prompt(self, text: str) -> str:
        """The text before a generated image. Raises PromptError for a prompt that is empty or not a str."""
        if not isinstance(text, str):
            raise PromptError(f"a prompt must be a text (str), not {type(text).__name__}")
        if not text.strip():
            raise PromptError("the prompt is empty; say what to paint")
        return self._render([(self.user, text)], "") + IMAGE_START

    def _render(self, messages: Sequence[tuple[str, str]], system: str) -> str:
        parts = [system + self.separators[0]] if system else []
        # The reference picks the separator by the message's index, not by its role.
        for index, (role, content) in enumerate(messages):
            parts.append(f"{role}: {content.strip()}{self.separators[index % 2]}")
        parts.append(f"{self.assistant}:")
        return "".join(parts).strip()


PRO = Template("<|User|>", "<|Assistant|>")
FIRST = Template("User", "Assistant")
