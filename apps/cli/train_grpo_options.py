"""The parser of `bifrons train grpo`; imports nothing heavy."""

from pathlib import Path
from typing import Any

from .train_options import add_lora, add_numbers, add_observation, add_trained_model


def grpo_options() -> type:
    """The dataclass with the defaults."""
    from ...learn.grpo import GrpoOptions

    return GrpoOptions


def add_grpo(parser: Any) -> None:
    """Add the arguments of `train grpo`."""
    parser.add_argument(
        "--prompts",
        type=Path,
        required=True,
        metavar="FILE",
        help="a .txt file with a prompt to paint a line, or .jsonl: objects with a prompt, or with the "
        "messages of a conversation to answer, and with what the reward reads",
    )
    add_trained_model(parser)
    parser.add_argument("--steps", type=int, required=True, metavar="N", help="steps to train in all")
    parser.add_argument(
        "--on-bad-rows",
        choices=("stop", "skip"),
        default="stop",
        help="what to do if prompts can't be used, all of which are named first (default: stop)",
    )
    add_lora(parser)
    _add_reward(parser.add_argument_group("reward"))
    _add_sampling(parser.add_argument_group("sampling"))
    _add_optimization(parser.add_argument_group("optimization"))
    add_observation(parser.add_argument_group("observation"), 10)


def _add_reward(group: Any) -> None:
    group.add_argument(
        "--reward",
        action="append",
        required=True,
        metavar="REWARD",
        help="what scores pictures or answers; may be repeated: shapes, world, mask2former-official, "
        "mask2former-hf (detectors, by GenEval's rules); judge:URL, judge:vl2:MODEL (asked yes or no); "
        "http(s)://... (a reward server); answer, format, format:REGEX (rules for answers); module:function",
    )
    group.add_argument(
        "--reward-weight",
        type=float,
        action="append",
        metavar="X",
        help="of each --reward in the sum, in order (default: 1)",
    )
    for flag, kind, metavar, text in (
        ("--reward-weights", Path, "PATH", "weights of a Mask2Former or world detector"),
        ("--reward-clip", Path, "FOLDER", "CLIP, for its colours"),
        ("--reward-device", str, "DEVICE", "of detectors and judges in this process"),
        ("--reward-judge-model", str, "NAME", "the endpoint's name of the judge"),
        ("--reward-judge-options", str, "JSON", "more fields of requests to the judge"),
        ("--reward-question", str, "TEXT", "what the judge is asked; holds {prompt}"),
        ("--reward-key", str, "NAME", "environment variable with the key of the judge or server"),
        ("--reward-timeout", float, "SECONDS", "of a judge's or server's reply (default: 120)"),
        ("--reward-workers", int, "N", "processes of a detector, or questions at once"),
    ):
        group.add_argument(flag, type=kind, metavar=metavar, help=text)
    group.add_argument(
        "--reward-by-answer",
        action="store_true",
        help="score a judge's answer, not its probability, for endpoints without log-probabilities",
    )


def _add_sampling(group: Any) -> None:
    add_numbers(
        group,
        [
            ("--prompts-per-step", int, "prompts of a step"),
            ("--group-size", int, "pictures or answers of each"),
            ("--temperature", float, "of sampling"),
            ("--top-k", int, "sample from the N likeliest tokens; 0 means all"),
            ("--top-p", float, "sample from the likeliest tokens whose probabilities add up to this"),
            ("--max-new-tokens", int, "of an answer"),
        ],
    )
    group.add_argument(
        "--guidance-scale", type=float, metavar="X", help="of painting (default: the model's, else 5)"
    )


def _add_optimization(group: Any) -> None:
    add_numbers(
        group,
        [
            ("--updates", int, "steps of the optimizer for each step's samples"),
            ("--rows-at-once", int, "samples computed together, as memory allows"),
            ("--weight-decay", float, "of AdamW"),
            ("--beta", float, "weight of the KL divergence from the model before training"),
            ("--clip", float, "bound of the ratio of probabilities"),
            ("--max-norm", float, "longest gradient"),
            ("--seed", int, "of prompts, samples and new weights"),
            ("--save-every", int, "steps between checkpoints"),
        ],
    )
    group.add_argument(
        "--learning-rate", type=float, metavar="X", help="constant (default: 1e-5 with --lora, else 1e-6)"
    )
    group.add_argument(
        "--log-probs",
        choices=("guided", "conditional"),
        default="guided",
        help="of the guided distribution that pictures are drawn from, or of its conditional row (default: "
        "guided)",
    )
    group.add_argument(
        "--recompute", action="store_true", help="compute activations again for the gradient: less memory"
    )
