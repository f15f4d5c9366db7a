"""What a corpus is made of. Two configurations that are equal give the same corpus on one machine."""

from __future__ import annotations

from pydantic import Field, field_validator

from recipes.schema import StrictModel

# Dependencies of ours with long, well-written docstrings: prose, mathematics, doctests.
DOCSTRING_PACKAGES = ("numpy", "scipy", "sympy", "networkx", "pandas", "matplotlib", "transformers", "torch")
# Clean sources with few near-duplicates.
LONG_PACKAGES = ("numpy", "scipy", "sympy", "networkx")


class LongText(StrictModel):
    """Rows for one stage of context extension, each one document of `length + 1` tokens (inputs and targets)."""

    length: int = Field(ge=64, description="context of the stage, tokens")
    rows: int = Field(ge=1, description="training rows")
    validation_rows: int = Field(default=16, ge=1, description="validation rows, from packages no training row uses")
    needle_share: float = Field(
        default=0.5, ge=0, le=1, description="share of training rows that are a key-value retrieval task in filler text"
    )
    needles_per_row: int = Field(default=8, ge=1, le=64, description="most needles in such a row; at least one")


class CorpusConfig(StrictModel):
    """Sources and sizes; MB are 10^6 bytes of UTF-8, and a source ends with the document that reaches its size."""

    seed: int = Field(default=0, ge=0, description="seeds fill-in-the-middle splits and needle documents")
    stdlib_mb: float = Field(default=4.0, ge=0, description="Python standard library sources, MB")
    docstrings_mb: float = Field(default=2.0, ge=0, description="docstrings of installed packages, MB")
    docstring_packages: tuple[str, ...] = Field(
        default=DOCSTRING_PACKAGES, description="installed packages with a permissive licence, by import name"
    )
    tasks_mb: float = Field(
        default=2.0, ge=0, description="questions and short answers from the training split of eval.tasks, MB"
    )
    task_families: tuple[str, ...] | None = Field(
        default=None, description="families of eval.tasks, each with the same share of tasks_mb; null: all"
    )
    needles_mb: float = Field(default=0.2, ge=0, description="short key-value retrieval documents, MB")
    minimum_characters: int = Field(default=80, ge=1, description="shorter documents are dropped")
    validation_share: float = Field(
        default=0.01, ge=0, lt=1, description="share of documents held out, chosen by the hash of their content"
    )
    vocabulary_size: int = Field(default=2048, ge=266, description="tokens, special ones included")
    tokenizer_mb: float = Field(default=3.0, gt=0, description="training text that the tokenizer is trained on, MB")
    fim_rate: float = Field(
        default=0.1, ge=0, le=1, description="share of training documents in fill-in-the-middle order (V3 report 4.1)"
    )
    shard_tokens: int = Field(default=50_000_000, ge=1, description="tokens after which a new shard begins")
    long_packages: tuple[str, ...] = Field(
        default=LONG_PACKAGES, description="packages whose modules, with the standard library's, make long documents"
    )
    long: tuple[LongText, ...] = Field(default=(), description="one entry per stage of context extension")

    @field_validator("task_families")
    @classmethod
    def _are_known(cls, families: tuple[str, ...] | None) -> tuple[str, ...] | None:
        from eval.tasks import refuse_unknown_families

        refuse_unknown_families(families or ())
        return families
