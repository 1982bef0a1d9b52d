"""Rewards of `learn.grpo`: detectors, judges, servers, Python functions, and rules for answers."""
