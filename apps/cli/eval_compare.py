"""`bifrons eval compare` and `leaderboard`: several evaluations beside each other."""

import argparse
from dataclasses import asdict

from ...blocks.errors import OptionError
from ...eval.geneval.compare import compare_scored, format_comparison
from ...eval.geneval.multiple import compare_all, comparisons_json, format_comparisons
from ...eval.geneval.paired import label
from ...eval.suites.compare import read_scored
from ..files import print_json


def compare(args: argparse.Namespace) -> int:
    """Print the differences between two or more evaluations."""
    paths = (args.a, args.b, *args.more)
    names = [str(path) for path in paths]
    runs = [read_scored(path, label(number)) for number, path in enumerate(paths)]
    if len(paths) > 2:
        found = compare_all(runs, args.to_first)
        if args.json:
            print_json(comparisons_json(found, names))
        else:
            print(format_comparisons(found, names))
        return 0
    if args.to_first:
        raise OptionError("--to-first is for three or more evaluations; two have one difference")
    comparison = compare_scored(runs[0], runs[1])
    if args.json:
        kinds = {
            tag: {
                **asdict(kind),
                "interval": list(kind.interval),
                "difference": kind.value,
                "verdict": kind.verdict,
            }
            for tag, kind in comparison.kinds.items()
        }
        print_json({**asdict(comparison), "names": names, "kinds": kinds})
    else:
        print(format_comparison(comparison, *names))
    return 0


def leaderboard(args: argparse.Namespace) -> int:
    """Write or print a leaderboard of several scored runs."""
    from ...eval.report.leaderboard import write_leaderboard

    text = write_leaderboard(args.runs, args.output)
    print(text if args.output is None else args.output)
    return 0
