"""Commands on data or a finished run: evaluate, predict, export, scan, benchmark, verify a resume.

A new command is a module here and a recipe of a few lines. Tools only read runs and data. Never: a change to a run's
training records, or the training loop.
"""
