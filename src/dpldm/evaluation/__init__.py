"""How good a synthetic set is: features, distances between image sets, and train-on-synthetic accuracy.

Everything here compares synthetic images with real ones. When the real ones are private, every number
that comes out is private too (it is computed without noise) and must stay inside the data holder's
account; only comparisons with a public benchmark may be published as they are.
"""
