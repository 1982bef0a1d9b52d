"""The options of a judge of pictures, and of `bifrons eval read`; imports nothing heavy."""

from pathlib import Path
from typing import Any

OFFICIAL_HELP = "score DPG-Bench exactly as its official script does, with its faults"


def add_judge(parser: Any) -> None:
    """Add which judge answers a suite's questions, and in which words it is asked."""
    judge = parser.add_argument_group("judge, for suites of questions")
    judge.add_argument(
        "--judge",
        metavar="JUDGE",
        help="http(s)://host:port of an OpenAI endpoint, or in process vl2:MODEL or janus:MODEL",
    )
    judge.add_argument(
        "--judge-model", metavar="NAME", help="the endpoint's model (default: the only one it serves)"
    )
    judge.add_argument(
        "--judge-version",
        metavar="TEXT",
        help="tells the endpoint's model from others of its name (default: the endpoint's address)",
    )
    judge.add_argument(
        "--judge-prompt",
        type=Path,
        metavar="FILE",
        help="the words of the questions, a text or .json with text, system and picture_first",
    )
    judge.add_argument(
        "--judge-options", metavar="JSON", help="more fields of an endpoint's requests, as a JSON object"
    )
    judge.add_argument(
        "--judge-key",
        metavar="VARIABLE",
        help="the environment variable with the endpoint's key (default: OPENAI_API_KEY)",
    )
    judge.add_argument("--judge-dtype", metavar="DTYPE", help="dtype of a judge in process")
    judge.add_argument(
        "--judge-workers", type=int, metavar="N", help="questions to an endpoint at once (default: 8)"
    )
    judge.add_argument(
        "--answers", type=Path, metavar="FILE", help="where answers are kept (default: answers.sqlite in R)"
    )
    judge.add_argument("--official", action="store_true", help=OFFICIAL_HELP)
