"""Rows times weights, where a row's bits depend on nothing but the row and the weights.

A product's inner dimension is cut into pieces by the weights' shape alone (configs.py). A piece is summed from zero, in
ascending order of the inner dimension, in steps of the matrix instruction, which all tiles of a chip share; pieces are
added to zero in ascending order, in fp32; then the bias; and the result is rounded once. It makes no difference to that
whether a program walks all pieces, or each has a program and another kernel adds what they found.

Tiles of rows that take turns over the same columns: Triton's tutorial on matrix multiplication.
"""

from dataclasses import replace

import torch
import triton
import triton.language as tl

from streamproc.kernels.compiling import Variant
from streamproc.kernels.configs import Chip, ProductTile, config_of
from streamproc.kernels.dots import dot
from streamproc.kernels.rounding import rounded

COLUMNS_TO_ADD = 1024    # of a program that adds pieces


@triton.jit(do_not_specialize=["num_rows"])    # one compilation for all batches
def product(
    x, weight, bias, out,
    num_rows, columns, depth, piece, x_stride, weight_stride, out_stride,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr, GROUP: tl.constexpr,
    PIECE_EACH: tl.constexpr, IS_WHOLE: tl.constexpr, IS_EVEN: tl.constexpr,
):  # fmt: skip
    """x [num_rows, depth], weight [columns, depth] -> out [num_rows, columns] in out's dtype.

    PIECE_EACH: program (tile, piece) leaves its sum in out [pieces, num_rows, columns], float32, without the bias
    IS_WHOLE: there is one piece; IS_EVEN: DEPTH divides the depth
    """
    tiles_of_rows = tl.cdiv(num_rows, ROWS)
    group = tl.program_id(0) // (GROUP * tl.cdiv(columns, COLUMNS))
    rows_in_group = tl.minimum(tiles_of_rows - group * GROUP, GROUP)
    place = tl.program_id(0) % (GROUP * tl.cdiv(columns, COLUMNS))
    first_row = (group * GROUP + place % rows_in_group) * ROWS
    first_column = place // rows_in_group * COLUMNS
    row, column, inner = tl.arange(0, ROWS), tl.arange(0, COLUMNS), tl.arange(0, DEPTH)
    is_row, is_column = row < num_rows - first_row, column < columns - first_column
    # Addresses are one scalar of 64 bits and offsets of 32 that no step changes: registers are scarce.
    x += first_row.to(tl.int64) * x_stride
    weight += first_column.to(tl.int64) * weight_stride
    offsets_x = row[:, None] * x_stride + inner[None, :]
    offsets_weight = column[:, None] * weight_stride + inner[None, :]
    start = tl.program_id(1) * piece

    total = tl.zeros((ROWS, COLUMNS), tl.float32)
    end_of_all = start + 1 if PIECE_EACH or IS_WHOLE else depth
    for first in tl.range(start, end_of_all, piece):
        found = tl.zeros((ROWS, COLUMNS), tl.float32)
        for k in tl.range(first, tl.minimum(first + piece, depth), DEPTH):
            if IS_EVEN:
                a = tl.load(x + k + offsets_x, is_row[:, None], other=0.0)
                b = tl.load(weight + k + offsets_weight, is_column[:, None], other=0.0)
            else:
                is_inner = (inner < depth - k)[None, :]
                a = tl.load(x + k + offsets_x, is_row[:, None] & is_inner, other=0.0)
                b = tl.load(weight + k + offsets_weight, is_column[:, None] & is_inner, other=0.0)
            found = dot(a, b.T, found)
        total = found if PIECE_EACH or IS_WHOLE else total + found

    if PIECE_EACH:
        out += tl.program_id(1).to(tl.int64) * num_rows * columns
    elif bias is not None:
        total += tl.load(bias + first_column + column, is_column, other=0.0).to(tl.float32)[None, :]
    out += first_row.to(tl.int64) * out_stride + first_column
    offsets = row[:, None] * out_stride + column[None, :]
    tl.store(out + offsets, rounded(total, out.dtype.element_ty), is_row[:, None] & is_column[None, :])


@triton.jit(do_not_specialize=["num_rows", "num_pieces"])
def add_pieces(pieces, bias, out, num_pieces, num_rows, columns, out_stride, COLUMNS: tl.constexpr):
    """pieces [num_pieces, num_rows, columns] float32 -> out [num_rows, columns], with the bias."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    is_column = column < columns
    places = pieces + row * columns + column
    total = tl.zeros((COLUMNS,), tl.float32)
    for _ in range(num_pieces):
        total += tl.load(places, is_column, other=0.0)
        places += num_rows.to(tl.int64) * columns
    if bias is not None:
        total += tl.load(bias + column, is_column, other=0.0).to(tl.float32)
    tl.store(out + row * out_stride + column, rounded(total, out.dtype.element_ty), is_column)


def matmul(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None, out: torch.Tensor | None = None,
           chip: Chip | None = None) -> torch.Tensor:
    """x @ weight.T + bias, summed in float32, rounded once; a row has the same bits in every batch.

    x: [rows, depth]; weight: [columns, depth]; bias: [columns]; rows may lie apart, their elements may not
    -> out: [rows, columns] of x's dtype (bf16, fp16, or fp32), or of its own where it is given
    chip: other tiles than the device's own
    ValueError: shapes that do not fit each other, or elements of a row that lie apart
    """
    (num_rows, depth), columns = x.shape, weight.shape[0]
    out = x.new_empty(num_rows, columns) if out is None else out
    if weight.shape[1] != depth or out.shape != (num_rows, columns) or (bias is not None and bias.shape != (columns,)):
        raise ValueError(f"{tuple(x.shape)} @ {tuple(weight.shape)} into {tuple(out.shape)}: shapes do not fit")
    if any(tensor.stride(-1) != 1 for tensor in (x, weight, out)):
        raise ValueError("the elements of a row lie apart")
    if not num_rows:
        return out
    sizes = (chip or config_of(x.device)).product
    plan = sizes.plan(num_rows, columns, depth, is_wide=x.element_size() > 2)
    tile, num_pieces = plan.tile, plan.num_pieces
    shape = (num_pieces, num_rows, columns)
    target = x.new_empty(shape, dtype=torch.float32) if plan.has_programs else out
    num_tiles = triton.cdiv(num_rows, tile.rows) * triton.cdiv(columns, tile.columns)
    product[num_tiles, num_pieces if plan.has_programs else 1](
        x, weight, None if plan.has_programs else bias, target,
        num_rows, columns, depth, plan.piece, x.stride(0), weight.stride(0), target.stride(-2),
        **constants(tile, sizes.group, num_pieces, plan.has_programs), IS_EVEN=depth % tile.depth == 0,
        num_warps=tile.warps, num_stages=tile.stages,
    )  # fmt: skip
    if plan.has_programs:
        add_pieces[num_rows, triton.cdiv(columns, COLUMNS_TO_ADD)](
            target, bias, out, *shape, out.stride(0), COLUMNS=COLUMNS_TO_ADD, num_warps=4)
    return out


def constants(tile: ProductTile, group: int, num_pieces: int, has_programs: bool) -> dict[str, object]:
    return {
        "ROWS": tile.rows, "COLUMNS": tile.columns, "DEPTH": tile.depth, "GROUP": group, "PIECE_EACH": has_programs,
        "IS_WHOLE": num_pieces == 1,
    }  # fmt: skip


def variants(chip: Chip) -> list[Variant]:
    """Every tile of the table, in each way that it can be launched; and depths that no tile divides."""
    sizes = {"num_rows": "i32", **dict.fromkeys(("columns", "depth", "piece", "x_stride", "weight_stride"), "i32:16"),
             "out_stride": "i32:16"}  # fmt: skip
    odd = {**sizes, **dict.fromkeys(("columns", "depth", "x_stride", "weight_stride", "out_stride"), "i32")}
    tiles = dict.fromkeys(tile for _, tiles in chip.product.tiles for tile in tiles)
    ways = ((1, False), (2, False), (2, True))
    found = [variant_of(chip, tile, sizes, way) for tile in tiles for way in ways if tile.holds(way[0])]
    firsts = dict.fromkeys(tiles[0] for _, tiles in chip.product.tiles)
    found += [variant_of(chip, tile, sizes, (1, False), is_even=False) for tile in firsts]
    found += [variant_of(chip, chip.product.odd, odd, way, is_even=False) for way in ways[:2]]
    wide = variant_of(chip, chip.product.odd, sizes, (2, False))
    floats = {name: kind.replace("bf16", "fp32") for name, kind in wide.signature.items()}
    found.append(replace(wide, name=wide.name + "_float32", signature=floats, needs=()))
    adds = {"pieces": "*fp32", "out": "*bf16", "num_pieces": "i32", "num_rows": "i32", "columns": "i32:16",
            "out_stride": "i32:16"}  # fmt: skip
    constant = {"bias": None, "COLUMNS": COLUMNS_TO_ADD}
    return [*found, Variant("add_pieces", add_pieces, adds, constant, num_warps=4, num_stages=3)]


def variant_of(chip: Chip, tile: ProductTile, sizes: dict[str, str], way: tuple[int, bool], is_even: bool = True
               ) -> Variant:
    """`way`: how many pieces (2: more than one), and whether they have programs of their own."""
    num_pieces, has_programs = way
    is_odd = sizes["depth"] == "i32"
    name = "a_piece" if has_programs else "whole" if num_pieces == 1 else "all_pieces"
    return Variant(
        f"{tile.rows}x{tile.columns}x{tile.depth}_{name}" + ("" if is_even else "_odd" if is_odd else "_uneven"),
        product,
        {"x": "*bf16", "weight": "*bf16", "out": "*fp32" if has_programs else "*bf16", **sizes},
        {"bias": None, **constants(tile, chip.product.group, num_pieces, has_programs), "IS_EVEN": is_even},
        tile.warps, tile.stages, ("matrix",) if is_odd else ("matrix", "copies"), tile.resident,
    )  # fmt: skip
