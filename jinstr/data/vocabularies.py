"""Any tokenizer that jinstr opens, as a seqio vocabulary: for Tasks that yield ids rather than text.

`seqio.SentencePieceVocabulary` reads .model files with SentencePiece's rules. This one reads tokenizer.json too,
applies the normalisation profile, and gives the ids that jinstr trains on: control tokens that people type stay text.
"""

from __future__ import annotations

from jinstr.text import tokenizer as tokenizer_lib


def vocabulary(path: str):
    """A `seqio.Vocabulary` of the tokenizer at a path (see `text.tokenizer.load`).

    Encoding adds no begin and no end of text. As everywhere in seqio, padding is id 0, whatever the tokenizer says.
    Its `fingerprint` is the tokenizer's, so a Task that has it may yield ids. Errors: ConfigError of `load`.
    """
    import seqio
    import tensorflow as tf

    tokenizer = tokenizer_lib.load(path)

    class Vocabulary(seqio.Vocabulary):
        """One tokenizer, known by its fingerprint."""

        fingerprint = tokenizer.fingerprint
        bos_id = tokenizer.bos_id if tokenizer.bos_id >= 0 else None
        eos_id = tokenizer.eos_id
        unk_id = tokenizer.unk_id if tokenizer.unk_id >= 0 else None
        _base_vocab_size = tokenizer.vocab_size

        def _encode(self, s: str) -> list[int]:
            return tokenizer.encode(s)

        def _decode(self, ids) -> str:
            return tokenizer.decode(ids)

        def _encode_tf(self, s):
            def encode(text: bytes):
                return tokenizer.encode_array(text.decode("utf-8"))

            ids = tf.numpy_function(encode, [s], tf.int32, stateful=False)
            return tf.ensure_shape(ids, [None])

        def _decode_tf(self, ids):
            def decode(rows):
                # seqio has put 0, which may be any token here, after the end of text.
                lists = [[*row.tolist(), self.eos_id] for row in rows.reshape(-1, rows.shape[-1])]
                texts = [tokenizer.decode(ids[: ids.index(self.eos_id)]) for ids in lists]
                return tf.reshape(tf.constant(texts), rows.shape[:-1]).numpy()

            found = tf.numpy_function(decode, [ids], tf.string, stateful=False)
            return tf.ensure_shape(found, ids.shape[:-1])

        def __eq__(self, other) -> bool:
            return getattr(other, "fingerprint", None) == self.fingerprint

        def __hash__(self) -> int:
            return hash(self.fingerprint)

    return Vocabulary()
