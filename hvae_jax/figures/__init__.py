"""Numbers to pictures, in one style: style.py what they share, one module per kind of result."""
