from dataclasses import dataclass
@dataclass(frozen=True)
class Tile:
    rows: int
    warps: int
    stages: int
@dataclass(frozen=True)
class Attention:
    key_tile: int
    key_split: int
    whole: Tile
    split: Tile
