"""Families of decoders, one file each: keys of a configuration to an Architecture, and names of weights to roles.

A family holds no numerics. What it says by a constant factor, and where a tensor lies in its files, it says in frozen
values (family.py): `Made` from the configuration alone, which readers of other formats use too, and `Names`.
"""
