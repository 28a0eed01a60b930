"""The terminal: flags become one call, errors become one line and an exit code.

The only room that may import typer and rich.  Nothing heavy is imported at the
top of its modules, so that ``cellseg --help`` answers at once.
"""
