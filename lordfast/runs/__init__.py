"""What every command's run has, whatever it does: the machine that it is on.

May import torch and the files at the top of the package; everything from `lordfast.diffusion` upwards may import it.
"""
