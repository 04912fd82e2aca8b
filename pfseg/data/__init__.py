"""Data sets, joint augmentation, edge targets and loading; NumPy and OpenCV only, no Jittor."""
