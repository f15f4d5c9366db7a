"""From text on the machine to samples for the trainer: corpus, tokenizer, token shards, packing, order."""
