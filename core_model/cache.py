"""`LatentCache`: what MLA keeps of the past, a normed latent and a roped key per token and layer.

Shape suffixes: L layers, B rows, S positions, C kv latent, R rope dim. At V3's sizes C + R = 576.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.attention.bias import causal_lower_right

from core_model.config import V3Config

PAGE = 64  # positions in a page, for kernels that read a cache in pages


class LatentCache:
    """A preallocated cache whose rows have lengths of their own.

    A token of row b at position p is stored at index p, so that a query sees exactly the indices up to its own
    position. Rows are compacted by `move`, and the batch in use is the first `rows` of the buffer.
    """

    def __init__(
        self,
        config: V3Config,
        max_rows: int,
        max_positions: int,
        dtype: torch.dtype,
        device: torch.device | str = "cpu",
        drafts: bool = False,
    ) -> None:
        """
        Args:
            drafts: keep the past of the first MTP module too, as layer `num_hidden_layers`.
        """
        width = config.kv_lora_rank + config.qk_rope_head_dim
        shape = (config.num_hidden_layers + drafts, max_rows, max_positions, width)
        self.buffer_LBSC = torch.zeros(shape, dtype=dtype, device=device)
        self._rows = slice(0, 0)
        self._position_ids = self._row_index = torch.zeros(0, 0, dtype=torch.long)
        self._end = 0

    @property
    def nbytes(self) -> int:
        return self.buffer_LBSC.nbytes

    @property
    def is_paged(self) -> bool:
        """Whether rows hold whole pages."""
        return self.buffer_LBSC.shape[2] % PAGE == 0

    def pages(self, layer_index: int) -> Tensor:
        """A layer of the open rows as far as the buffer goes, in pages, [B * S / PAGE, PAGE, 1, C+R]; a view."""
        rows = self.buffer_LBSC[layer_index, self._rows]
        return rows.view(-1, PAGE, 1, rows.shape[-1])

    def page_table(self) -> Tensor:
        """Numbers of each open row's pages among `pages`, int32 [B, S / PAGE]."""
        count, device = self._rows.stop - self._rows.start, self.buffer_LBSC.device
        pages = self.buffer_LBSC.shape[2] // PAGE
        return torch.arange(count * pages, dtype=torch.int32, device=device).view(count, pages)

    def begin(self, first_row: int, position_ids: Tensor) -> None:
        """Open rows [first_row, first_row + B) for one forward over `position_ids` [B, T]."""
        self._rows = slice(first_row, first_row + position_ids.shape[0])
        self._position_ids = position_ids
        self._row_index = torch.arange(position_ids.shape[0], device=position_ids.device).unsqueeze(1)
        self._end = int(position_ids.max()) + 1

    def is_open_for(self, position_ids: Tensor) -> bool:
        """Whether the last `begin` was for this very forward (the tensor itself, not its values)."""
        return position_ids is self._position_ids

    def update(self, kv_BTC: Tensor, layer_index: int) -> Tensor:
        """Store [B, T, C+R] of the open rows and return their cache up to the furthest position, [B, S, C+R]."""
        rows = self.buffer_LBSC[layer_index, self._rows]
        # Not scatter_, which takes 300 us in bf16 on CPU.
        rows[self._row_index, self._position_ids] = kv_BTC.to(rows.dtype)
        return rows[:, : self._end]

    def visible(self, as_bias: bool = False) -> Tensor | None:
        """Which cached positions each query may see, bool [B, 1, T, S]; None for plain causal rows from 0 on.

        Args:
            as_bias: where the queries are the last positions of every row, say so by torch's `causal_lower_right`: it
                holds no numbers, where a mask of 16K queries over 128K positions takes 2 GiB. SDPA alone reads it.
        """
        places = torch.arange(self._position_ids.shape[1], device=self._position_ids.device)
        if len(places) > 1 and bool((self._position_ids == places).all()):
            return None
        if as_bias and bool((self._position_ids == places + (self._end - len(places))).all()):
            return causal_lower_right(len(places), self._end)
        keys = torch.arange(self._end, device=self._position_ids.device)
        return (keys <= self._position_ids[..., None]).unsqueeze(1)

    def mask(self) -> Tensor | None:
        """What `visible` says as a summand for scores, fp32 [B, T, 1, S]; None where every query sees everything."""
        if self._position_ids.shape[1] == 1 and bool((self._position_ids == self._end - 1).all()):
            return None
        beyond = torch.arange(self._end, device=self._position_ids.device) > self._position_ids[..., None]
        return torch.zeros(beyond.shape, device=beyond.device).masked_fill_(beyond, float("-inf")).unsqueeze(2)

    def move(self, source: int, target: int) -> None:
        """Copy one row onto another."""
        self.buffer_LBSC[:, target].copy_(self.buffer_LBSC[:, source])
