"""Byte-pair encoding: frequent words are one token, rare ones several, and every text can be encoded."""

import functools
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from lstmx.data.vocabulary import checked_ids

if TYPE_CHECKING:
    from tokenizers import Tokenizer

SPECIALS = ("<pad>", "<unk>", "<bos>", "<eos>")
_BYTES = 256


class Subwords:
    """A vocabulary of byte sequences, learnt from a text, and text to ids and back.

    Text is cut into words, numbers and punctuation, each with the space before it, and those into the longest
    pieces that were learnt. All 256 bytes are pieces, so any text can be encoded, and `decode` restores
    it (except for white space at its ends). Ids 0, 1, ... are the special tokens; no text is encoded as one,
    and `decode` omits them.

    Args:
      tokenizer: a tokenizer of the library `tokenizers`, as made by `train` and `from_json`.

    Source: Sennrich, Haddow & Birch, "Neural machine translation of rare words with subword units", 2016; of
    bytes: Radford et al., "Language models are unsupervised multitask learners", 2019.

    Example:
      >>> subwords = Subwords.train(["low low low lower new newer"] * 9, size=264)
      >>> subwords.tokens(subwords.encode("lower"))
      [' low', 'er']
      >>> subwords.decode(subwords.encode("slow!"))
      'slow!'
    """

    def __init__(self, tokenizer: "Tokenizer"):
        # The name of a special token in a text is ordinary text.
        tokenizer.encode_special_tokens = True
        self._tokenizer = tokenizer

    @classmethod
    def train(cls, texts: Iterable[str], size: int, *, specials: Sequence[str] = SPECIALS) -> "Subwords":
        """Learns a vocabulary.

        Args:
          texts: the text, in pieces of any length; the order of the pieces makes no difference.
          size: the number of tokens, special ones and 256 bytes included. It is less if the text gives no
            more pairs.
          specials: the special tokens, which get the first ids.

        Returns:
          The vocabulary; the same for the same text and size, in every process.

        Raises:
          ValueError: if the size leaves no place for a byte each, specials repeat, or there is no text.

        Example:
          >>> len(Subwords.train(["to be or not to be"], size=265))
          265
        """
        from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

        specials = list(specials)
        if len(set(specials)) < len(specials):
            raise ValueError(f"specials must be distinct, got {specials}")
        if size < len(specials) + _BYTES:
            raise ValueError(
                f"size must be at least {len(specials) + _BYTES} ({_BYTES} bytes and {len(specials)} special "
                f"tokens), got {size}"
            )
        # Sorted, for the library breaks ties by what it meets first; and each text as often as it occurs.
        counts = Counter(texts)
        if not any(text.strip() for text in counts):
            raise ValueError("a vocabulary is learnt from text, got none")
        splitter = pre_tokenizers.ByteLevel(add_prefix_space=True)
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = splitter
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=size,
            special_tokens=specials,
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        )
        ordered = (text for text in sorted(counts) for _ in range(counts[text]))
        tokenizer.train_from_iterator(ordered, trainer)
        return cls(tokenizer)

    @classmethod
    def from_json(cls, text: str) -> "Subwords":
        """The vocabulary that `to_json` wrote.

        Raises:
          ValueError: if it is not such a text.

        Example:
          >>> subwords = Subwords.train(["to be or not to be"], size=262)
          >>> Subwords.from_json(subwords.to_json()).to_json() == subwords.to_json()
          True
        """
        from tokenizers import Tokenizer

        try:
            return cls(Tokenizer.from_str(text))
        except Exception as error:  # the library raises nothing narrower
            raise ValueError(f"not a vocabulary of subwords: {error}") from error

    def to_json(self) -> str:
        """The whole vocabulary as text, in the format of the library `tokenizers`."""
        return json.dumps(json.loads(self._tokenizer.to_str()), ensure_ascii=False)

    def encode(self, text: str) -> np.ndarray:
        """Turns text into ids, int32 `[N]`; nothing is put around them."""
        return np.array(self._tokenizer.encode(text, add_special_tokens=False).ids, np.int32)

    def encode_all(self, texts: Sequence[str]) -> list[np.ndarray]:
        """`encode` of many texts, several at a time."""
        encoded = self._tokenizer.encode_batch(list(texts), add_special_tokens=False)
        return [np.array(one.ids, np.int32) for one in encoded]

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """Turns ids into text, special tokens left out.

        Raises:
          ValueError: if an id is out of range.
        """
        return self._tokenizer.decode(checked_ids(ids, len(self)).tolist(), skip_special_tokens=True).strip()

    def tokens(self, ids: Sequence[int] | np.ndarray) -> list[str]:
        """The text of each token, special ones by their names, the space before a word included."""
        return [self._texts[i] for i in checked_ids(ids, len(self)).tolist()]

    def id_of(self, special: str) -> int:
        """The id of a special token.

        Raises:
          ValueError: if there is none of that name.
        """
        index = self._tokenizer.token_to_id(special)
        if index is None:
            raise ValueError(f"the vocabulary has no token {special!r}")
        return index

    def __len__(self) -> int:
        return self._tokenizer.get_vocab_size()

    @functools.cached_property
    def _texts(self) -> list[str]:
        special = {token.content for token in self._tokenizer.get_added_tokens_decoder().values()}
        names = [self._tokenizer.id_to_token(i) for i in range(len(self))]
        decode = self._tokenizer.decoder.decode
        return [name if name in special else decode([name]) for name in names]
