"""Programs and configs: thin, from flags to the library."""

import os
import sys
import types


def _say_in_one_line(
    kind: type[BaseException], error: BaseException, trace: types.TracebackType | None
) -> None:
    """Names the environment variable that an import stumbled over, as Matplotlib does over MPLBACKEND."""
    text = " ".join(str(error).split())
    # JAX says either the variable or the option that it sets, jax_num_cpu_devices.
    names = [name for name, value in os.environ.items() if name.startswith("JAX_") and value]
    said = [name for name in names if name in text or f"flag {name.lower()}" in text]
    if os.environ.get("MPLBACKEND", "") and text.startswith("Key backend:"):
        said = ["MPLBACKEND"]
    if isinstance(error, ValueError) and said:
        print(f"error: {said[0]}={os.environ[said[0]]}: {text}; mend or unset it", file=sys.stderr)
    else:
        sys.__excepthook__(kind, error, trace)


# So Python calls itself while `python -m experiments.x` imports this package: the program's own handling
# of errors, `program.run`, takes over when all is imported.
if sys.argv[:1] == ["-m"]:
    sys.excepthook = _say_in_one_line
