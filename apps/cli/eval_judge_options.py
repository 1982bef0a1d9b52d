"""The options of a judge of pictures, and of `bifrons eval read` and `math`; imports nothing heavy."""

import argparse
from pathlib import Path
from typing import Any

from ..defaults import DEFAULT_GROUNDING_MODEL, DEFAULT_MODEL
from .options import add_model

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
    for flag, metavar, text in (
        ("dtype", "DTYPE", "float32, bfloat16 or float16"),
        ("quantize", "KIND", "int8, int4 or fp8"),
        ("device-map", "MAP", "auto or balanced, or MODULE=DEVICE,..."),
        ("max-memory", "SIZES", "such as 0=20GiB,cpu=60GiB"),
    ):
        judge.add_argument(f"--judge-{flag}", metavar=metavar, help=f"of a judge in process: {text}")
    judge.add_argument("--judge-eager", action="store_true", help="of a judge in process: no CUDA graphs")
    judge.add_argument(
        "--judge-workers", type=int, metavar="N", help="questions to an endpoint at once (default: 8)"
    )
    judge.add_argument(
        "--answers", type=Path, metavar="FILE", help="where answers are kept (default: answers.sqlite in R)"
    )
    judge.add_argument("--official", action="store_true", help=OFFICIAL_HELP)


def add_read(parser: Any, add_json: Any) -> None:
    """Add the options of `bifrons eval read`."""
    parser.add_argument(
        "benchmark", metavar="BENCHMARK", help="refcoco, chartqa, docvqa, mme, pope or mmbench"
    )
    parser.add_argument("path", metavar="PATH", type=Path, help="its file, or its folder")
    parser.add_argument("-R", "--run-dir", required=True, type=Path, metavar="R", help="the run's folder")
    add_model(
        parser,
        DEFAULT_GROUNDING_MODEL,
        "or http(s)://host:port of an OpenAI endpoint; default: BIFRONS_MODEL, else "
        + DEFAULT_GROUNDING_MODEL,
    )
    parser.add_argument("--images", type=Path, metavar="DIR", help="folder of the pictures (default: PATH's)")
    parser.add_argument("--limit", type=int, metavar="N", help="use only N examples, evenly spread")
    parser.add_argument("--prompt", metavar="TEXT", help="the words of a question, with {question} in it")
    _add_endpoint(parser)
    add_json(parser)


def add_math(parser: Any, add_json: Any) -> None:
    """Add the options of `bifrons eval math`."""
    parser.add_argument(
        "path",
        metavar="FILE",
        type=Path,
        help=".jsonl, .json, .tsv or .parquet of {question, answer}, with an image or not, or of "
        "{messages, answer}",
    )
    parser.add_argument(
        "-R", "--run-dir", type=Path, metavar="R", help="keep the answers in this folder, and go on there"
    )
    add_model(
        parser,
        DEFAULT_MODEL,
        f"or http(s)://host:port of an OpenAI endpoint; default: BIFRONS_MODEL, else {DEFAULT_MODEL}",
    )
    parser.add_argument("--images", type=Path, metavar="DIR", help="folder of the pictures (default: FILE's)")
    parser.add_argument(
        "--prompt",
        metavar="TEXT",
        help="the words of a question, with {question} in it (default: asks to reason step by step, and for "
        "the answer within \\boxed{}; rows with messages are asked as they are)",
    )
    for flag, kind, text in (
        ("--samples", int, "answers to each question"),
        ("--max-new-tokens", int, "longest answer"),
        ("--temperature", float, "0 always takes the likeliest token"),
        ("--top-p", float, "sample from the likeliest tokens whose probabilities add up to this"),
        ("--seed", int, "of the first answer to each question; the next has the next seed"),
        ("--limit", int, "use only N questions, evenly spread"),
        ("--batch-size", int, "questions that a model in process answers together"),
    ):
        metavar = "N" if kind is int else "X"
        parser.add_argument(flag, type=kind, default=argparse.SUPPRESS, metavar=metavar, help=text)
    _add_endpoint(parser)
    add_json(parser)


def _add_endpoint(parser: Any) -> None:
    parser.add_argument(
        "--endpoint-model", metavar="NAME", help="the endpoint's model (default: its only one)"
    )
    parser.add_argument("--endpoint-version", metavar="TEXT", help="tells it from others of its name")
    parser.add_argument("--endpoint-options", metavar="JSON", help="more fields of the requests")
    parser.add_argument("--endpoint-key", metavar="VARIABLE", help="environment variable with the key")
    parser.add_argument("--workers", type=int, metavar="N", help="questions at once (default: 8)")
