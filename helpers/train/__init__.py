"""From samples to a model: a config, its check, the training, the adapter, the merge."""
