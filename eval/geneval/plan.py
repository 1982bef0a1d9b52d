"""How many prompts and images a difference between two models needs to be seen."""

import math
from statistics import NormalDist

from ...blocks.errors import check_integer, check_number


def needed_prompts(
    difference: float,
    score: float = 0.7,
    images_per_prompt: int = 4,
    agreement: float = 0.5,
    shared: float = 0.0,
    power: float = 0.8,
    level: float = 0.95,
) -> int:
    """Prompts after which two models whose scores differ by `difference` (a share) are told apart with
    probability `power` at this level: of a kind for its score, of all kinds together for the overall one.

    score: the better model's. agreement: correlation of a prompt's images; shared: correlation of the two
    models' scores over prompts (0 where they are of different prompts). By the normal approximation: the
    variance of a prompt's score is p(1 - p)(1 + (K - 1) agreement) / K. Raises OptionError for a value out of
    its range.
    """
    check_number("score", score, 0.01, 0.99)
    check_number("difference", difference, 1e-4, score)
    check_integer("images_per_prompt", images_per_prompt, low=1)
    check_number("agreement", agreement, 0, 1)
    check_number("shared", shared, 0, 0.99)
    check_number("power", power, 0.5, 0.999)
    inflation = (1 + (images_per_prompt - 1) * agreement) / images_per_prompt
    one, other = (p * (1 - p) * inflation for p in (score, score - difference))
    variance = one + other - 2 * shared * math.sqrt(one * other)
    normal = NormalDist()
    quantiles = normal.inv_cdf((1 + level) / 2) + normal.inv_cdf(power)
    return math.ceil(variance * (quantiles / difference) ** 2)
