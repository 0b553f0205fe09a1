"""What lies in folders: text files, rate logs, TensorBoard events, and claims on a folder."""

from hvae_jax.files.text import read_json, read_text, write_json, write_text

__all__ = ["read_json", "read_text", "write_json", "write_text"]
