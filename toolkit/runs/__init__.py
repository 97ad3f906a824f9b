"""All that a run leaves behind: its directory, checkpoints, best model, predictions, dashboards and report.

A new record, checkpoint field or dashboard goes here. Every file is whole or not there. Never: how to train.
"""
