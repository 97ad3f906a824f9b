"""Everything that a run writes: its directory, checkpoints, best model, predictions, dashboards and report.

A new record, checkpoint field or dashboard goes here. Every file is complete or absent. Never: how to train.
"""
