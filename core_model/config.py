"""Configuration of a DeepSeek-V3 model, in DeepSeek's own field names, and the presets.

Only what the architecture needs lives here. Numbers of training (bias speed, balance alpha, MTP lambda,
initialisation) belong to the recipe: a downloaded config.json lacks them, and a model that silently trains with
their absence has happened to others (NVIDIA-NeMo/Megatron-Bridge#5165).
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any, ClassVar

from transformers import PreTrainedConfig

YARN_V3 = {
    "type": "yarn",
    "factor": 40,
    "beta_fast": 32,
    "beta_slow": 1,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
    "original_max_position_embeddings": 4096,
}

SIZES = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "moe_intermediate_size",
    "num_hidden_layers",
    "num_nextn_predict_layers",
    "num_attention_heads",
    "n_shared_experts",
    "n_routed_experts",
    "num_experts_per_tok",
    "n_group",
    "topk_group",
    "first_k_dense_replace",
    "q_lora_rank",
    "kv_lora_rank",
    "qk_nope_head_dim",
    "qk_rope_head_dim",
    "v_head_dim",
    "max_position_embeddings",
)
MAY_BE_ZERO = ("num_nextn_predict_layers", "first_k_dense_replace")
MAY_BE_NONE = ("n_routed_experts", "q_lora_rank")
# Sizes beyond any model's, refused before anything is built: a broken config.json would otherwise be counted through
# for hours. A weight has three factors at most and a 2 for pairs of them, so that at 1e6 each its bytes fit in 64 bits.
MOST = 1_000_000
MOST_OF = {
    "num_hidden_layers": 10_000,
    "num_nextn_predict_layers": 100,
    "vocab_size": 10_000_000,  # a factor beside one other
    "max_position_embeddings": 1_000_000_000,  # a factor of no weight
}
# Numbers that are no sizes, and what each must exceed; at base 1 the rotary pairs would all turn alike.
ABOVE = {"routed_scaling_factor": 0, "rms_norm_eps": 0, "rope_theta": 1}
YARN_ABOVE = {"beta_fast": 0, "beta_slow": 0}
YARN_LEAST = {"factor": 1, "original_max_position_embeddings": 1, "mscale": 0, "mscale_all_dim": 0}
YARN_UNKNOWN = {"attention_factor": None, "truncate": True}  # with the values that change nothing


class V3Config(PreTrainedConfig):
    """Shape of a V3 model. Defaults are DeepSeek-V3 671B with plain RoPE.

    `rope_scaling` is None (plain RoPE) or DeepSeek's YaRN dictionary; it is a property of the training stage and
    never follows from a cache length. `n_routed_experts = None` makes every layer dense.

    Raises:
        ValueError: sizes that do not fit together, at construction.
    """

    # transformers owns the name "deepseek_v3"; checkpoint/ writes that one to disk.
    model_type = "trivium_v3"
    keys_to_ignore_at_inference: ClassVar[list[str]] = ["past_key_values"]
    auto_map: ClassVar[dict[str, str]] = {}  # TRL reads it when it copies a policy into a reference model

    vocab_size: int = 129280
    hidden_size: int = 7168
    intermediate_size: int = 18432
    moe_intermediate_size: int = 2048
    num_hidden_layers: int = 61
    num_nextn_predict_layers: int = 1
    num_attention_heads: int = 128
    num_key_value_heads: int = 128
    n_shared_experts: int = 1
    n_routed_experts: int | None = 256
    num_experts_per_tok: int = 8
    n_group: int = 8
    topk_group: int = 4
    routed_scaling_factor: float = 2.5
    norm_topk_prob: bool = True
    scoring_func: str = "sigmoid"
    topk_method: str = "noaux_tc"
    first_k_dense_replace: int = 3
    moe_layer_freq: int = 1
    q_lora_rank: int | None = 1536
    kv_lora_rank: int = 512
    qk_nope_head_dim: int = 128
    qk_rope_head_dim: int = 64
    v_head_dim: int = 128
    hidden_act: str = "silu"
    rms_norm_eps: float = 1e-6
    rope_theta: float = 10000.0
    rope_scaling: dict[str, Any] | None = None
    max_position_embeddings: int = 163840
    attention_bias: bool = False
    tie_word_embeddings: bool = False
    use_cache: bool = True
    bos_token_id: int | None = 0
    eos_token_id: int | None = 1
    pad_token_id: int | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        problems = list(self._size_problems()) or list(self._problems())
        if problems:
            raise ValueError("V3Config: " + "; ".join(problems))

    def _size_problems(self) -> Iterator[str]:
        for name in SIZES:
            value = getattr(self, name)
            least = 0 if name in MAY_BE_ZERO else 1
            if value is None and name in MAY_BE_NONE:
                continue
            if type(value) is not int or value < least:
                yield f"{name} must be an integer >= {least}, not {value!r}"
            elif value > (most := MOST_OF.get(name, MOST)):
                yield f"{name} must be at most {most}, not {value}"
        for name, bound in ABOVE.items():
            if not _is_number(value := getattr(self, name)) or value <= bound:
                yield f"{name} must be a number > {bound}, not {value!r}"
        if type(self.norm_topk_prob) is not bool:
            yield f"norm_topk_prob must be true or false, not {self.norm_topk_prob!r}"
        if self.rope_scaling is not None:
            if not isinstance(self.rope_scaling, dict):
                yield f"rope_scaling must be null or a dictionary, not {self.rope_scaling!r}"
            else:
                missing = {"factor", "original_max_position_embeddings"} - self.rope_scaling.keys()
                if missing:
                    yield f"rope_scaling lacks {' and '.join(sorted(missing))}"
                yield from _yarn_problems(self.rope_scaling)

    def _problems(self) -> Iterator[str]:
        for name in ("qk_rope_head_dim", "qk_nope_head_dim", "kv_lora_rank"):
            if getattr(self, name) % 2:  # RoPE views pairs as complex numbers, which want even strides and offsets
                yield f"{name} must be even, not {getattr(self, name)}"
        if self.num_key_value_heads != self.num_attention_heads:
            yield "num_key_value_heads must equal num_attention_heads (MLA shares a latent, not heads)"
        if self.hidden_act != "silu":
            yield f"hidden_act must be silu, not {self.hidden_act}"
        if self.attention_bias or self.tie_word_embeddings:
            yield "attention_bias and tie_word_embeddings must be false"
        scaling = self.rope_scaling
        if scaling is not None and scaling.get("type", scaling.get("rope_type")) != "yarn":
            yield f"rope_scaling must be null or of type yarn, not {self.rope_scaling}"
        if self.n_routed_experts is None:
            return
        if self.n_routed_experts % self.n_group:
            yield f"n_routed_experts {self.n_routed_experts} is not a multiple of n_group {self.n_group}"
        elif self.topk_group > self.n_group:
            yield f"topk_group {self.topk_group} exceeds n_group {self.n_group}"
        elif self.num_experts_per_tok > self.topk_group * (self.n_routed_experts // self.n_group):
            yield f"num_experts_per_tok {self.num_experts_per_tok} exceeds the experts of {self.topk_group} groups"
        elif self.n_group > 1 and self.n_routed_experts // self.n_group < 2:
            yield "a group needs two experts: its score is the sum of its two best"
        if (self.scoring_func, self.topk_method) != ("sigmoid", "noaux_tc"):
            yield "scoring_func and topk_method must be sigmoid and noaux_tc"
        if self.moe_layer_freq != 1:
            yield f"moe_layer_freq must be 1, not {self.moe_layer_freq}"

    @property
    def qk_head_dim(self) -> int:
        return self.qk_nope_head_dim + self.qk_rope_head_dim

    def is_moe_layer(self, layer_index: int) -> bool:
        """Whether a layer routes; of MTP modules (index >= num_hidden_layers) too, their index decides."""
        return self.n_routed_experts is not None and layer_index >= self.first_k_dense_replace

    @classmethod
    def preset(cls, name: str, **overrides: Any) -> V3Config:
        """A named configuration with some fields replaced.

        Raises:
            ValueError: no such preset, or no such field.
        """
        refuse_unknown_fields(overrides)
        if name not in PRESETS:
            raise ValueError(f"no preset {name!r}; there are {', '.join(PRESETS)}")
        return cls(**{**PRESETS[name], **overrides})


def _is_number(value: Any) -> bool:
    # No math.isfinite, which makes a float of what it is given: JSON's integers may be larger than any float.
    return type(value) in (int, float) and abs(value) <= sys.float_info.max


def _yarn_problems(scaling: dict[str, Any]) -> Iterator[str]:
    for name, value in scaling.items():
        if name in YARN_ABOVE and not (_is_number(value) and value > YARN_ABOVE[name]):
            yield f"rope_scaling.{name} must be a number > {YARN_ABOVE[name]}, not {value!r}"
        if name in YARN_LEAST and not (_is_number(value) and value >= YARN_LEAST[name]):
            yield f"rope_scaling.{name} must be a number >= {YARN_LEAST[name]}, not {value!r}"
        if name in YARN_UNKNOWN and value is not YARN_UNKNOWN[name]:
            yield f"rope_scaling.{name} must be left out: DeepSeek's YaRN has none"


def refuse_unknown_fields(overrides: dict[str, Any]) -> None:
    """`PreTrainedConfig` keeps whatever it is given, so a mistyped field would silently leave the default.

    Raises:
        ValueError: a name that is no field of `V3Config`.
    """
    unknown = sorted(overrides.keys() - V3Config.__annotations__.keys())
    if unknown:
        raise ValueError(f"V3Config has no field {', '.join(unknown)}")


PRESETS: dict[str, dict[str, Any]] = {
    # Every part of V3 at a size that two CPU cores train in minutes. routed_scaling_factor: V3's 2.5 makes up for 8
    # normalised weights against one shared expert; with 2 active experts 1.0 keeps the two branches level.
    "nano": {
        "vocab_size": 1024,
        "hidden_size": 128,
        "intermediate_size": 384,
        "moe_intermediate_size": 96,
        "num_hidden_layers": 4,
        "num_nextn_predict_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "n_shared_experts": 1,
        "n_routed_experts": 8,
        "num_experts_per_tok": 2,
        "n_group": 4,
        "topk_group": 2,
        "routed_scaling_factor": 1.0,
        "first_k_dense_replace": 1,
        "q_lora_rank": 96,
        "kv_lora_rank": 64,
        "qk_nope_head_dim": 32,
        "qk_rope_head_dim": 32,
        "v_head_dim": 64,
        "max_position_embeddings": 256,
    },
    # About 100M active of 400M parameters, for one GPU: fp32 weights, gradients and moments take 6.6 GiB.
    # Heads have 64 + 64 = 128 numbers for keys and 128 for values, so that fused kernels pad nothing; latent and rope
    # key are V3's 512 + 64, the shape of its decode kernels; all else is a multiple of 128, the side of an FP8 block.
    # 8 of 64 experts (V3: 8 of 256) keep expert rows long enough at one GPU's batch; groups and scaling are V3's, and
    # as there the dense layer is as wide as the 8 + 1 experts of a token.
    "mini": {
        "vocab_size": 16384,
        "hidden_size": 768,
        "intermediate_size": 2304,
        "moe_intermediate_size": 256,
        "num_hidden_layers": 10,
        "num_attention_heads": 6,
        "num_key_value_heads": 6,
        "n_routed_experts": 64,
        "first_k_dense_replace": 1,
        "q_lora_rank": 384,
        "qk_nope_head_dim": 64,
        "max_position_embeddings": 4096,
    },
    # The sizes of DeepSeek-V2-Lite and DeepSeek-V2 with V3's gate and an MTP module: the models of V3's ablations
    # (report §4.5, 15.7B and 228.7B), not V2's, whose gate is a softmax without bias or normalisation. Their published
    # totals are met with a routing bias an expert. V2's route_scale (1 and 16) belongs to its gate; under V3's, 2.5
    # suits 6 active experts too: the mean of 6 independent outputs has 1/sqrt(6) = 1/2.45 of the size of one.
    "16b": {
        "vocab_size": 102400,
        "hidden_size": 2048,
        "intermediate_size": 10944,
        "moe_intermediate_size": 1408,
        "num_hidden_layers": 27,
        "num_attention_heads": 16,
        "num_key_value_heads": 16,
        "n_shared_experts": 2,
        "n_routed_experts": 64,
        "num_experts_per_tok": 6,
        "n_group": 1,
        "topk_group": 1,
        "first_k_dense_replace": 1,
        "q_lora_rank": None,
    },
    "236b": {
        "vocab_size": 102400,
        "hidden_size": 5120,
        "intermediate_size": 12288,
        "moe_intermediate_size": 1536,
        "num_hidden_layers": 60,
        "n_shared_experts": 2,
        "n_routed_experts": 160,
        "num_experts_per_tok": 6,
        "topk_group": 3,
        "first_k_dense_replace": 1,
    },
    "671b": {},
}
