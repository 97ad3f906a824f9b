"""The machine under a run: errors and exit codes, console, CPU and memory, clouds, preemption, files, the run lock.

Nothing here knows what a model or an image is. A new cloud, another way to say something on the console, or a new kind
of error goes here. Never: torch, settings, or anything of another room.
"""
