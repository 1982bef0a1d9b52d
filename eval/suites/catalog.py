"""The suites by name."""

from ...blocks.errors import OptionError
from .custom import QUESTIONS
from .dpg import DPG
from .genai import GENAI
from .geneval2 import GENEVAL2
from .geneval_plus import GENEVAL_PLUS
from .suite import Suite
from .wise import WISE

CATALOG = {suite.name: suite for suite in (GENEVAL2, WISE, GENEVAL_PLUS, DPG, GENAI, QUESTIONS)}


def suite_named(name: str) -> Suite:
    """A suite of questions. Raises OptionError for any other name."""
    if name not in CATALOG:
        raise OptionError(f"the suite {name!r} asks no questions; accepted: {', '.join(CATALOG)}")
    return CATALOG[name]
