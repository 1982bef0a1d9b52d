"""The `bifrons` command: one module per group of subcommands.

Imports everything; holds no model code.
Start with `main.py`.
"""
