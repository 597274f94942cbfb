"""Images as tensors: loading, label noise, augmentation. Randomness is a function of (seed, trial, purpose, epoch)."""
