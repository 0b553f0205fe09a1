"""What lies in folders: text and other files, rate logs, TensorBoard events, and claims on a folder."""

from hvae_jax.files.text import read_json as read_json
from hvae_jax.files.text import read_text as read_text
from hvae_jax.files.text import write_bytes as write_bytes
from hvae_jax.files.text import write_json as write_json
from hvae_jax.files.text import write_text as write_text
