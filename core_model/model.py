"""DeepSeek-V3: `V3Model` (backbone) and `V3ForCausalLM` (head, losses, the Hugging Face face).

Shape suffixes: B batch, T tokens, D model, W vocabulary.
Source: V3 report §2. Parameter names are those of the published checkpoint.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache, GenerationMixin, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast

from core_model import rope
from core_model.attention import ABSORBED_QUERIES, AttentionContext
from core_model.cache import LatentCache
from core_model.config import V3Config
from core_model.decoder import DecoderLayer
from core_model.documents import find_documents
from core_model.embedding import Embedding
from core_model.loss import IGNORE, head_cross_entropy_sum
from core_model.moe import MoE
from core_model.moe.balance import sequence_balance_loss
from core_model.moe.cap import RankCap
from core_model.moe.experts import Experts
from core_model.moe.gate import Gate, Routing
from core_model.mtp import MTPLayer, shift_left, targets
from core_model.norm import RMSNorm
from core_model.precision import KeepsFp32Buffers, Linear
from core_model.recompute import Recompute, run
from core_model.visibility import refuse_other_shapes, refuse_packed, visible_in_cache


@dataclass
class V3ModelOutput(BaseModelOutputWithPast):
    """last_hidden_state is normed. `context` and `routings` are what MTP and the balance loss need."""

    last_hidden_state: Tensor | None = None
    past_key_values: Any = None
    context: AttentionContext | None = None
    routings: list[Routing] | None = None


@dataclass
class V3CausalLMOutput(CausalLMOutputWithPast):
    """loss = lm_loss + mtp_weight * mean over depths of mtp_losses + balance_alpha * balance_loss."""

    loss: Tensor | None = None
    logits: Tensor | None = None
    past_key_values: Any = None
    lm_loss: Tensor | None = None
    mtp_losses: tuple[Tensor, ...] | None = None
    balance_loss: Tensor | None = None


@dataclass
class LossWeights:
    """Training-only numbers; they come from the recipe and change along its schedule.

    With an mtp of 0 the MTP modules take no part in a step, which DistributedDataParallel has to be told
    (`find_unused_parameters`), or the model be made without them.
    """

    mtp: float = 0.0  # lambda of Eq. 25
    balance: float = 0.0  # alpha of Eq. 17


V3_INIT_STD = 0.006  # V3 report §4.2, all parameters


class V3PreTrainedModel(PreTrainedModel):
    config: V3Config
    config_class = V3Config
    base_model_prefix = "model"
    _no_split_modules = ["DecoderLayer", "MTPLayer"]  # noqa: RUF012  as the base class declares it
    _supports_sdpa = True
    _keep_in_fp32_modules_strict = ["e_score_correction_bias"]  # noqa: RUF012
    supports_gradient_checkpointing = True

    def _set_gradient_checkpointing(
        self,
        enable: bool = True,
        gradient_checkpointing_func: Callable[..., Any] = checkpoint,
        every_n_layers: int = 1,
    ) -> None:
        """transformers' switch (`gradient_checkpointing_enable`): the policy "layer", or "none" again.

        Raises:
            ValueError: offloading, every n-th layer or the reentrant kind is asked for.
        """
        function = getattr(gradient_checkpointing_func, "func", gradient_checkpointing_func)
        keywords = getattr(gradient_checkpointing_func, "keywords", {})
        if function is not checkpoint or every_n_layers != 1 or keywords.get("use_reentrant"):
            raise ValueError("recomputation is of every layer, not reentrant and without offloading")
        for module in self.modules():
            if isinstance(module, V3Model):
                module.recompute = "layer" if enable else "none"

    def enable_input_require_grads(self) -> None:
        """transformers' hook on the embedding, which a frozen one needs for the sake of reentrant checkpoints alone.

        Ours are not reentrant: nothing is to be done, and a hook would stay there for good.
        """

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """V3's own initialisation, from torch's generator; recipes call `initialize` with theirs."""
        if isinstance(module, (nn.Linear, nn.Embedding, Gate)):
            nn.init.normal_(module.weight, std=V3_INIT_STD)
        elif isinstance(module, Experts):
            nn.init.normal_(module.gate_up_proj, std=V3_INIT_STD)
            nn.init.normal_(module.down_proj, std=V3_INIT_STD)


class V3Model(KeepsFp32Buffers, V3PreTrainedModel):
    """The backbone; `layers` holds the main layers and, after them, the MTP modules (as the checkpoint does).

    compute_dtype: activations are cast to it after the embedding and every product follows them; None keeps the
    embedding's dtype.
    recompute: what backward makes again instead of keeping (`core_model.recompute`).
    rank_cap: most (token, expert) pairs of a rank in training (`core_model.moe.cap`); None drops nothing.
    """

    fp32_buffers = ("inv_freq",)

    def __init__(self, config: V3Config) -> None:
        super().__init__(config)
        self.compute_dtype: torch.dtype | None = None
        self.recompute: Recompute = "none"
        self.embed_tokens = Embedding(config.vocab_size, config.hidden_size)
        main, depth = config.num_hidden_layers, config.num_nextn_predict_layers
        self.layers = nn.ModuleList(
            [DecoderLayer(config, i) for i in range(main)] + [MTPLayer(config, main + k) for k in range(depth)]
        )
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        inv_freq = rope.inverse_frequencies(config.qk_rope_head_dim, config.rope_theta, config.rope_scaling)
        self.register_buffer("inv_freq", inv_freq, persistent=False)
        self.post_init()

    def get_input_embeddings(self) -> nn.Embedding:
        return self.embed_tokens

    def set_input_embeddings(self, value: nn.Module) -> None:
        if type(value) is nn.Embedding and value.max_norm is None:  # `resize_token_embeddings` makes torch's own
            value.__class__ = Embedding
        self.embed_tokens = cast(Embedding, value)

    @torch.no_grad()
    def set_buffers(self) -> None:
        """RoPE's frequencies, which no checkpoint holds. To be called after `to_empty`."""
        config = self.config
        inv_freq = rope.inverse_frequencies(config.qk_rope_head_dim, config.rope_theta, config.rope_scaling)
        cast(Tensor, self.inv_freq).copy_(inv_freq)

    def save_pretrained(self, *args: Any, **kwargs: Any) -> None:
        """Not of the backbone alone.

        Raises:
            TypeError: DeepSeek's format has a head.
        """
        raise TypeError("DeepSeek's folders hold head and backbone: save the V3ForCausalLM")

    @classmethod
    def from_pretrained(cls, folder: str | Path, **overrides: Any) -> V3Model:  # type: ignore[override]
        """The backbone of `V3ForCausalLM.from_pretrained`."""
        return V3ForCausalLM.from_pretrained(folder, **overrides).model

    def embed(self, input_ids: Tensor) -> Tensor:
        embedding = self.embed_tokens(input_ids)
        return embedding if self.compute_dtype is None else embedding.to(self.compute_dtype)

    @property
    def gradient_checkpointing(self) -> bool:  # type: ignore[override]
        """What transformers asks for, by its name."""
        return self.recompute == "layer"

    def main_layers(self) -> list[DecoderLayer]:
        return cast(list[DecoderLayer], list(self.layers[: self.config.num_hidden_layers]))

    def mtp_layers(self) -> list[MTPLayer]:
        return cast(list[MTPLayer], list(self.layers[self.config.num_hidden_layers :]))

    def attention_context(
        self, shape: tuple[int, int], position_ids: Tensor | None, attention_mask: Tensor | None, cache: Any
    ) -> AttentionContext:
        """Positions, documents and visibility, once for all layers.

        Raises:
            ValueError: as `forward`.
        """
        batch, length = shape
        device = self.embed_tokens.weight.device
        past = 0 if cache is None or isinstance(cache, LatentCache) else int(cache.get_seq_length())
        refuse_other_shapes(position_ids, attention_mask, batch, length, past)
        if isinstance(cache, LatentCache):
            if attention_mask is not None:
                raise ValueError("a LatentCache knows each row's positions, and takes no attention_mask")
            if position_ids is None or not cache.is_open_for(position_ids):
                raise ValueError(
                    "a LatentCache stores by position: call begin(first_row, position_ids), pass the same here"
                )
            # The CPU's fused kernel takes a mask as well as any; the absorbed path adds it to scores.
            visible = cache.visible(as_bias=length > ABSORBED_QUERIES and device.type != "cpu")
            documents = None
        elif cache is not None:
            refuse_packed(position_ids, attention_mask, past)
            visible = visible_in_cache(attention_mask, batch, length, past, device)
            documents = None
        else:
            visible = None
            documents = find_documents(position_ids, attention_mask, shape)
        if position_ids is None:
            position_ids = torch.arange(past, past + length, device=device).unsqueeze(0)
        inv_freq = cast(Tensor, self.inv_freq)
        rotations = rope.rotations(position_ids, inv_freq, rope.amplitude(self.config.rope_scaling))
        return AttentionContext(rotations, documents, visible, cache, end=past + length)

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Any = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool = False,
        **kwargs: Any,
    ) -> V3ModelOutput:
        """Run the main layers.

        Args:
            input_ids: [B, T]; or inputs_embeds [B, T, D].
            attention_mask: [B, T] (with a cache: [B, past + T]), 0 for padding on either side.
            position_ids: [B, T]; positions that fall back to 0 inside a row start a new document, and documents do
                not see each other.
            past_key_values: a transformers cache or a `LatentCache`; the latter is opened by `begin`.

        Raises:
            ValueError: shapes other than these, a `LatentCache` that is not open for the positions or has a mask beside
                it, packed documents over a cache, or hidden states, attention weights or a tuple asked for.
        """
        for name, served in (("output_hidden_states", False), ("output_attentions", False), ("return_dict", True)):
            if kwargs.get(name) not in (None, served):
                raise ValueError(f"{name} must be {served}: the model gives its outputs by name, and no inner ones")
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("pass input_ids or inputs_embeds, one of them")
        x_BTD = self.embed(input_ids) if input_ids is not None else cast(Tensor, inputs_embeds)
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache(config=self.config)
        context = self.attention_context(
            (x_BTD.shape[0], x_BTD.shape[1]), position_ids, attention_mask, past_key_values
        )
        routings = []
        for layer in self.main_layers():
            x_BTD, routing = run(self.recompute, layer, x_BTD, context)
            self.count_load(layer, routing, context)
            if routing is not None:
                routings.append(routing)
        hidden = run(self.recompute, self.norm, x_BTD)
        return V3ModelOutput(hidden, past_key_values, context=context, routings=routings)

    def routed(self) -> list[MoE]:
        """In the order of the layers, the MTP modules' last."""
        return [layer.mlp for layer in cast(list[DecoderLayer], list(self.layers)) if isinstance(layer.mlp, MoE)]

    def routers(self) -> list[Gate]:
        return [moe.gate for moe in self.routed()]

    @property
    def rank_cap(self) -> RankCap | None:
        return next((moe.cap for moe in self.routed()), None)

    @rank_cap.setter
    def rank_cap(self, cap: RankCap | None) -> None:
        """Raises: ValueError: the experts of this model cannot be placed so."""
        if cap is not None:
            cap.check(self.config)
        for moe in self.routed():
            moe.cap = cap

    def count_load(self, layer: DecoderLayer, routing: Routing | None, context: AttentionContext) -> None:
        """Note a layer's routing for the routing bias, in training alone and once however often its forward runs."""
        if routing is not None and self.training and torch.is_grad_enabled():
            cast(MoE, layer.mlp).gate.count(routing, context.real_BT)


class V3ForCausalLM(V3PreTrainedModel, GenerationMixin):
    """V3 with its head. `loss_weights` turns the MTP and balance losses on; both are off until a recipe sets them."""

    def __init__(self, config: V3Config) -> None:
        super().__init__(config)
        self.model = V3Model(config)
        self.lm_head = Linear(config.hidden_size, config.vocab_size)
        self.loss_weights = LossWeights()
        self.post_init()

    @property
    def compute_dtype(self) -> torch.dtype | None:
        return self.model.compute_dtype

    @compute_dtype.setter
    def compute_dtype(self, dtype: torch.dtype | None) -> None:
        self.model.compute_dtype = dtype

    @property
    def recompute(self) -> Recompute:
        return self.model.recompute

    @recompute.setter
    def recompute(self, policy: Recompute) -> None:
        self.model.recompute = policy

    @property
    def rank_cap(self) -> RankCap | None:
        return self.model.rank_cap

    @rank_cap.setter
    def rank_cap(self, cap: RankCap | None) -> None:
        self.model.rank_cap = cap

    def get_input_embeddings(self) -> nn.Embedding:
        return self.model.embed_tokens

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.model.set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Module:
        return self.lm_head

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        if type(new_embeddings) is nn.Linear and new_embeddings.bias is None:
            new_embeddings.__class__ = Linear
        self.lm_head = cast(Linear, new_embeddings)

    @torch.no_grad()
    def initialize(self, std: float, seed: int) -> V3ForCausalLM:
        """Draw every matrix from N(0, std^2) (V3 §4.2: 0.006), norms 1, routing biases 0; the same for a seed.

        A model made on the meta device is whole after `to_empty(device=...)` and this, sharded by then or not.
        """
        generator = torch.Generator().manual_seed(seed)
        self.model.set_buffers()
        for module in self.modules():
            if isinstance(module, RMSNorm):
                module.weight.fill_(1.0)
            elif isinstance(module, Gate):
                module.e_score_correction_bias.zero_()
        for parameter in self.parameters():
            if parameter.dim() > 1 and not parameter.is_meta:
                # Drawn whole and on the CPU, so that a seed means the same weights on every device and in every shard.
                drawn = torch.empty(parameter.shape, dtype=parameter.dtype, device="cpu")
                drawn.normal_(0.0, std, generator=generator)
                if (mesh := getattr(parameter, "device_mesh", None)) is not None:
                    from torch.distributed.tensor import distribute_tensor  # not in every build of torch

                    placements = parameter.placements  # type: ignore[attr-defined]
                    drawn = distribute_tensor(drawn, mesh, placements, src_data_rank=None)  # every process has drawn it
                parameter.copy_(drawn)
        return self

    def mtp_states(self, input_ids: Tensor, backbone: V3ModelOutput) -> Iterator[tuple[Tensor, Routing | None]]:
        """Normed state [B, T, D] and routing of each MTP depth, for a forward over whole sequences."""
        hidden, context = cast(Tensor, backbone.last_hidden_state), cast(AttentionContext, backbone.context)
        for depth, layer in enumerate(self.model.mtp_layers(), 1):
            embedding = self.model.embed(shift_left(input_ids, depth, 0))
            hidden, routing = run(self.recompute, layer, hidden, embedding, context)
            self.model.count_load(layer, routing, context)
            yield hidden, routing

    def losses(
        self, input_ids: Tensor, labels: Tensor, backbone: V3ModelOutput, normaliser: Tensor | float | None = None
    ) -> V3CausalLMOutput:
        """All losses of one forward.

        Args:
            labels: [B, T], the token at each position or IGNORE (not shifted).
            normaliser: what sums are divided by; default the number of targets of the main head. Every depth is
                divided by the same number (Eq. 24 divides by T at all depths).
        """
        context = cast(AttentionContext, backbone.context)
        documents = None if context.documents is None else context.documents.id_BT
        main_targets = targets(labels, 0, documents, IGNORE)
        if normaliser is None:
            normaliser = (main_targets != IGNORE).sum().clamp_min(1)
        hidden = cast(Tensor, backbone.last_hidden_state)
        lm_loss = head_cross_entropy_sum(self.lm_head, hidden, main_targets) / normaliser
        routings = list(backbone.routings or [])
        loss, mtp_losses = lm_loss, []
        if self.loss_weights.mtp:
            for depth, (hidden, routing) in enumerate(self.mtp_states(input_ids, backbone), 1):
                depth_targets = targets(labels, depth, documents, IGNORE)
                mtp_losses.append(head_cross_entropy_sum(self.lm_head, hidden, depth_targets) / normaliser)
                if routing is not None:
                    routings.append(routing)
            if mtp_losses:
                loss = loss + self.loss_weights.mtp * torch.stack(mtp_losses).mean()
        balance_loss = None
        if self.loss_weights.balance and routings:
            sequence_losses = [
                sequence_balance_loss(r.scores_TE, self.config.num_experts_per_tok, len(labels), context.real_BT)
                for r in routings
            ]
            if self.training and torch.is_grad_enabled():
                for router, sequence_loss in zip(self.model.routers(), sequence_losses, strict=False):
                    router.note_sequence_loss(sequence_loss, len(labels))
            balance_loss = torch.stack(sequence_losses).sum()
            loss = loss + self.loss_weights.balance * balance_loss
        return V3CausalLMOutput(
            loss=loss,
            lm_loss=lm_loss.detach(),
            mtp_losses=tuple(x.detach() for x in mtp_losses),
            balance_loss=None if balance_loss is None else balance_loss.detach(),
        )

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Any = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool = False,
        logits_to_keep: int | Tensor = 0,
        num_items_in_batch: Tensor | float | None = None,
        **kwargs: Any,
    ) -> V3CausalLMOutput:
        """Losses when `labels` are given (no logits are made then), else logits fp32 [B, T or logits_to_keep, W].

        Raises:
            ValueError: as `V3Model.forward`.
        """
        use_cache = use_cache and labels is None  # a cache would bypass the isolation of packed documents
        backbone = self.model(
            input_ids, attention_mask, position_ids, past_key_values, inputs_embeds, use_cache, **kwargs
        )
        if labels is not None:
            if input_ids is None:
                raise ValueError("the MTP losses need input_ids, not inputs_embeds")
            return self.losses(input_ids, labels, backbone, num_items_in_batch)
        hidden = backbone.last_hidden_state
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.lm_head(hidden[:, kept]).float()
        return V3CausalLMOutput(logits=logits, past_key_values=backbone.past_key_values)

    @staticmethod
    def create_masks_for_generate(*, attention_mask: Tensor | None, **kwargs: Any) -> Tensor | None:
        """What `generate` is to pass on for a cache of fixed length: the [B, past + T] mask that forward takes."""
        return attention_mask

    def save_pretrained(  # type: ignore[override]
        self,
        save_directory: str | Path,
        state_dict: dict[str, Tensor] | None = None,
        *,
        dtype: torch.dtype | None = None,
        is_main_process: bool = True,
        max_shard_size: Any = None,
        **kwargs: Any,
    ) -> None:
        """Write a folder in DeepSeek's format, in `dtype` (FP8 too); see `core_model.checkpoint.save_folder`.

        Args:
            is_main_process: False writes nothing, so that of several processes one writes.
            max_shard_size: what `push_to_hub` says; there is one file, which `trivium export` splits.

        Raises:
            TypeError: another keyword of transformers' that asks for something.
            ValueError: as `save_folder`.
        """
        from core_model.checkpoint import save_folder

        if kwargs.pop("safe_serialization", True) is not True:
            raise TypeError("save_pretrained writes safetensors only")
        kwargs.pop("save_function", None)  # accelerate's, for pickles
        if unknown := sorted(name for name, value in kwargs.items() if value):
            raise TypeError(f"save_pretrained takes state_dict, dtype and is_main_process, not {', '.join(unknown)}")
        if is_main_process:
            save_folder(self, Path(save_directory), state_dict=state_dict, dtype=dtype)

    @classmethod
    def from_pretrained(cls, folder: str | Path, **overrides: Any) -> V3ForCausalLM:  # type: ignore[override]
        """Load a folder in DeepSeek's format; `overrides` replace configuration fields (a stage's `rope_scaling`).

        Raises:
            InputError: a file is missing, damaged, or of another model; or a keyword is no field of the configuration
                (parameters are fp32, and `.to(dtype)` casts them).
        """
        from core_model.checkpoint import load_folder

        return load_folder(Path(folder), overrides)


AutoConfig.register(V3Config.model_type, V3Config)
AutoModelForCausalLM.register(V3Config, V3ForCausalLM)
