"""A pruned model exported as a folder: weights, config, processor, plan and model card."""
