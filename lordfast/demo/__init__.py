"""The embedded model (``model/``) and the pipeline of commands on it that ``lordfast demo`` runs.

May be imported by cli alone; imports everything below.
"""
