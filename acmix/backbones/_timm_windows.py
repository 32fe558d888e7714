"""Window attentions of timm as slots: each block becomes one of ours, which hands a swapped attention the whole map.

timm's blocks cut their map into windows before they call the attention; ACmix needs the map. Names, parameters and
whatever is not swapped stay timm's. Attentions that ACmixWindow does not compute are no slots: cosine attention (Swin
V2), global queries (every other block of GC ViT), grids (every other attention of MaxViT), biases made by a network,
and windows that are not square.
"""

# Shapes: B batch, C channels, H W map, T tokens

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers.pos_embed_rel import RelPosBias
from timm.models import davit, gcvit, maxxvit, swin_transformer, twins
from torch import Tensor, nn

from acmix.backbones.swin import WindowAttention
from acmix.mixers.window import ACmixWindow


def offer_windows(model: nn.Module) -> None:
    """Make slots of the window attentions of a model, in place."""
    for block in list(model.modules()):
        if type(block) in _BLOCKS:
            _offer(block)


def _offer(block: Any) -> None:
    block.__class__ = _BLOCKS[type(block)]
    window, shift = block.geometry()
    if window is not None and _stands_in(block.attn):
        block.attn.__class__ = _ATTENTIONS[type(block.attn)]
        block.attn.window, block.attn.shift = window, shift


class _Offered:
    """An attention of timm that says which of ours is the same."""

    window: int
    shift: int
    num_heads: int
    qkv: nn.Linear
    proj: nn.Linear

    def as_window_attention(self) -> WindowAttention:
        """The same attention on the whole map, with the same weights: what ACmixWindow can replace."""
        dim, weight = self.qkv.in_features, self.qkv.weight
        dropout = getattr(self, "proj_drop", nn.Identity())
        same = WindowAttention(dim, self.window, self.num_heads, shift=self.shift, dropout=getattr(dropout, "p", 0.0))
        same.to(weight.dtype)
        weights = {"qkv.weight": self._packed(weight), "proj.weight": self.proj.weight}
        weights["qkv.bias"] = weight.new_zeros(3 * dim) if self.qkv.bias is None else self._packed(self.qkv.bias)
        weights["proj.bias"] = weight.new_zeros(dim) if self.proj.bias is None else self.proj.bias
        table = self._bias_table()
        weights["relative_position_bias_table"] = (
            torch.zeros_like(same.relative_position_bias_table) if table is None else table
        )
        same.load_state_dict(weights)
        return same

    def _packed(self, rows: Tensor) -> Tensor:
        """Rows of qkv in our order: q, k, v, each head-major."""
        return rows

    def _bias_table(self) -> Tensor | None:
        """The bias of every offset; None where there is none."""
        return None


class _SwinAttention(_Offered, swin_transformer.WindowAttention):
    def _bias_table(self) -> Tensor:
        table: Tensor = self.relative_position_bias_table
        return table


class _DavitAttention(_Offered, davit.WindowAttention):
    pass


class _TwinsAttention(_Offered, twins.LocallyGroupedAttn):
    pass


class _GcvitAttention(_Offered, gcvit.WindowAttentionGlobal):
    def _bias_table(self) -> Tensor:
        table: Tensor = self.rel_pos.relative_position_bias_table
        return table


class _MaxvitAttention(_Offered, maxxvit.AttentionCl):
    def _packed(self, rows: Tensor) -> Tensor:
        if not self.head_first:
            return rows
        return torch.unflatten(rows, 0, (self.num_heads, 3, self.dim_head)).transpose(0, 1).flatten(0, 2)

    def _bias_table(self) -> Tensor | None:
        return None if self.rel_pos is None else self.rel_pos.relative_position_bias_table


class _SwinBlock(swin_transformer.SwinTransformerBlock):
    attn: Any

    def geometry(self) -> tuple[int | None, int]:
        """Side of the windows, None where they are not square, and by how much the map is rolled."""
        return _square(self.window_size), self.shift_size[0]

    def _attn(self, x_BHWC: Tensor) -> Any:
        if not isinstance(self.attn, ACmixWindow):
            return super()._attn(x_BHWC)  # type: ignore[no-untyped-call]  # timm leaves it untyped
        shift = self.shift_size

        def attention(map_BHWC: Tensor) -> Any:
            return self.attn(map_BHWC, self.get_attn_mask(map_BHWC) if self.dynamic_mask else self.attn_mask)

        rolled_BHWC = torch.roll(x_BHWC, (-shift[0], -shift[1]), (1, 2))
        return torch.roll(_filled_up(rolled_BHWC, self.window_size[0], attention), shift, (1, 2))


class _DavitBlock(davit.SpatialBlock):
    attn: Any

    def geometry(self) -> tuple[int | None, int]:
        return _square(self.window_size), 0

    def forward(self, x_BCHW: Tensor) -> Any:
        if not isinstance(self.attn, ACmixWindow):
            return super().forward(x_BCHW)
        shortcut_BHWC = self.cpe1(x_BCHW).movedim(1, -1)
        attended_BHWC = _filled_up(self.norm1(shortcut_BHWC), self.window_size[0], self.attn)
        x_BCHW = self.cpe2((shortcut_BHWC + self.drop_path1(attended_BHWC)).movedim(-1, 1))
        x_BHWC = x_BCHW.movedim(1, -1)
        return (x_BHWC + self.drop_path2(self.mlp(self.norm2(x_BHWC)))).movedim(-1, 1)


class _TwinsBlock(twins.Block):
    attn: Any

    def geometry(self) -> tuple[int | None, int]:
        return getattr(self.attn, "ws", None), 0

    def forward(self, x_BTC: Tensor, size: tuple[int, int]) -> Any:
        if not isinstance(self.attn, ACmixWindow):
            return super().forward(x_BTC, size)
        map_BHWC = torch.unflatten(self.norm1(x_BTC), 1, size)
        x_BTC = x_BTC + self.drop_path1(_filled_up(map_BHWC, self.attn.window, self.attn).flatten(1, 2))
        return x_BTC + self.drop_path2(self.mlp(self.norm2(x_BTC)))


class _GcvitBlock(gcvit.GlobalContextVitBlock):
    attn: Any

    def geometry(self) -> tuple[int | None, int]:
        return _square(self.window_size), 0

    def _window_attn(self, x_BHWC: Tensor, q_global: Tensor | None = None) -> Any:
        return self.attn(x_BHWC) if isinstance(self.attn, ACmixWindow) else super()._window_attn(x_BHWC, q_global)


class _MaxvitBlock(maxxvit.PartitionAttentionCl):
    attn: Any

    def geometry(self) -> tuple[int | None, int]:
        return _square(self.partition_size) if self.partition_block else None, 0

    def _partition_attn(self, x_BHWC: Tensor) -> Any:
        if isinstance(self.attn, ACmixWindow):
            return self.attn(x_BHWC)
        return super()._partition_attn(x_BHWC)  # type: ignore[no-untyped-call]  # timm leaves it untyped


_BLOCKS: dict[type[nn.Module], type[nn.Module]] = {
    swin_transformer.SwinTransformerBlock: _SwinBlock,
    davit.SpatialBlock: _DavitBlock,
    twins.Block: _TwinsBlock,
    gcvit.GlobalContextVitBlock: _GcvitBlock,
    maxxvit.PartitionAttentionCl: _MaxvitBlock,
}
_ATTENTIONS: dict[type[nn.Module], type[_Offered]] = {
    swin_transformer.WindowAttention: _SwinAttention,
    davit.WindowAttention: _DavitAttention,
    twins.LocallyGroupedAttn: _TwinsAttention,
    gcvit.WindowAttentionGlobal: _GcvitAttention,
    maxxvit.AttentionCl: _MaxvitAttention,
}


def _stands_in(attention: Any) -> bool:
    """Whether ACmixWindow's attention part computes the same."""
    return (
        type(attention) in _ATTENTIONS
        and attention.proj.in_features == attention.qkv.in_features  # else its heads have a width of their own
        and not getattr(attention, "use_global", False)
        and type(getattr(attention, "rel_pos", None)) in (RelPosBias, type(None))
    )


def _square(window: Any) -> int | None:
    return window[0] if window[0] == window[1] else None


def _filled_up(x_BHWC: Tensor, window: int, attention: Callable[[Tensor], Any]) -> Tensor:
    """The attention of a map that zeros fill up to whole windows."""
    height, width = x_BHWC.shape[1:3]
    attended_BHWC: Tensor = attention(F.pad(x_BHWC, (0, 0, 0, -width % window, 0, -height % window)))
    return attended_BHWC[:, :height, :width]
