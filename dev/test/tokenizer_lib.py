"""What test_tokenizer.py and bench_tokenizer.py share: this project's tokenizer as a library, called with ctypes, and
tiktoken's and transformers' made, without network, from the same merges file."""
import ctypes
import json
import os
import subprocess

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
SOURCES = ("llmc/data/tokenizer.c", "llmc/data/token_encoder.c", "llmc/data/pretoken.c", "llmc/base/file.c",
           "llmc/base/error.c", "llmc/base/crc32c.c")
END_OF_TEXT = "<|endoftext|>"
PATTERN = r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"""


def find_data(name):
    """The path of a data file in $TOROID_DATA or data/; None if it is in neither."""
    for folder in (os.environ.get("TOROID_DATA"), os.path.join(ROOT, "data")):
        if folder and os.path.exists(os.path.join(folder, name)):
            return os.path.join(folder, name)
    return None


def train_merges(prefix, vocabulary):
    """A merges file of our own, trained on this repository's documents and sources; returns its path."""
    program = os.path.join(ROOT, os.environ.get("BUILD", "build"), "train_gpt2")
    subprocess.run([program, "tokenize", "README.md", "ARCHITECTURE.md", "llmc", "dev/test", f"--train-bpe={vocabulary}",
                    f"--output={prefix}"], cwd=ROOT, check=True, capture_output=True)
    return prefix + ".tokenizer"


class Error(ctypes.Structure):
    _fields_ = [("text", ctypes.c_char * 768)]


class Tokens(ctypes.Structure):
    _fields_ = [("ids", ctypes.POINTER(ctypes.c_uint16)), ("count", ctypes.c_size_t), ("capacity", ctypes.c_size_t)]


class Tokenizer:
    """The C tokenizer."""

    def __init__(self, spec, folder):
        path = os.path.join(folder, "tokenizer.so")
        subprocess.run([os.environ.get("CC", "gcc"), "-std=c11", "-O3", "-fPIC", "-shared", "-Illmc", "-o", path,
                        *SOURCES], cwd=ROOT, check=True)
        self.lib = ctypes.CDLL(path)
        self.lib.tokenizer_open.restype = ctypes.c_void_p
        self.lib.tokenizer_decode.restype = ctypes.POINTER(ctypes.c_char)
        self.lib.token_encoder_open.restype = ctypes.c_void_p
        for name in ("tokenizer_encode", "token_encoder_feed", "token_encoder_finish", "tokenizer_save"):
            getattr(self.lib, name).restype = ctypes.c_bool
        self.error = Error()
        self.handle = ctypes.c_void_p(self.lib.tokenizer_open(spec.encode(), ctypes.byref(self.error)))
        if not self.handle:
            raise ValueError(self.error.text.decode())
        self.tokens = Tokens()

    def encode_raw(self, data):
        """Encodes bytes with a fresh encoder; the ids stay in self.tokens."""
        self.tokens.count = 0
        if not self.lib.tokenizer_encode(self.handle, data, ctypes.c_size_t(len(data)), ctypes.byref(self.tokens),
                                         ctypes.byref(self.error)):
            raise ValueError(self.error.text.decode())

    def encode(self, data):
        self.encode_raw(data)
        return self.tokens.ids[:self.tokens.count]

    def encode_pieces(self, pieces):
        """Encodes the same text fed in pieces."""
        encoder = ctypes.c_void_p(self.lib.token_encoder_open(self.handle, ctypes.byref(self.error)))
        self.tokens.count = 0
        for piece in pieces:
            assert self.lib.token_encoder_feed(encoder, piece, ctypes.c_size_t(len(piece)), ctypes.byref(self.tokens),
                                               ctypes.byref(self.error))
        assert self.lib.token_encoder_finish(encoder, ctypes.byref(self.tokens), ctypes.byref(self.error))
        self.lib.token_encoder_close(encoder)
        return self.tokens.ids[:self.tokens.count]

    def decode(self, ids):
        length = ctypes.c_size_t()
        out = []
        for i in ids:
            text = self.lib.tokenizer_decode(self.handle, i, ctypes.byref(length))
            out.append(text[:length.value])
        return b"".join(out)

    def save(self, path):
        assert self.lib.tokenizer_save(self.handle, path.encode(), ctypes.byref(self.error)), self.error.text


def alphabet():
    """GPT-2's character for each byte, in the order of the ids."""
    order = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [b for b in range(256) if b not in order]
    return {byte: chr(byte) for byte in order} | {byte: chr(256 + i) for i, byte in enumerate(rest)}


def read_merges(path):
    with open(path, encoding="utf-8", newline="\n") as file:
        return [tuple(line.split(" ")) for line in file.read().split("\n") if line and not line.startswith("#version")]


def tiktoken_encoding(merges):
    import tiktoken
    characters = alphabet()
    byte_of = {character: bytes([byte]) for byte, character in characters.items()}
    ranks = {bytes([byte]): i for i, byte in enumerate(characters)}
    for left, right in merges:
        ranks[b"".join(byte_of[c] for c in left + right)] = len(ranks)
    return tiktoken.Encoding("from_merges", pat_str=PATTERN.replace(r"\s+(?!\S)|\s+", r"\s++$|\s+(?!\S)|\s")
                             .replace("+|", "++|", 3), mergeable_ranks=ranks, special_tokens={END_OF_TEXT: len(ranks)})


def transformers_tokenizer(merges, merges_path, folder):
    import transformers
    vocabulary = {}
    for symbol in [*alphabet().values(), *(left + right for left, right in merges), END_OF_TEXT]:
        vocabulary[symbol] = len(vocabulary)
    path = os.path.join(folder, "vocab.json")
    with open(path, "w", encoding="utf-8") as file:
        json.dump(vocabulary, file)
    return transformers.GPT2TokenizerFast(vocab=path, merges=merges_path)
