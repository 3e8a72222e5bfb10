"""Contrast with white, and distances of colors as color-blind readers and gray print show them."""

import numpy as np
from matplotlib.colors import to_rgb

# Linear RGB as seen without one kind of cone (Machado, Oliveira and Fernandes 2009, severity 1), and in gray print.
VISION = {
    "normal": np.eye(3),
    "protan": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deutan": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritan": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
    "gray": [[0.2126, 0.7152, 0.0722]] * 3,
}
TO_XYZ = [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]


def linear(colors) -> np.ndarray:
    srgb = np.array([to_rgb(color) for color in colors])
    return np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)


def contrast(colors) -> float:
    """The lowest contrast with white, as the Web Content Accessibility Guidelines define it."""
    return (1.05 / (linear(colors) @ [0.2126, 0.7152, 0.0722] + 0.05)).min()


def distance(colors, vision: str) -> float:
    """The smallest CIELAB distance of neighbors."""
    seen = np.clip(linear(colors) @ np.transpose(VISION[vision]), 0, 1)
    ratio = seen @ np.transpose(TO_XYZ) / [0.95047, 1, 1.08883]
    f = np.where(ratio > 216 / 24389, np.cbrt(ratio), (24389 / 27 * ratio + 16) / 116)
    lab = np.transpose([116 * f[:, 1] - 16, 500 * (f[:, 0] - f[:, 1]), 200 * (f[:, 1] - f[:, 2])])
    return np.linalg.norm(np.diff(lab, axis=0), axis=1).min()
