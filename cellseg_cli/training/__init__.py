"""How a model is learned: crops, augmentation, samplers, losses, the loop."""
