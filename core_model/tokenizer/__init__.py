"""Byte-level BPE with DeepSeek's special tokens, and the one chat template."""

from core_model.tokenizer.bpe import (
    decode_tokens,
    encode_text,
    encode_texts,
    load_tokenizer,
    special_id,
    token_byte_lengths,
    train_tokenizer,
)
from core_model.tokenizer.chat import (
    CompletionParts,
    render_prompt,
    render_training,
    split_completion,
    template_sha256,
)
from core_model.tokenizer.special import (
    ASSISTANT,
    BOS,
    END_THINK,
    EOS,
    FIM_BEGIN,
    FIM_END,
    FIM_HOLE,
    PAD,
    SPECIAL_TOKENS,
    THINK,
    USER,
)

__all__ = [
    "ASSISTANT",
    "BOS",
    "END_THINK",
    "EOS",
    "FIM_BEGIN",
    "FIM_END",
    "FIM_HOLE",
    "PAD",
    "SPECIAL_TOKENS",
    "THINK",
    "USER",
    "CompletionParts",
    "decode_tokens",
    "encode_text",
    "encode_texts",
    "load_tokenizer",
    "render_prompt",
    "render_training",
    "special_id",
    "split_completion",
    "template_sha256",
    "token_byte_lengths",
    "train_tokenizer",
]
