"""The training loop and what it needs to start, synchronize processes and stop.

`loop` trains any strategy on any device. The other modules plan, set up and resume a run, synchronize its processes,
handle divergence and write the summary. A new schedule or early-stopping rule goes here. Never: code in the loop that
depends on which strategy or model it trains.
"""
