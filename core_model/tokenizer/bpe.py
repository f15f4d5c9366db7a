"""Byte-level BPE: training, loading, and encoding of text that must stay text.

The pre-tokenizer is DeepSeek-V3's, except that digits are split singly where V3 groups up to three
(`\\p{N}{1,3}`): a small model does column arithmetic, and needs to see every digit.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

import numpy as np

from core_model.errors import InputError
from core_model.tokenizer.special import BOS, EOS, PAD, SKIPPED_WHEN_DECODING, SPECIAL_TOKENS

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

TEMPLATE_PATH = Path(__file__).with_name("chat_template.jinja")
SMALLEST_VOCABULARY = len(SPECIAL_TOKENS) + 256  # the special tokens and every byte

_DIGIT = r"\p{N}"
_CJK_RUN = "[一-龥぀-ゟ゠-ヿ]+"
# Word after one punctuation mark | word with at most one leading space or mark | punctuation with its line breaks
# | blank lines | spaces before a word's own space | other spaces. Verbatim from DeepSeek-V3's tokenizer.json.
_MAIN = (
    "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+"
    "|[^\r\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+"
    "| ?[\\p{P}\\p{S}]+[\r\n]*"
    "|\\s*[\r\n]+"
    "|\\s+(?!\\S)"
    "|\\s+"
)

_ordinary: WeakKeyDictionary[PreTrainedTokenizerFast, Tokenizer] = WeakKeyDictionary()


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE on `texts`; the same texts give the same tokenizer.

    Args:
        texts: the training text, read once.
        vocab_size: size aimed at, special tokens included. A small corpus may yield fewer tokens.

    Raises:
        ValueError: `vocab_size` has no room for the special tokens and the 256 bytes.
    """
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from tokenizers.pre_tokenizers import ByteLevel, Split

    if vocab_size < SMALLEST_VOCABULARY:
        raise ValueError(f"vocab_size must be at least {SMALLEST_VOCABULARY}, not {vocab_size}")
    backend = Tokenizer(models.BPE())
    # Not one character of the text is lost or added: no normaliser, no prefix space, and `use_regex=False`
    # since the splits above have already cut the words.
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            Split(Regex(_DIGIT), "isolated"),
            Split(Regex(_CJK_RUN), "isolated"),
            Split(Regex(_MAIN), "isolated"),
            ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[AddedToken(token, normalized=False, special=True) for token in SPECIAL_TOKENS],
        initial_alphabet=sorted(ByteLevel.alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    return _wrap(_unmark(backend))


def load_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """Load the tokenizer that `save_pretrained(folder)` wrote.

    Always the plain fast class: transformers 5 would build a Llama tokenizer from a DeepSeek folder, and that one
    replaces the pre-tokenizer.

    Raises:
        InputError: no readable tokenizer in `folder`, or one without our special tokens.
    """
    from tokenizers import Tokenizer

    path = Path(folder) / "tokenizer.json"
    if not path.is_file():
        raise InputError(path, expected="a tokenizer written by save_pretrained", found="no such file")
    try:
        backend = Tokenizer.from_file(str(path))
    except Exception as error:  # the Rust side raises bare Exception for whatever it cannot parse
        raise InputError(path, expected="a tokenizers JSON file", found=str(error)) from error
    missing = [token for token in SPECIAL_TOKENS if backend.token_to_id(token) is None]
    if missing:
        raise InputError(path, expected=f"the special token {missing[0]}", found="a vocabulary without it")
    template = path.with_name("chat_template.jinja")
    return _wrap(backend, template.read_text(encoding="utf-8") if template.is_file() else None)


def special_id(tokenizer: PreTrainedTokenizerFast, token: str) -> int:
    """The id of one of the special tokens.

    Raises:
        ValueError: the tokenizer has no such token.
    """
    token_id = tokenizer.backend_tokenizer.token_to_id(token)
    if token_id is None:
        raise ValueError(f"the tokenizer has no token {token}")
    return token_id


def encode_text(tokenizer: PreTrainedTokenizerFast, text: str) -> list[int]:
    """Token ids of `text` as ordinary text: "</think>" in it becomes "</", "think", ">", never the special token.

    Raises:
        ValueError: `text` holds lone surrogates, which no UTF-8 has.
    """
    return encode_texts(tokenizer, [text])[0]


def encode_texts(tokenizer: PreTrainedTokenizerFast, texts: Sequence[str]) -> list[list[int]]:
    """`encode_text` of many texts at once, in parallel threads."""
    try:
        encodings = _ordinary_tokenizer(tokenizer).encode_batch_fast(list(texts), add_special_tokens=False)
    except (TypeError, UnicodeEncodeError) as error:
        raise ValueError("expected text that UTF-8 can encode (no lone surrogates)") from error
    return [encoding.ids for encoding in encodings]


def decode_tokens(tokenizer: PreTrainedTokenizerFast, token_ids: Sequence[int]) -> str:
    """The exact text of `token_ids`, special tokens spelled out; bytes that are not UTF-8 become U+FFFD."""
    return tokenizer.backend_tokenizer.decode(list(token_ids), skip_special_tokens=False)


def token_byte_lengths(tokenizer: PreTrainedTokenizerFast) -> np.ndarray:
    """int64 [vocabulary]: how many bytes of text each token stands for; 0 for special tokens.

    Summed over the ids of a text it is exactly the text's length in UTF-8, wherever the ids are cut: this turns a
    loss in nats per token into bits per byte.
    """
    backend = tokenizer.backend_tokenizer
    lengths = np.zeros(backend.get_vocab_size(with_added_tokens=True), dtype=np.int64)
    for token, token_id in backend.get_vocab(with_added_tokens=True).items():
        lengths[token_id] = len(token)  # the byte-level alphabet spells every byte with one character
    lengths[list(backend.get_added_tokens_decoder())] = 0
    return lengths


def _ordinary_tokenizer(tokenizer: PreTrainedTokenizerFast) -> Tokenizer:
    """The same BPE without added tokens, so that no string in a text can turn into a special token.

    The pre-tokenizer cuts every special string apart, hence BPE cannot reassemble one either. (The backend's own
    `encode_special_tokens` flag would do, were it not state shared between threads.)
    """
    ordinary = _ordinary.get(tokenizer)
    if ordinary is None:
        from tokenizers import Tokenizer

        backend = tokenizer.backend_tokenizer
        ordinary = Tokenizer(backend.model)
        ordinary.pre_tokenizer = backend.pre_tokenizer
        _ordinary[tokenizer] = ordinary
    return ordinary


def _unmark(backend: Tokenizer) -> Tokenizer:
    """Make all but bos, eos and pad plain added tokens; the trainer can only make special ones."""
    from tokenizers import Tokenizer

    state = json.loads(backend.to_str())
    for token in state["added_tokens"]:
        token["special"] = token["content"] in SKIPPED_WHEN_DECODING
    return Tokenizer.from_str(json.dumps(state))


def _wrap(backend: Tokenizer, chat_template: str | None = None) -> PreTrainedTokenizerFast:
    from transformers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        clean_up_tokenization_spaces=False,
        padding_side="left",
        model_max_length=131072,
    )
    tokenizer.chat_template = TEMPLATE_PATH.read_text(encoding="utf-8") if chat_template is None else chat_template
    return tokenizer
