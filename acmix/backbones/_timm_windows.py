"""Window attentions of timm as slots: each block becomes one of ours, which hands a swapped attention the whole map.

timm's blocks cut their map into windows before they call the attention; ACmix needs the map. Names, parameters and
whatever is not swapped stay timm's. No slots are

- the cascaded attention of EfficientViT (MSRA): each head projects what attention of the head before gave, so stage I
  is not to be had without it, and the two paths cannot be parted;
- halo attention (HaloNet and its kin): its windows of keys overlap;
- attention with windows that are not square, or with heads of a width of their own.
"""

# Shapes: B batch, C channels, H W map, T tokens, P windows, L tokens of a window

from collections.abc import Callable, Iterator
from math import isqrt
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from timm.layers.pos_embed_rel import RelPosBias
from timm.models import (
    davit,
    gcvit,
    hiera,
    hieradet_sam2,
    maxxvit,
    nest,
    swin_transformer,
    swin_transformer_v2,
    swin_transformer_v2_cr,
    tiny_vit,
    twins,
    vision_transformer_sam,
)
from torch import Tensor, nn

from acmix.backbones._timm_scorings import (
    BiasScoring,
    DecomposedScoring,
    MirroredScoring,
    PooledScoring,
    SwinV2CrScoring,
    SwinV2Scoring,
)
from acmix.backbones._windows import Windows, WindowVariant
from acmix.mixers.window import ACmixWindow


def offer_windows(model: nn.Module) -> None:
    """Make slots of the window attentions of a model, in place."""
    for module in list(model.modules()):
        if type(module) in _TOLD:
            _TOLD[type(module)](module)
    for block in list(model.modules()):
        if type(block) in _BLOCKS:
            block.__class__ = _BLOCKS[type(block)]
            for place in block.places():  # type: ignore[operator]  # ours have it
                _offer(block.get_submodule(place.name), place)


class _Place(NamedTuple):
    """Where a block has a window attention, and what the attention does not know of its windows."""

    name: str
    sides: tuple[int, int]
    shift: int = 0
    grid: bool = False
    stride: int = 1


def _offer(attention: Any, place: _Place) -> None:
    offered = _ATTENTIONS.get(type(attention))
    if offered is None or place.sides[0] != place.sides[1]:
        return
    before = attention.__class__
    attention.__class__, attention.place = offered, place
    if not attention.stands_in():
        attention.__class__ = before


class _Offered:
    """An attention of timm that says what ACmixWindow needs to stand in for it."""

    place: _Place
    num_heads: int
    qkv: nn.Linear
    proj: nn.Linear
    parts = 3  # of the projection

    @property
    def slot(self) -> tuple[int, int]:
        """Channels and stride."""
        return self.proj.in_features, self.place.stride

    def windows(self) -> Windows:
        """Its sizes and its weights, by our names."""
        dim, weight = self.proj.in_features, self.qkv.weight
        qkv_bias, proj_bias, variant = self._qkv_bias(), self.proj.bias, self._variant()
        weights = {"qkv.weight": self._packed(weight), "proj.weight": self._proj_weight()}
        weights["qkv.bias"] = weight.new_zeros(len(weight)) if qkv_bias is None else self._packed(qkv_bias)
        weights["proj.bias"] = weight.new_zeros(len(self.proj.weight)) if proj_bias is None else proj_bias
        if variant.scoring is None:
            table = self._bias_table()
            offsets = (2 * self.place.sides[0] - 1) ** 2
            weights["relative_position_bias_table"] = (
                weight.new_zeros(offsets, self.num_heads) if table is None else table
            )
        dropout = getattr(getattr(self, "proj_drop", None), "p", 0.0)
        return Windows(
            dim, self.place.sides[0], self.num_heads, weights, shift=self.place.shift, dropout=dropout, variant=variant
        )

    def stands_in(self) -> bool:
        """Whether ACmixWindow's attention computes the same."""
        return self.qkv.out_features == self.parts * self.proj.in_features  # else heads have a width of their own

    def _packed(self, rows: Tensor) -> Tensor:
        """Rows of qkv in our order: q, k, v, each head-major."""
        return rows

    def _packed_by_head(self, rows: Tensor) -> Tensor:
        """The same of rows that are q, k, v of the first head, then of the second."""
        return torch.unflatten(rows, 0, (self.num_heads, self.parts, -1)).transpose(0, 1).flatten(0, 2)

    def _qkv_bias(self) -> Tensor | None:
        return self.qkv.bias

    def _proj_weight(self) -> Tensor:
        """Reading head-major channels."""
        weight: Tensor = self.proj.weight
        return weight

    def _bias_table(self) -> Tensor | None:
        """The bias of every offset; None where there is none."""
        return None

    def _variant(self) -> WindowVariant:
        in_channels, out_channels, dim = self.qkv.in_features, self.proj.out_features, self.proj.in_features
        return WindowVariant(
            grid=self.place.grid,
            scoring=self._scoring(),
            norm=self._norm(),
            in_channels=None if in_channels == dim else in_channels,
            out_channels=None if out_channels == dim else out_channels,
            stride=self.place.stride,
            given_queries=self.parts == 2,
        )

    def _scoring(self) -> nn.Module | None:
        """How logits are made, where it is not by the bias table."""
        return None

    def _norm(self) -> nn.Module | None:
        return None


class _SwinAttention(_Offered, swin_transformer.WindowAttention):
    def _bias_table(self) -> Tensor:
        table: Tensor = self.relative_position_bias_table
        return table


class _SwinV2Attention(_Offered, swin_transformer_v2.WindowAttention):
    q_bias: Any
    k_bias: Any
    v_bias: Any
    relative_coords_table: Tensor
    relative_position_index: Tensor

    def _qkv_bias(self) -> Tensor | None:
        return None if self.q_bias is None else torch.cat([self.q_bias, self.k_bias, self.v_bias])

    def _scoring(self) -> nn.Module:
        offset_AR = self.relative_coords_table.flatten(0, 2)
        return SwinV2Scoring(self.logit_scale, self.cpb_mlp, offset_AR, self.relative_position_index)


class _SwinV2CrAttention(_Offered, swin_transformer_v2_cr.WindowMultiHeadAttention):
    relative_coordinates_log: Tensor

    def _scoring(self) -> nn.Module:
        positions = self.place.sides[0] ** 2
        offset_TTR = self.relative_coordinates_log.view(positions, positions, -1)
        return SwinV2CrScoring(self.logit_scale, self.meta_mlp, offset_TTR)


class _DavitAttention(_Offered, davit.WindowAttention):
    pass


class _TwinsAttention(_Offered, twins.LocallyGroupedAttn):
    pass


class _NestAttention(_Offered, nest.Attention):
    def _proj_weight(self) -> Tensor:
        # quirk: what it projects is the first channel of all heads, then the second
        return torch.unflatten(self.proj.weight, 1, (-1, self.num_heads)).transpose(1, 2).flatten(1)


class _GcvitAttention(_Offered, gcvit.WindowAttentionGlobal):
    @property
    def parts(self) -> int:  # type: ignore[override]  # every second one has its queries given
        return 2 if self.use_global else 3

    def _bias_table(self) -> Tensor:
        table: Tensor = self.rel_pos.relative_position_bias_table
        return table


class _MaxvitAttention(_Offered, maxxvit.AttentionCl):
    def _packed(self, rows: Tensor) -> Tensor:
        return self._packed_by_head(rows) if self.head_first else rows

    def _bias_table(self) -> Tensor | None:
        return None if self.rel_pos is None else self.rel_pos.relative_position_bias_table

    def _scoring(self) -> nn.Module | None:
        return None if self.rel_pos is None or type(self.rel_pos) is RelPosBias else BiasScoring(self.rel_pos)


class _TinyVitAttention(_Offered, tiny_vit.Attention):
    attention_bias_idxs: Tensor

    def _packed(self, rows: Tensor) -> Tensor:
        return self._packed_by_head(rows)

    def _scoring(self) -> nn.Module:
        return MirroredScoring(self.attention_biases, self.attention_bias_idxs)

    def _norm(self) -> nn.Module:
        norm: nn.Module = self.norm
        return norm


class _SamAttention(_Offered, vision_transformer_sam.Attention):
    def stands_in(self) -> bool:
        return bool(self.use_rel_pos) and super().stands_in()

    def _scoring(self) -> nn.Module:
        return DecomposedScoring(self.q_norm, self.k_norm, self.rel_pos_h, self.rel_pos_w)


class _PoolingAttention(_Offered):
    def _scoring(self) -> nn.Module | None:
        return PooledScoring(self.place.stride) if self.place.stride > 1 else None


class _HieraAttention(_PoolingAttention, hiera.MaskUnitAttention):
    @property
    def num_heads(self) -> int:  # type: ignore[override]  # timm calls them otherwise here
        return int(self.heads)


class _HieradetAttention(_PoolingAttention, hieradet_sam2.MultiScaleAttention):
    pass


class _RollingBlock:
    """A block of one of the Swin Transformers: it rolls its map before the attention, and back."""

    attn: Any
    window_size: tuple[int, int]
    shift_size: tuple[int, int]
    dynamic_mask: bool
    attn_mask: Tensor | None
    get_attn_mask: Any

    def places(self) -> Iterator[_Place]:
        yield _Place("attn", self.window_size, shift=self.shift_size[0])

    def attended(self, x_BHWC: Tensor) -> Tensor:
        """What a swapped attention makes of the map."""
        shift = self.shift_size

        def attention(map_BHWC: Tensor) -> Any:
            return self.attn(map_BHWC, self.get_attn_mask(map_BHWC) if self.dynamic_mask else self.attn_mask)

        rolled_BHWC = torch.roll(x_BHWC, (-shift[0], -shift[1]), (1, 2))
        return torch.roll(_filled_up(rolled_BHWC, self.window_size[0], attention), shift, (1, 2))


class _SwinBlock(_RollingBlock, swin_transformer.SwinTransformerBlock):
    def _attn(self, x_BHWC: Tensor) -> Any:
        return self.attended(x_BHWC) if _is_swapped(self.attn) else super()._attn(x_BHWC)  # type: ignore[no-untyped-call]  # timm leaves it untyped


class _SwinV2Block(_RollingBlock, swin_transformer_v2.SwinTransformerV2Block):
    def _attn(self, x_BHWC: Tensor) -> Any:
        return self.attended(x_BHWC) if _is_swapped(self.attn) else super()._attn(x_BHWC)


class _SwinV2CrBlock(_RollingBlock, swin_transformer_v2_cr.SwinTransformerV2CrBlock):
    def _shifted_window_attn(self, x_BHWC: Tensor) -> Any:
        return self.attended(x_BHWC) if _is_swapped(self.attn) else super()._shifted_window_attn(x_BHWC)  # type: ignore[no-untyped-call]  # timm leaves it untyped


class _DavitBlock(davit.SpatialBlock):
    attn: Any

    def places(self) -> Iterator[_Place]:
        yield _Place("attn", self.window_size)

    def forward(self, x_BCHW: Tensor) -> Any:
        if not _is_swapped(self.attn):
            return super().forward(x_BCHW)
        shortcut_BHWC = self.cpe1(x_BCHW).movedim(1, -1)
        attended_BHWC = _filled_up(self.norm1(shortcut_BHWC), self.window_size[0], self.attn)
        x_BCHW = self.cpe2((shortcut_BHWC + self.drop_path1(attended_BHWC)).movedim(-1, 1))
        x_BHWC = x_BCHW.movedim(1, -1)
        return (x_BHWC + self.drop_path2(self.mlp(self.norm2(x_BHWC)))).movedim(-1, 1)


class _TwinsBlock(twins.Block):
    attn: Any

    def places(self) -> Iterator[_Place]:
        if type(self.attn) is twins.LocallyGroupedAttn:
            yield _Place("attn", (self.attn.ws, self.attn.ws))

    def forward(self, x_BTC: Tensor, size: tuple[int, int]) -> Any:
        if not _is_swapped(self.attn):
            return super().forward(x_BTC, size)
        map_BHWC = torch.unflatten(self.norm1(x_BTC), 1, size)
        x_BTC = x_BTC + self.drop_path1(_filled_up(map_BHWC, self.attn.window, self.attn).flatten(1, 2))
        return x_BTC + self.drop_path2(self.mlp(self.norm2(x_BTC)))


class _GcvitBlock(gcvit.GlobalContextVitBlock):
    attn: Any
    window_size: Any

    def places(self) -> Iterator[_Place]:
        yield _Place("attn", self.window_size)

    def _window_attn(self, x_BHWC: Tensor, q_global: Tensor | None = None) -> Any:
        if not _is_swapped(self.attn):
            return super()._window_attn(x_BHWC, q_global)
        if self.attn.parts == 3 or q_global is None:
            return self.attn(x_BHWC)
        # every window has the same queries: those of the whole image, as small as a window
        times = [side // window for side, window in zip(x_BHWC.shape[1:3], self.window_size, strict=True)]
        return self.attn(x_BHWC, queries_BHWC=q_global.repeat(1, *times, 1))


class _MaxvitBlock(maxxvit.PartitionAttentionCl):
    attn: Any

    def places(self) -> Iterator[_Place]:
        yield _Place("attn", self.partition_size, grid=not self.partition_block)

    def _partition_attn(self, x_BHWC: Tensor) -> Any:
        return self.attn(x_BHWC) if _is_swapped(self.attn) else super()._partition_attn(x_BHWC)  # type: ignore[no-untyped-call]  # timm leaves it untyped


class _ParallelMaxvitBlock(maxxvit.ParallelPartitionAttention):
    """Windows and a grid side by side, each giving half of the channels."""

    def places(self) -> Iterator[_Place]:
        yield _Place("attn_block", self.partition_size)
        yield _Place("attn_grid", self.partition_size, grid=True)

    def _partition_attn(self, x_BHWC: Tensor) -> Tensor:
        sides, size = self.partition_size, x_BHWC.shape[1:3]
        if _is_swapped(self.attn_block):
            block_BHWC = self.attn_block(x_BHWC)
        else:
            block_BHWC = maxxvit.window_reverse(self.attn_block(maxxvit.window_partition(x_BHWC, sides)), sides, size)
        if _is_swapped(self.attn_grid):
            grid_BHWC = self.attn_grid(x_BHWC)
        else:
            grid_BHWC = maxxvit.grid_reverse(self.attn_grid(maxxvit.grid_partition(x_BHWC, sides)), sides, size)
        return torch.cat([block_BHWC, grid_BHWC], dim=-1)


class _NestBlock(nest.TransformerLayer):
    attn: Any
    window_px: int

    def places(self) -> Iterator[_Place]:
        yield _Place("attn", (self.window_px, self.window_px))

    def forward(self, x_BPLC: Tensor) -> Any:
        if not _is_swapped(self.attn):
            return super().forward(x_BPLC)  # type: ignore[no-untyped-call]  # timm leaves it untyped
        map_BHWC = nest.deblockify(self.norm1(x_BPLC), self.window_px)
        x_BPLC = x_BPLC + self.drop_path1(nest.blockify(self.attn(map_BHWC), self.window_px))
        return x_BPLC + self.drop_path2(self.mlp(self.norm2(x_BPLC)))


class _TinyVitBlock(tiny_vit.TinyVitBlock):
    attn: Any

    def places(self) -> Iterator[_Place]:
        yield _Place("attn", (self.window_size, self.window_size))

    def forward(self, x_BHWC: Tensor) -> Any:
        if not _is_swapped(self.attn):
            return super().forward(x_BHWC)  # type: ignore[no-untyped-call]  # timm leaves it untyped
        x_BHWC = x_BHWC + self.drop_path1(_filled_up(x_BHWC, self.window_size, self.attn))
        x_BHWC = self.local_conv(x_BHWC.movedim(-1, 1)).movedim(1, -1)
        return x_BHWC + self.drop_path2(self.mlp(x_BHWC))


class _SamBlock(vision_transformer_sam.Block):
    attn: Any

    def places(self) -> Iterator[_Place]:
        if self.window_size > 0:
            yield _Place("attn", (self.window_size, self.window_size))

    def forward(self, x_BHWC: Tensor) -> Any:
        if not _is_swapped(self.attn):
            return super().forward(x_BHWC)  # type: ignore[no-untyped-call]  # timm leaves it untyped
        attended_BHWC = _filled_up(self.norm1(x_BHWC), self.window_size, self.attn)
        x_BHWC = x_BHWC + self.drop_path1(self.ls1(attended_BHWC))
        return x_BHWC + self.drop_path2(self.ls2(self.mlp(self.norm2(x_BHWC))))


class _HieraBlock(hiera.HieraBlock):
    """Its tokens come window by window; `token_HW` says which token lies where on the map, before and behind it."""

    attn: Any
    proj: Any
    token_HW: tuple[Tensor, Tensor]  # noqa: N815  # a shape

    def places(self) -> Iterator[_Place]:
        if self.attn.use_mask_unit_attn:
            side = isqrt(self.attn.window_size * self.attn.q_stride)
            yield _Place("attn", (side, side), stride=isqrt(self.attn.q_stride))

    def forward(self, x_BTC: Tensor) -> Any:
        if not _is_swapped(self.attn):
            return super().forward(x_BTC)
        before_HW, behind_HW = (token_HW.to(x_BTC.device) for token_HW in self.token_HW)
        normed_BTC = self.norm1(x_BTC)
        attended_BHWC = self.attn(normed_BTC[:, before_HW])
        attended_BTC = attended_BHWC.flatten(1, 2)[:, behind_HW.flatten().argsort()]
        shortcut_BTC = self._shortcut(x_BTC, normed_BTC)
        x_BTC = shortcut_BTC + self.drop_path1(self.ls1(attended_BTC))
        return x_BTC + self.drop_path2(self.ls2(self.mlp(self.norm2(x_BTC))))

    def _shortcut(self, x_BTC: Tensor, normed_BTC: Tensor) -> Tensor:
        """The residual branch, pooled and widened where a stage begins."""
        if not self.do_expand:
            return x_BTC
        pooled = (1, (self.attn.stride**2, -1))
        if self.proj is not None:
            return torch.unflatten(self.proj(normed_BTC), *pooled).amax(1)
        square = torch.unflatten(x_BTC, *pooled)
        return torch.cat([square.amax(1), square.mean(1)], dim=-1)


class _HieradetBlock(hieradet_sam2.MultiScaleBlock):
    attn: Any

    def places(self) -> Iterator[_Place]:
        down, across = self.q_stride or (1, 1)
        if self.is_windowed and down == across and self.window_size[0] % down == 0:
            yield _Place("attn", self.window_size, stride=down)

    def forward(self, x_BHWC: Tensor) -> Any:
        if not _is_swapped(self.attn):
            return super().forward(x_BHWC)
        normed_BHWC = self.norm1(x_BHWC)
        if self.dim != self.dim_out:
            x_BHWC = self.proj(normed_BHWC)
            if self.pool is not None:
                x_BHWC = self.pool(x_BHWC.movedim(-1, 1)).movedim(1, -1)
        attended_BYXC = _filled_up(normed_BHWC, self.window_size[0], self.attn)
        x_BYXC = x_BHWC + self.drop_path1(self.ls1(attended_BYXC[:, : x_BHWC.shape[1], : x_BHWC.shape[2]]))
        return x_BYXC + self.drop_path2(self.ls2(self.mlp(self.norm2(x_BYXC))))


_BLOCKS: dict[type[nn.Module], type[nn.Module]] = {
    swin_transformer.SwinTransformerBlock: _SwinBlock,
    swin_transformer_v2.SwinTransformerV2Block: _SwinV2Block,
    swin_transformer_v2_cr.SwinTransformerV2CrBlock: _SwinV2CrBlock,
    davit.SpatialBlock: _DavitBlock,
    twins.Block: _TwinsBlock,
    gcvit.GlobalContextVitBlock: _GcvitBlock,
    maxxvit.PartitionAttentionCl: _MaxvitBlock,
    maxxvit.ParallelPartitionAttention: _ParallelMaxvitBlock,
    nest.TransformerLayer: _NestBlock,
    tiny_vit.TinyVitBlock: _TinyVitBlock,
    vision_transformer_sam.Block: _SamBlock,
    hiera.HieraBlock: _HieraBlock,
    hieradet_sam2.MultiScaleBlock: _HieradetBlock,
}
_ATTENTIONS: dict[type[nn.Module], type[_Offered]] = {
    swin_transformer.WindowAttention: _SwinAttention,
    swin_transformer_v2.WindowAttention: _SwinV2Attention,
    swin_transformer_v2_cr.WindowMultiHeadAttention: _SwinV2CrAttention,
    davit.WindowAttention: _DavitAttention,
    twins.LocallyGroupedAttn: _TwinsAttention,
    gcvit.WindowAttentionGlobal: _GcvitAttention,
    maxxvit.AttentionCl: _MaxvitAttention,
    nest.Attention: _NestAttention,
    tiny_vit.Attention: _TinyVitAttention,
    vision_transformer_sam.Attention: _SamAttention,
    hiera.MaskUnitAttention: _HieraAttention,
    hieradet_sam2.MultiScaleAttention: _HieradetAttention,
}


def _tell_nest(level: Any) -> None:
    """The blocks of a level do not know their windows."""
    for block in level.transformer_encoder:
        block.window_px = level.block_size


def _tell_hiera(model: Any) -> None:
    """Nor do Hiera's blocks know where their tokens lie; the model can put those of every block on their map."""
    tokens = [_tokens(model.reroll, block) for block in range(len(model.blocks))]
    for block, before, behind in zip(model.blocks, [tokens[0], *tokens], tokens, strict=False):
        block.token_HW = (before, behind)


def _tokens(reroll: Any, block: int) -> Tensor:
    """Which token lies where, (H, W), behind that block."""
    _, size = reroll.schedule[block]
    numbered_1T1 = torch.arange(size[0] * size[1], device="cpu").view(1, -1, 1)
    token_HW: Tensor = reroll(numbered_1T1, block)[0, :, :, 0]
    return token_HW


_TOLD: dict[type[nn.Module], Callable[[nn.Module], None]] = {nest.NestLevel: _tell_nest, hiera.Hiera: _tell_hiera}


def _is_swapped(attention: nn.Module) -> bool:
    return isinstance(attention, ACmixWindow)


def _filled_up(x_BHWC: Tensor, window: int, attention: Callable[[Tensor], Any]) -> Tensor:
    """The attention of a map that zeros fill up to whole windows."""
    height, width = x_BHWC.shape[1:3]
    attended_BYXC: Tensor = attention(F.pad(x_BHWC, (0, 0, 0, -width % window, 0, -height % window)))
    return attended_BYXC[:, :height, :width]
