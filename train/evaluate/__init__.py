"""How well a model predicts, remembers and finds: functions of a model and bytes that return plain records."""

from .hearing import bits_per_byte, carried_bits, cold_bits, streams_bits
from .last_word import LastWord, Passage, last_word, read_passages
from .names import Asked, Names, names
from .needle import Needle, NeedleGrid, needle_grid
from .position import LongRange, Position, against_position, long_range
from .report import Evaluation, Text, TextResult, report
from .score import ColdAndCarried, Score, cold_and_carried, score

__all__ = [
    "Asked",
    "ColdAndCarried",
    "Evaluation",
    "LastWord",
    "LongRange",
    "Names",
    "Needle",
    "NeedleGrid",
    "Passage",
    "Position",
    "Score",
    "Text",
    "TextResult",
    "against_position",
    "bits_per_byte",
    "carried_bits",
    "cold_and_carried",
    "cold_bits",
    "last_word",
    "long_range",
    "names",
    "needle_grid",
    "read_passages",
    "report",
    "score",
    "streams_bits",
]
