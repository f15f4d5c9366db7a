"""The licence of an installed package, from its metadata; only permissive ones may enter a corpus."""

from __future__ import annotations

import re
from importlib import metadata

from core_model.errors import InputError

PERMISSIVE = frozenset(
    {"0BSD", "Apache-2.0", "BSD", "BSD-2-Clause", "BSD-3-Clause", "BSL-1.0", "CC0-1.0", "HPND", "ISC", "MIT", "PSF-2.0"}
    | {"Python-2.0", "Unlicense", "Zlib"}
)

# Metadata older than PEP 639 says it in words; "BSD" stays unversioned where the package did not say which.
_IN_WORDS = {
    "apache": "Apache-2.0",
    "apache 2.0": "Apache-2.0",
    "apache 2.0 license": "Apache-2.0",
    "apache software license": "Apache-2.0",
    "bsd": "BSD",
    "bsd license": "BSD",
    "mit": "MIT",
    "mit license": "MIT",
    "python software foundation license": "PSF-2.0",
}


def licence_of(package: str) -> str:
    """The SPDX expression of an installed package.

    Raises:
        InputError: the package is not installed, or its metadata names no licence or one that is not permissive.
    """
    try:
        meta = metadata.metadata(package)
    except metadata.PackageNotFoundError as error:
        raise InputError(package, expected="an installed package", found="no such package") from error
    stated = _stated(meta)
    identifiers = re.split(r"\s+(?:AND|OR)\s+|[()]", stated)
    # "Apache-2.0 WITH LLVM-exception": an exception only permits more.
    names = {name.split(" WITH ")[0].strip() for name in identifiers} - {""}
    if not names or names - PERMISSIVE:
        raise InputError(package, expected="a package with a permissive licence", found=stated or "no licence stated")
    return stated


def _stated(meta: metadata.PackageMetadata) -> str:
    if "License-Expression" in meta:
        return meta["License-Expression"]
    classifiers = [line.split("::")[-1].strip() for line in meta.get_all("Classifier") or [] if "License ::" in line]
    in_words = classifiers or ([meta["License"].strip().split("\n")[0]] if "License" in meta else [])
    return " AND ".join(sorted({_IN_WORDS.get(words.lower(), words) for words in in_words}))
