"""The one training loop and what it needs to start, agree and stop.

`loop` trains any strategy on any device; around it: plan, set-up, resume, consensus of processes, divergence, summary.
A new schedule or early-stopping rule goes here. Never: a question in the loop about which strategy or model it has.
"""
