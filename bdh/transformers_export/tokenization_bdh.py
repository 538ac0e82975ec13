"""Text as bytes and bytes as text, for the transformers library: 256 tokens, of which none is special.

What fills up the shorter texts of a batch is byte 0, which text does not use; the mask says that it is not to be
heard.
"""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedTokenizer


class BdhTokenizer(PreTrainedTokenizer):
    """Each byte of the UTF-8 text is a token, its value is the id, and the character of that number is its name."""

    model_input_names = ["input_ids", "attention_mask"]  # noqa: RUF012

    def __init__(self, pad_token: str = "\x00", padding_side: str = "left", **kwargs: Any) -> None:
        kwargs.setdefault("clean_up_tokenization_spaces", False)
        super().__init__(pad_token=pad_token, padding_side=padding_side, **kwargs)

    @property
    def vocab_size(self) -> int:
        """Bytes have 256 values."""
        return 256

    def get_vocab(self) -> dict[str, int]:
        """Ids by the tokens' names."""
        return {chr(byte): byte for byte in range(256)}

    def _tokenize(self, text: str, **kwargs: Any) -> list[str]:
        return [chr(byte) for byte in text.encode("utf-8", "surrogateescape")]

    def _convert_token_to_id(self, token: str) -> int:
        return ord(token)

    def _convert_id_to_token(self, index: int) -> str:
        return chr(index)

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        """The text of the bytes; U+FFFD for what is no UTF-8."""
        return bytes(ord(token) for token in tokens).decode("utf-8", "replace")

    def build_inputs_with_special_tokens(
        self, token_ids_0: list[int], token_ids_1: list[int] | None = None
    ) -> list[int]:
        """The bytes as they are."""
        return token_ids_0 + (token_ids_1 or [])

    def create_token_type_ids_from_sequences(
        self, token_ids_0: list[int], token_ids_1: list[int] | None = None
    ) -> list[int]:
        """All are of one type."""
        return [0] * len(token_ids_0 + (token_ids_1 or []))

    def get_special_tokens_mask(
        self, token_ids_0: list[int], token_ids_1: list[int] | None = None, already_has_special_tokens: bool = False
    ) -> list[int]:
        """None is special."""
        return [0] * len(token_ids_0 + (token_ids_1 or []))

    def save_vocabulary(self, save_directory: str, filename_prefix: str | None = None) -> tuple[str, ...]:
        """There is nothing to save."""
        return ()
