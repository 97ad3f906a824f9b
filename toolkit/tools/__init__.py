"""Commands: evaluate, compare, predict, export, scan, benchmark, verify a resume; `launch` starts training for recipes.

A new command is a module here and a recipe of a few lines. All but `launch` only read runs and data; `benchmark` trains
steps of its own and keeps nothing of them. Never: a change to a run's training records, or a training loop.
"""
