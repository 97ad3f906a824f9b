"""The network and what is computed with it: creation, views and normalization per scale, optimizer, EMA, evaluation.

A metric, an optimizer option or a treatment of timm's models goes here. Never: files of a run, or the training loop.
"""
