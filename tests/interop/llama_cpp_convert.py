"""An exported folder as a GGUF file, by llama.cpp's own converter.

    python tests/interop/llama_cpp_convert.py SOURCES FOLDER --outfile OUT.gguf [--outtype f32]

SOURCES is llama.cpp's source folder, which has convert_hf_to_gguf.py and the package `conversion`; what follows it goes
to that as it is. Run it where torch and transformers are.

The converter knows a tokenizer by the hash of what it makes of a text, and refuses others, every one that was trained
here among them; these are called V3's. Ours splits as V3's does, but for digits, which V3's takes by three and ours one
by one: since no merge of ours joins two digits, both come to the same tokens.
"""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

PRE_TOKENIZER = "deepseek-v3"


def convert(sources: Path, arguments: list[str]) -> None:
    """Run `convert_hf_to_gguf.py`, told which tokenizer it is.

    Raises:
        SystemExit: the converter failed.
    """
    sys.path[:0] = [str(sources), str(sources / "gguf-py")]
    from conversion.base import TextModel

    known = TextModel.get_vocab_base_pre

    def known_or_ours(self, tokenizer) -> str:
        try:
            return known(self, tokenizer)
        except NotImplementedError:
            return PRE_TOKENIZER

    TextModel.get_vocab_base_pre = known_or_ours
    before, sys.argv = sys.argv, ["convert_hf_to_gguf.py", *arguments]
    try:
        runpy.run_path(str(sources / "convert_hf_to_gguf.py"), run_name="__main__")
    except SystemExit as end:
        if end.code:
            raise
    finally:
        sys.argv = before


if __name__ == "__main__":
    needed = ("convert_hf_to_gguf.py", "conversion/base.py")
    if len(sys.argv) < 3 or not all((Path(sys.argv[1]) / file).is_file() for file in needed):
        sys.exit(__doc__)
    convert(Path(sys.argv[1]), sys.argv[2:])
