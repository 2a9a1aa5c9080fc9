"""Triton kernels of the operators in `bigain.tokens`; imported only where `bigain.tokens.dispatch` selects them.

The functions of `bigain.tokens` are the reference: kernels compute the same up to the rounding of sums. There are no
float atomics, sums have a fixed order, and every sequence is worked on by programs of its own, so that a plan does not
depend on its neighbours and is the same in every run on one device.
"""
