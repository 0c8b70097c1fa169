"""Experiments: grids of conditions that are run once, shared between processes, and summed up in a table.

May import what evaluation may; imported by demo and the command line only.
"""
