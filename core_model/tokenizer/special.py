"""The special tokens: DeepSeek's strings, first in our vocabulary, in an order that never changes."""

from __future__ import annotations

BOS = "<｜begin▁of▁sentence｜>"
EOS = "<｜end▁of▁sentence｜>"
PAD = "<｜▁pad▁｜>"
USER = "<｜User｜>"
ASSISTANT = "<｜Assistant｜>"
THINK = "<think>"
END_THINK = "</think>"
FIM_HOLE = "<｜fim▁hole｜>"
FIM_BEGIN = "<｜fim▁begin｜>"
FIM_END = "<｜fim▁end｜>"

# A token's place in this tuple is its id. Checkpoints depend on it: append, never reorder.
SPECIAL_TOKENS = (BOS, EOS, PAD, USER, ASSISTANT, THINK, END_THINK, FIM_HOLE, FIM_BEGIN, FIM_END)

# Only these three vanish under `decode(skip_special_tokens=True)`. The others are "added, not special", as in
# DeepSeek's own tokenizer.json: a client that skips special tokens must still see where the thoughts end.
SKIPPED_WHEN_DECODING = (BOS, EOS, PAD)
