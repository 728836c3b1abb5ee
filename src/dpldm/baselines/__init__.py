"""Baselines beside a synthetic set: a DP-SGD classifier, the papers' CNN on real images, and tuning without noise."""
