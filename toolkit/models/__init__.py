"""The network: creation, views and normalization per scale, optimizer, EMA, evaluation, metrics.

Also how processes exchange tensors and objects (`collectives`), and where XLA computes (`xla`).

A new metric, optimizer option or adaptation of timm's models goes here. Never: files of a run, or the training loop.
"""
