"""Triton device code, one kernel a file. Importing anything here imports triton.

Whether the kernels are compiled or interpreted is settled by TRITON_INTERPRET when a file here is imported first.
"""
