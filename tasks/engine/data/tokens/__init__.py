"""Text to tokens, with labels where the loss is, and the files that keep them."""

from tasks.engine.data.tokens.changed_rows import changes
from tasks.engine.data.tokens.odd_tokens import OddTokens
from tasks.engine.data.tokens.preference_pairs import tokenize_pairs
from tasks.engine.data.tokens.prepared_data import PreparedData
from tasks.engine.data.tokens.token_files import (
    MappedRows,
    TokenFile,
    conversation_starts,
    row_lengths,
    write_token_file,
)
from tasks.engine.data.tokens.tokenization import (
    IGNORED,
    SplitCounts,
    Tokenized,
    TokenizedRow,
    TokenizedSplit,
    naming,
    shared_prefix_length,
    some_at_once,
    tokenize_split,
)

__all__ = [
    "IGNORED",
    "MappedRows",
    "OddTokens",
    "PreparedData",
    "SplitCounts",
    "TokenFile",
    "Tokenized",
    "TokenizedRow",
    "TokenizedSplit",
    "changes",
    "conversation_starts",
    "naming",
    "row_lengths",
    "shared_prefix_length",
    "some_at_once",
    "tokenize_pairs",
    "tokenize_split",
    "write_token_file",
]
