"""Where time goes: what an operation must move and compute, and how long it takes against its baselines.

Used by `benchmarks/` and `lordfast bench`. Knows torch, peft, diffusers' UNet class, `lordfast.ops` and
`lordfast.adapter`; imports nothing above them.
"""
