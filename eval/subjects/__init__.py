"""What is evaluated: our own models, any of transformers', an endpoint, answers that are there already."""
