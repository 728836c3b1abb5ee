"""Checkpoints of CompVis' latent diffusion code (Rombach et al. 2022) as directories of stock diffusers classes.

`convert` does it. Nothing is imported here: the process that opens pickles (`unpickling`) must start light.
"""
