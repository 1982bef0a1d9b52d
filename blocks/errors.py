"""The exception tree. Everything that a user can cause is a `BifronsError`, and so a `ValueError`."""


class BifronsError(ValueError):
    """Something the caller gave can't be used; the message says what was wrong and what is accepted."""


class CheckpointError(BifronsError):
    """A model folder is missing, damaged, unsafe, or does not hold what its config promises."""


class ConfigError(CheckpointError):
    """A `config.json` (or a tokenizer or processor file) is missing, unreadable or of an unknown kind."""


class PictureError(BifronsError):
    """A picture can't be read or is outside the limits."""


class PromptError(BifronsError):
    """A prompt, a message or a conversation is malformed, empty or too long for the context."""


class OptionError(BifronsError):
    """An option has a value outside its range, or one that this model can't honour."""
