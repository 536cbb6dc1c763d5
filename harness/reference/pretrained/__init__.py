"""The pretrained model: DINOv2-small and SmolLM2-135M from two PyPI wheels, joined by what is learned here."""
