"""The `bifrons` command: one file per group of subcommands.

Imports everything; holds no model code.
Start with `main.py`.
"""
