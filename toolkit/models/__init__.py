"""The network: creation, views and normalization per scale, optimizer, EMA, evaluation, metrics.

A new metric, optimizer option or adaptation of timm's models goes here. Never: files of a run, or the training loop.
"""
