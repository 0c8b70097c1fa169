"""Stage 1: adversarial training of LoRD and of its one-branch baseline.

May be imported by evaluation, report, demo and cli; imports attacks, training, diffusion, data and adapter.
"""
