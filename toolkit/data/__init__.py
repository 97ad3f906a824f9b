"""From files to uint8 batches: one index per split, one order, one decode."""
