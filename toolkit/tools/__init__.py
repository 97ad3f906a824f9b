"""What else one does with data or a finished run: evaluate, predict, export, scan, benchmark, verify a resume.

A new command is a module here and a recipe of a few lines. Tools read runs and data. Never: changing a run's training
records, or the training loop.
"""
