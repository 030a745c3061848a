"""Run as a program: ask SparseZoo's service, through its own client, which files a model has.

A process of its own, because that client has no time limits: it can be ended when it hangs.
The answer is one JSON list on the last line of stdout, the reason of a failure on stderr's.
"""

from __future__ import annotations

import json
import os
import sys


def main(stub: str) -> int:
    """Print ``[["training/model.pth", "https://..."], ...]``: the files of ``stub``."""
    os.environ["NM_DISABLE_ANALYTICS"] = "1"  # else importing it asks who and where this is
    from sparsezoo.model.utils import load_files_from_stub

    try:
        files = load_files_from_stub(stub)[0]
    except Exception as error:  # whatever it is: the caller only needs to know that there is none
        print(f"{type(error).__name__}: {error}".splitlines()[0], file=sys.stderr)
        return 1
    folders = {"training": "training/", "deployment": "deployment/"}
    named = [(folders.get(file["file_type"], "") + file["display_name"], file) for file in files]
    print(json.dumps([[name, file["url"]] for name, file in named if file.get("url")]))
    return 0


if __name__ == "__main__":
    del sys.path[0]  # this file's folder, whose modules are not meant by anyone's import
    sys.exit(main(sys.argv[1]))
