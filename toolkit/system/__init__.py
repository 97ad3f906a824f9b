"""The environment of a run: errors and exit codes, console, CPU and memory, clouds, preemption, files, the run lock.

Nothing here depends on models or images. A new cloud, console output or kind of error goes here. Never: torch,
settings, or imports from the toolkit's other packages.
"""
