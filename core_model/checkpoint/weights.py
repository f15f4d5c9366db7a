"""The weights of a folder by name, read one at a time, FP8 made whole on the way."""

from __future__ import annotations

import json
import logging
import re
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from core_model.checkpoint.config_file import scale_format
from core_model.checkpoint.names import layer_of, mtp_copies
from core_model.checkpoint.storage import SCALE
from core_model.checkpoint.tensor_file import Entry, read_header, read_tensor
from core_model.config import V3Config
from core_model.errors import InputError
from core_model.precision.fp8 import E4M3, dequantize, scale_shape

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
log = logging.getLogger(__name__)
SHARD = re.compile(r"model-\d+-of-\d+\.safetensors")


def remove_shards(folder: Path) -> None:
    """Take away an index and the shards beside it, by which the weights of an earlier model would be found."""
    shards = (path for path in folder.glob("model-*.safetensors") if SHARD.fullmatch(path.name))
    for path in (folder / INDEX, *shards):
        path.unlink(missing_ok=True)


class Place(NamedTuple):
    """Where a tensor lies."""

    path: Path
    entry: Entry


class StoredWeights:
    """What a folder stores: `places`, the weights by name with the scales of FP8 ones set apart in `scales`.

    Opening reads headers only, and finds whatever they can show to be wrong.

    Raises:
        InputError: a file is missing, cut short or no safetensors file; the index names a tensor that its file does
            not have; an FP8 weight has no scales, or scales of another shape.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.scale_format = scale_format(folder)
        self.places = self._find()
        self.scales: dict[str, Place] = {}
        for name, (path, entry) in list(self.places.items()):
            if entry.dtype != E4M3.dtype:
                continue
            scale = self.places.pop(name + SCALE, None)
            if scale is None:
                raise InputError(path, where=name + SCALE, expected="the scales of an FP8 weight", found="none")
            shape = scale_shape(entry.shape) if len(entry.shape) == 2 else None
            if scale.entry.shape != shape:
                expected = f"shape {list(shape)} for a weight of {list(entry.shape)}" if shape else "a matrix's scales"
                found = str(list(scale.entry.shape))
                raise InputError(scale.path, where=name + SCALE, expected=expected, found=found)
            self.scales[name] = scale

    def _find(self) -> dict[str, Place]:
        index = self.folder / INDEX
        if not index.is_file():
            path = self.folder / WEIGHTS
            if not path.is_file() and any(self.folder.glob("*.safetensors")):
                raise InputError(index, expected="an index of the shards", found="shards without one")
            return {name: Place(path, entry) for name, entry in read_header(path).items()}
        try:
            weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
            files = {str(name): Path(file).name for name, file in weight_map.items()}  # never outside the folder
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise InputError(index, expected="a JSON object with 'weight_map'", found=str(error)) from error
        if (self.folder / WEIGHTS).is_file() and WEIGHTS not in files.values():
            found = f"{WEIGHTS} beside it, of which it says nothing: remove the one that is older"
            raise InputError(index, expected="the index of all weights in the folder", found=found)
        headers = {file: read_header(self.folder / file) for file in sorted(set(files.values()))}
        for name, file in files.items():
            if name not in headers[file]:
                raise InputError(index, where=name, expected=f"a tensor of {file}", found="not in that file")
        return {name: Place(self.folder / file, headers[file][name]) for name, file in files.items()}

    def files(self) -> list[Path]:
        """The files that hold the weights."""
        return sorted({place.path for place in self.places.values()})

    def read(self, name: str) -> Tensor:
        """A weight as it is stored, or fp32 where it is FP8.

        Raises:
            InputError: scales that are no finite numbers.
        """
        tensor = read_tensor(*self.places[name])
        return dequantize(tensor, self.read_scale(name)) if name in self.scales else tensor

    def read_bytes(self, name: str) -> Tensor:
        """A weight as it is stored, FP8 included."""
        return read_tensor(*self.places[name])

    def read_scale(self, name: str) -> Tensor:
        """The scales of an FP8 weight, fp32; see `read`."""
        place = self.scales[name]
        scale = read_tensor(*place).to(torch.float32)
        if not scale.isfinite().all():
            raise InputError(place.path, where=name + SCALE, expected="finite scales", found="inf or NaN")
        return scale

    def equal(self, one: str, other: str) -> bool:
        """Whether two weights are the same numbers."""
        a, b = self.read(one), self.read(other)
        return a.shape == b.shape and torch.equal(*(x if a.dtype == b.dtype else x.float() for x in (a, b)))

    def warn_of_other_copies(self, config: V3Config) -> None:
        """Tuning that left MTP out leaves old copies of embedding and head behind; ours are those of the model."""
        for copy, original in mtp_copies(config).items():
            if copy in self.places and not self.equal(copy, original):
                log.warning("%s: %s is no copy of %s, which takes its place", self.folder, copy, original)

    def check_count(self, config: V3Config) -> None:
        """Refuse a configuration of far more weights than there are, before their names are listed.

        A config.json of a few bytes can ask for millions of layers and experts; here nothing is made for any of them.

        MTP modules do not count: transformers claims one that its folders lack.

        Raises:
            InputError: fewer weights than its layers, of one each, and its experts, of three each, have.
        """
        layers = config.num_hidden_layers
        experts = max(layers - config.first_k_dense_replace, 0) * (config.n_routed_experts or 0)
        if len(self.places) < (least := layers + 3 * experts):
            expected = f"the tensors of this configuration, {least} or more"
            raise InputError(self.folder, expected=expected, found=f"{len(self.places)}")

    def check(self, expected: dict[str, tuple[int, ...]], config: V3Config) -> None:
        """Compare with the names and shapes of a configuration.

        MTP modules beyond the configuration's, and the MTP copies of embedding and head, may be there or not.

        Raises:
            InputError: a weight is missing, unexpected or of another shape.
        """
        copies = mtp_copies(config).keys()
        end = config.num_hidden_layers + config.num_nextn_predict_layers
        unknown = self.places.keys() - expected.keys() - copies
        missing = sorted(expected.keys() - self.places.keys() - copies)
        unexpected = sorted(name for name in unknown if (layer_of(name) or 0) < end)
        if missing or unexpected:
            found = f"missing {missing[:3]}, unexpected {unexpected[:3]}"
            raise InputError(self.folder, expected="the tensors of this configuration", found=found)
        for name, shape in expected.items():
            if name in self.places and (place := self.places[name]).entry.shape != shape:
                raise InputError(place.path, where=name, expected=str(shape), found=str(place.entry.shape))
